//! What is compared: each is put in place for one slice of measurement and removed after it.

use std::path::Path;

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use weir_tests::lab::Agent;

use super::rules::{self, Rule};
use crate::{node::Node, world::World};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Nothing,
    Weir,
    /// The kernel forwards, as on a node with rules of netfilter.
    WeirKernel,
    WeirFlowLog,
    Iptables,
    Nftables,
}

/// A side in force; dropping it removes it.
#[expect(dead_code, reason = "they are kept for what their drop does")]
pub enum Installed<'node> {
    Nothing,
    Weir(Agent),
    WeirFlowLog(Agent, TempDir),
    Peer(Peer<'node>),
}

impl Side {
    pub const ALL: [Self; 6] = [
        Self::Nothing,
        Self::Weir,
        Self::WeirKernel,
        Self::WeirFlowLog,
        Self::Iptables,
        Self::Nftables,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Weir => "weir",
            Self::WeirKernel => "weir --forward kernel",
            Self::WeirFlowLog => "weir --flow-log",
            Self::Iptables => "iptables+ipset",
            Self::Nftables => "nftables sets",
        }
    }

    /// Puts the rules in force on the server pod.
    pub fn install<'node>(
        self,
        weir: &Path,
        node: &'node Node,
        rules: &[Rule],
        world: &World,
    ) -> Result<Installed<'node>> {
        let (client, server) = node.client_and_server()?;
        Ok(match self {
            Self::Nothing => Installed::Nothing,
            Self::Weir => Installed::Weir(node.start_agent(weir, world, &[])?),
            Self::WeirKernel => Installed::Weir(node.start_agent(weir, world, &["--forward", "kernel"])?),
            Self::WeirFlowLog => {
                let dir = TempDir::with_prefix("weir-bench-flows-")?;
                let file = dir.path().join("flows.json");
                let file = file.to_str().context("the temporary directory's name is not UTF-8")?;
                let agent = node.start_agent(weir, world, &["--flow-log", file])?;
                Installed::WeirFlowLog(agent, dir)
            }
            Self::Iptables => Installed::Peer(Peer::install(
                node,
                &[
                    (&["ipset", "restore"], &rules::ipsets(client)),
                    (
                        &["iptables-legacy-restore", "--wait", "5"],
                        &rules::iptables(rules, client, server),
                    ),
                ],
                &[
                    &["iptables-legacy", "--wait", "5", "-F"],
                    &["iptables-legacy", "--wait", "5", "-X"],
                    &["ipset", "destroy"],
                ],
            )?),
            Self::Nftables => Installed::Peer(Peer::install(
                node,
                &[(&["nft", "-f", "-"], &rules::nftables(rules, client, server))],
                &[&["nft", "flush", "ruleset"]],
            )?),
        })
    }
}

/// Rules of the kernel's own packet filters.
pub struct Peer<'node> {
    node: &'node Node,
    remove: &'static [&'static [&'static str]],
}

impl<'node> Peer<'node> {
    fn install(
        node: &'node Node,
        feeds: &[(&[&str], &str)],
        remove: &'static [&'static [&'static str]],
    ) -> Result<Self> {
        // Made first, so that what half an installation leaves is removed too.
        let peer = Self { node, remove };
        for (command, input) in feeds {
            node.feed(command, input)?;
        }
        Ok(peer)
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        // Connections are remembered in the kernel's table beyond the rules, and it must not fill up.
        for command in self.remove.iter().copied().chain([["conntrack", "-F"].as_slice()]) {
            if let Err(error) = self.node.feed(command, "") {
                eprintln!("bench: {error:#}");
            }
        }
    }
}
