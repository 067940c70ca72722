//! Writes the kustomize base from the chart: `cargo xtask kustomize`.

use std::fs;

use anyhow::{Context, Result};
use weir_tests::chart::{Chart, root};

fn main() -> Result<()> {
    let file = root().join("deploy/kustomize/weir.yaml");
    let text = Chart::new()?.kustomize()?;
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))
}
