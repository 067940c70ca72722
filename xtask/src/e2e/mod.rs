//! `cargo xtask e2e`: Weir in a real cluster, installed from its chart.
//!
//! What runs the cases is a program of its own (the other files of this directory), built with the `e2e` feature, as for
//! `cluster`.

use std::{env, fs::File, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build::{self, Profile},
    image, process,
    setup::{self, Verb},
};

mod arguments;

pub use arguments::Arguments;

/// Makes sure that a tool which makes clusters in Docker can do so, before anything is built for it.
fn provider(program: &str, instructions: &str) -> Result<()> {
    const ELSE: &str = "without Docker, `cargo xtask e2e` makes a cluster of namespaces";
    ensure!(
        process::find(program).is_some(),
        "{program} is not installed: see {instructions}; {ELSE}"
    );
    ensure!(
        process::find("docker").is_some(),
        "docker, in which {program} runs nodes, is not installed: see https://docs.docker.com/engine/install/; {ELSE}"
    );
    process::output(Command::new("docker").arg("info"))
        .with_context(|| format!("Docker, in which {program} runs nodes, does not answer; is it started? {ELSE}"))?;
    Ok(())
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.kind {
        provider("kind", "https://kind.sigs.k8s.io/docs/user/quick-start/#installation")?;
    }
    if arguments.minikube {
        provider("minikube", "https://minikube.sigs.k8s.io/docs/start/")?;
    }
    if let Some(kubeconfig) = &arguments.kubeconfig {
        File::open(kubeconfig).with_context(|| format!("reading the kubeconfig {}", kubeconfig.display()))?;
    }
    setup::ensure(Verb::Cluster)?;
    let mut program = build::program(Profile::Debug, "e2e", &[])?;
    // Who names a kubeconfig has loaded the image.
    if arguments.kubeconfig.is_none() {
        program.arg("--image").arg(image::for_clusters()?);
    }
    // The first two are this program and its verb.
    program.args(env::args_os().skip(2));
    process::become_program(&mut program)
}
