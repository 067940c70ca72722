//! What the kernel saw, with names: events and sweeps in, flow records out.
//!
//! | file | what |
//! |---|---|
//! | `directory` | who an address, an endpoint or a trace is |
pub mod directory;
