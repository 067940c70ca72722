//! `cargo xtask bench`: what Weir costs, beside what it replaces.

use anyhow::{Result, bail};

#[derive(clap::Args)]
pub struct Arguments {}

pub fn run(_arguments: &Arguments) -> Result<()> {
    bail!("the benchmarks are not written yet")
}
