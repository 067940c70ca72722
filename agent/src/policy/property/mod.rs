//! The compiler against the naive evaluator, over random worlds and their changes.

mod limits;
mod sequences;
mod shortage;
