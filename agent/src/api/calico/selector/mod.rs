//! Calico's selector language (<https://docs.tigera.io/calico/latest/reference/resources/networkpolicy#selectors>).
//!
//! | file | what |
//! |---|---|
//! | `expression` | a selector as it is written, and its text |
//! | `parse` | text -> expression; errors point at the character |
//! | `lower` | expression -> the policy model's selector |

mod expression;
mod lower;
mod parse;
#[cfg(test)]
mod tests;

pub(super) use self::lower::not;
pub use self::{
    expression::Expression,
    lower::{Scope, lower},
    parse::{SyntaxError, parse},
};
