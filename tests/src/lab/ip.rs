//! Links, addresses and routes, through `ip -batch`: one process for any number of commands.

use std::{
    fmt::Write as _,
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use super::netns::NetNs;

/// Commands of `ip`, to be run in one go.
#[derive(Debug, Default)]
pub struct Batch {
    commands: String,
    /// Those that speak of IPv6 without an address that would tell; run last.
    v6: String,
}

impl Batch {
    /// Adds a command, without the leading `ip`.
    pub fn add(&mut self, command: impl AsRef<str>) -> &mut Self {
        let _ = writeln!(self.commands, "{}", command.as_ref());
        self
    }

    /// Adds a command, without the leading `ip -6`. These come after all others.
    pub fn add_v6(&mut self, command: impl AsRef<str>) -> &mut Self {
        let _ = writeln!(self.v6, "{}", command.as_ref());
        self
    }

    /// Runs the commands in a namespace; the first that fails ends the batch.
    ///
    /// # Errors
    /// What `ip` said, with the command it said it of.
    pub fn run(&self, netns: &NetNs) -> Result<()> {
        run(netns, None, &self.commands)?;
        run(netns, Some("-6"), &self.v6)
    }
}

fn run(netns: &NetNs, family: Option<&str>, commands: &str) -> Result<()> {
    if commands.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    command.args(family).args(["-batch", "-"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    netns.command(&mut command)?;
    let mut child = command.spawn().context("start ip (Debian: apt install iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        // If ip has ended already its own message says why.
        let _ = stdin.write_all(commands.as_bytes());
    }
    let output = child.wait_with_output().context("wait for ip")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix("Command failed -:")?.parse::<usize>().ok())
        .and_then(|number| commands.lines().nth(number.checked_sub(1)?));
    bail!("ip {}: {}", line.unwrap_or("-batch"), said.trim());
}
