//! What is compared: each is put in place for one slice of measurement and removed after it.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use super::rules::{self, Rule};
use crate::{
    agent::Agent,
    netns::{Namespace, feed},
    node::Node,
    world::World,
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Nothing,
    Weir,
    WeirFlowLog,
    Iptables,
    Nftables,
}

/// A side in force; dropping it removes it.
#[expect(dead_code, reason = "they are kept for what their drop does")]
pub enum Installed<'node> {
    Nothing,
    Weir(Agent<'node>),
    WeirFlowLog(Agent<'node>, TempDir),
    Peer(Peer<'node>),
}

impl Side {
    pub const ALL: [Self; 5] = [
        Self::Nothing,
        Self::Weir,
        Self::WeirFlowLog,
        Self::Iptables,
        Self::Nftables,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Weir => "weir",
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
        let (client, server) = match node.pods.as_slice() {
            [client, server, ..] => (client, server),
            _ => anyhow::bail!("a client and a server pod are needed"),
        };
        let namespace = &node.namespace;
        Ok(match self {
            Self::Nothing => Installed::Nothing,
            Self::Weir => Installed::Weir(Agent::start(weir, namespace, world, &[])?),
            Self::WeirFlowLog => {
                let dir = TempDir::with_prefix("weir-bench-flows-")?;
                let file = dir.path().join("flows.json");
                let file = file.to_str().context("the temporary directory's name is not UTF-8")?;
                let agent = Agent::start(weir, namespace, world, &["--flow-log", file])?;
                Installed::WeirFlowLog(agent, dir)
            }
            Self::Iptables => Installed::Peer(Peer::install(
                namespace,
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
                namespace,
                &[(&["nft", "-f", "-"], &rules::nftables(rules, client, server))],
                &[&["nft", "flush", "ruleset"]],
            )?),
        })
    }
}

/// Rules of the kernel's own packet filters.
pub struct Peer<'node> {
    node: &'node Namespace,
    remove: &'static [&'static [&'static str]],
}

impl<'node> Peer<'node> {
    fn install(
        node: &'node Namespace,
        feeds: &[(&[&str], &str)],
        remove: &'static [&'static [&'static str]],
    ) -> Result<Self> {
        let _inside = node.enter()?;
        // Made first, so that what half an installation leaves is removed too.
        let peer = Self { node, remove };
        for (command, input) in feeds {
            let [program, arguments @ ..] = command else { continue };
            feed(program, arguments, input)?;
        }
        Ok(peer)
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        let removed = self.node.enter().and_then(|_inside| {
            // Connections are remembered in the kernel's table beyond the rules, and it must not fill up.
            for command in self.remove.iter().copied().chain([["conntrack", "-F"].as_slice()]) {
                let [program, arguments @ ..] = command else { continue };
                quietly(program, arguments)?;
            }
            Ok(())
        });
        if let Err(error) = removed {
            eprintln!("bench: {error:#}");
        }
    }
}

fn quietly(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        anyhow::bail!("`{program} {}` failed: {}", arguments.join(" "), complaint.trim());
    }
    Ok(())
}
