//! `cargo xtask demo`: Weir at work in a small cluster of network namespaces.

use anyhow::{Result, bail};

#[derive(clap::Args)]
pub struct Arguments {}

pub fn run(_arguments: &Arguments) -> Result<()> {
    bail!("the demo is not written yet")
}
