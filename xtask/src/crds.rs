//! `cargo xtask crds`: the CustomResourceDefinitions, generated from the types that the agent parses by.

use anyhow::Result;

use crate::{
    process,
    setup::{self, Verb},
    workspace,
};

#[derive(clap::Args)]
pub struct Arguments {}

/// For `kubectl apply -k` beside the kustomize base, and for Helm, which installs what is in the chart's directory of
/// this name where it is absent, and never changes or deletes it.
const DIRS: [&str; 2] = ["deploy/crds", "deploy/helm/weir/crds"];

/// What writes them is an example of the agent's package: xtask must build where nothing else can be built yet.
pub fn run(_arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Build)?;
    let mut cargo = workspace::cargo();
    cargo.args([
        "run",
        "--quiet",
        "--locked",
        "--package",
        "weir",
        "--example",
        "crds",
        "--",
    ]);
    process::run(cargo.args(DIRS.map(|dir| workspace::root().join(dir))))
}
