//! `weir-e2e`: what `cargo xtask e2e` builds and runs.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use weir_tests::{
    cluster::{
        Cluster, Cni, Options, Proxy,
        binaries::{Binaries, Tool},
        images,
    },
    e2e::{self, Extent, Stage, provider, upstream},
};

use self::arguments::Arguments;

mod arguments;

#[derive(Parser)]
#[command(name = "cargo xtask e2e", bin_name = "cargo xtask e2e")]
struct Program {
    /// The archive with Weir's image
    #[arg(long, required_unless_present = "kubeconfig")]
    image: Option<PathBuf>,

    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    match run(&Program::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Program { image, arguments }: &Program) -> Result<()> {
    // Before anything is made for them.
    let extent = if arguments.all { Extent::All } else { Extent::Core };
    let cases = e2e::choose(extent, &arguments.filters)?;
    let play = |stage: &Stage| {
        if arguments.upstream {
            upstream::play(stage)
        } else {
            e2e::run(stage, extent, &cases)
        }
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = root.parent().context("the repository's root")?;
    if let Some(kubeconfig) = &arguments.kubeconfig {
        return play(&Stage::of_kubeconfig(kubeconfig.clone(), root)?);
    }
    let image = image.as_ref().context("no image")?;
    if let Some(name) = &arguments.cluster {
        let cluster = Cluster::attach(name)?;
        cluster.load(image)?;
        return play(&Stage::of_namespaces(cluster, root)?);
    }
    if arguments.kind || arguments.minikube {
        let binaries = Binaries::ensure(&[Tool::Agnhost, Tool::CoreDns])?;
        let mut archives = images::archives(&binaries)?;
        archives.push(image.clone());
        let made = if arguments.kind {
            provider::kind(root, &archives)?
        } else {
            provider::minikube(&archives)?
        };
        return play(&Stage::of_kubeconfig(made.kubeconfig(), root)?);
    }
    if arguments.upstream {
        // Before there is a cluster to wait for it.
        Binaries::ensure(&[])?.upstream_suite()?;
    }
    let networks: &[Cni] = if arguments.all {
        &[Cni::Ptp, Cni::Bridge]
    } else {
        &[Cni::Ptp]
    };
    let mut failed = Vec::new();
    for cni in networks {
        println!("cluster of namespaces, pods by {cni:?}");
        let cluster = Cluster::up(&Options {
            nodes: 2,
            cni: *cni,
            proxy: Proxy::Nftables,
            images: vec![image.clone()],
            ..Options::default()
        })?;
        let stage = Stage::of_namespaces(cluster, root)?;
        let mut played = play(&stage);
        if arguments.filters.is_empty() && !arguments.upstream {
            played = played.and_then(|()| through_kubeconfig(&stage));
        }
        if let Err(error) = played {
            failed.push(format!("{cni:?}: {error:#}"));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// Cases that every kind of cluster is good for, on a cluster of which this program knows a kubeconfig alone: the way of
/// `--kind`, `--minikube` and `--kubeconfig`.
fn through_kubeconfig(stage: &Stage) -> Result<()> {
    let program = env::current_exe().context("find this program")?;
    let mut command = Command::new(program);
    command
        .arg("--kubeconfig")
        .arg(stage.kubeconfig())
        .args(["rights", "rolling-update", "kill-agents", "uninstall"]);
    println!("through the kubeconfig alone");
    let status = command.status().context("start this program once more")?;
    ensure!(status.success(), "cases fail that know the kubeconfig alone");
    Ok(())
}
