//! The compiler against the naive evaluator, over random worlds and their changes.

mod cluster;
mod incremental;
mod limits;
mod sequences;
mod sharing;
mod shortage;
