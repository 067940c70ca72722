//! `cargo xtask kustomize`: the kustomize base, generated from the chart.

use anyhow::Result;

use crate::{
    process,
    setup::{self, Verb},
    workspace,
};

#[derive(clap::Args)]
pub struct Arguments {}

/// What renders the chart is an example of the tests' package, which has Helm.
pub fn run(_arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Cluster)?;
    let mut cargo = workspace::cargo();
    process::run(cargo.args([
        "run",
        "--quiet",
        "--locked",
        "--package",
        "weir-tests",
        "--example",
        "kustomize",
    ]))
}
