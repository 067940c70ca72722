//! One node with pods on routed veth pairs, as Calico and the AWS VPC CNI lay them out: a lab of the tests' own.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use weir_tests::lab::{
    Agent, Families, Lab, Layout, NetNs, PodPlan,
    agent::{AgentOptions, Attach},
};

use crate::world::{NAMESPACE, World};

/// The name of the node that runs the agent.
pub const NAME: &str = "bench-node";

/// How long the agent may take until everything is enforced.
const READY: Duration = Duration::from_secs(60);

pub struct Node {
    lab: Lab,
    pub pods: Vec<Pod>,
}

pub struct Pod {
    pub name: String,
    pub address: Ipv4Addr,
    /// The interface's end on the node.
    pub interface: String,
    pub netns: Arc<NetNs>,
}

impl Node {
    pub fn new(pods: &[&str]) -> Result<Self> {
        let mut lab = Lab::new(Families::V4)?;
        lab.add_node(NAME, Layout::Routed)?;
        let plans: Vec<PodPlan> = pods.iter().map(|name| PodPlan::new(&scoped(name), NAME)).collect();
        lab.add_pods(&plans)?;
        let pods = pods
            .iter()
            .map(|name| {
                let link = lab.pod(&scoped(name))?;
                Ok(Pod {
                    name: (*name).to_owned(),
                    address: link.addresses.v4.context("the lab's pod has no IPv4 address")?,
                    interface: link.interface.clone(),
                    netns: Arc::clone(&link.netns),
                })
            })
            .collect::<Result<Vec<Pod>>>()?;
        Ok(Self { lab, pods })
    }

    /// The first two pods.
    pub fn client_and_server(&self) -> Result<(&Pod, &Pod)> {
        match self.pods.as_slice() {
            [client, server, ..] => Ok((client, server)),
            _ => bail!("a client and a server pod are needed"),
        }
    }

    pub const fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A directory that goes with the node.
    pub fn directory(&self) -> &Path {
        self.lab.directory()
    }

    pub fn netns(&self) -> Result<&Arc<NetNs>> {
        Ok(&self.lab.node(NAME)?.netns)
    }

    pub fn address(&self) -> Result<IpAddr> {
        let addresses = self.lab.node(NAME)?.addresses;
        addresses.iter().next().context("the lab's node has no address")
    }

    /// Starts the agent and returns once it enforces all of the world. Dropping it removes all that it has put into
    /// the kernel.
    pub fn start_agent(&self, weir: &Path, world: &World, arguments: &[&str]) -> Result<Agent> {
        let options = AgentOptions {
            attach: Attach::Tcx,
            flows: false,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            binary: Some(weir.to_owned()),
            ..AgentOptions::default()
        };
        let mut agent = Agent::start(&self.lab, NAME, world.path(), options)?;
        agent.wait(READY)?;
        Ok(agent)
    }

    /// Runs a program in the node's namespace and gives it `input`; an error, with what it complained about, if it
    /// fails.
    pub fn feed(&self, command: &[&str], input: &str) -> Result<()> {
        let [program, arguments @ ..] = command else {
            bail!("no program")
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        self.lab.node(NAME)?.netns.command(&mut command)?;
        let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends early says why on its standard error, below.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let complaint = String::from_utf8_lossy(&output.stderr);
            bail!("`{program} {}` failed: {}", arguments.join(" "), complaint.trim());
        }
        Ok(())
    }
}

fn scoped(name: &str) -> String {
    format!("{NAMESPACE}/{name}")
}
