//! The policy model and its compiler: pure, no clock, no I/O, no await. Nothing here knows that aya or kube exist.
//!
//! | file | what |
//! |---|---|
//! | `model` | tiers, policies, rules: one shape for every policy language |
//! | `selector` | label expressions and what they are asked about |
//! | `change` | what the compiler is told |
//! | `plan` | what the compiler wants done: plain-data operations on the kernel's maps |
//! | `compile` | changes in, plans out |
//! | `evaluate` | the naive evaluator: the reference, and `weir explain` |
//! | `random` | random small worlds, for tests |
//! | `simulate` | maps that execute plans and look up as the eBPF program does, for tests and staged policies |
//! | `staged` | what would happen if staged policies were enforced |

pub mod change;
pub mod compile;
pub mod evaluate;
pub mod model;
pub mod plan;
pub mod random;
pub mod selector;
pub mod simulate;
pub mod staged;

#[cfg(test)]
mod property;
