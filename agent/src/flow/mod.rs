//! What the kernel saw, with names: events and sweeps in, flow records out.
//!
//! | file | what |
//! |---|---|
//! | `directory` | who an address, an endpoint or a trace is |
//! | `clock` | the kernel's clock and the wall's |
//! | `record` | a flow at one moment: event or table entry, with names |
//! | `json` | the shape of a record on the outside; `render` makes it, `text` shows it to people, `encode` is `render` in haste |
//! | `filter` | which records a reader wants |
//! | `report` | when to speak of a flow that lasts, timed out, or is denied again |
//! | `hub` | recent records, readers at the socket; `sink` and `rotate`: the flow log |
//! | `task` | reads events, sweeps tables, publishes |

pub mod clock;
pub mod directory;
pub mod encode;
pub mod filter;
pub mod hub;
pub mod json;
pub mod record;
pub mod render;
pub mod report;
pub mod rotate;
pub mod sink;
pub mod task;
pub mod text;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
