//! `weir-cluster`: what `cargo xtask cluster` builds and runs.

use std::{
    env,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result};
use clap::Parser;
use weir_tests::cluster::{self, Cluster, Lifetime, Options};

use self::arguments::{Arguments, Cni, Proxy, Up, Verb};

mod arguments;

#[derive(Parser)]
#[command(name = "cargo xtask cluster", bin_name = "cargo xtask cluster")]
struct Program {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    match run(Program::parse().arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Arguments { verb, name }: Arguments) -> Result<()> {
    match verb {
        Verb::Up(options) => up(&name, &options),
        Verb::Down => Cluster::down(&name),
        Verb::Load { archives } => {
            let cluster = Cluster::attach(&name)?;
            archives.iter().try_for_each(|archive| cluster.load(archive))
        }
        Verb::Kubectl { arguments } => {
            let cluster = Cluster::attach(&name)?;
            Err(cluster.kubectl().args(arguments).exec()).context("start kubectl")
        }
        Verb::Node { number, command } => {
            let (program, arguments) = command.split_first().context("no command")?;
            let mut command = Command::new(program);
            command.args(arguments);
            Cluster::attach(&name)?.node(number)?.command(&mut command)?;
            Err(command.exec()).with_context(|| format!("start {}", program.display()))
        }
        Verb::Forward { cluster } => cluster::forward_from_standard_input(&cluster),
    }
}

fn up(name: &str, up: &Up) -> Result<()> {
    let began = Instant::now();
    let program = env::current_exe().context("find this program")?;
    let proxy = match up.proxy {
        Proxy::None => cluster::Proxy::None,
        Proxy::Nftables => cluster::Proxy::Nftables,
        Proxy::Iptables => cluster::Proxy::Iptables,
    };
    let cluster = Cluster::up(&Options {
        name: Some(name.to_owned()),
        nodes: up.nodes,
        cni: match up.cni {
            Cni::Ptp => cluster::Cni::Ptp,
            Cni::Bridge => cluster::Cni::Bridge,
        },
        proxy,
        images: Vec::new(),
        dns: up.nodes > 0 && proxy != cluster::Proxy::None && !up.no_dns,
        api_server: up.api_server.clone(),
        lifetime: Lifetime::Machine {
            forward: vec![program.display().to_string(), "forward".into()],
        },
    })?;
    eprintln!(
        "{} nodes are ready after {:.1?}; for kubectl, helm and others:",
        up.nodes,
        began.elapsed()
    );
    println!("export KUBECONFIG={}", cluster.kubeconfig().display());
    Ok(())
}
