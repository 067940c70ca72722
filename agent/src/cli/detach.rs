//! `weir detach`: stop enforcing, and leave nothing behind.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;

use super::{
    args::{CniDirectories, DEFAULT_BPFFS, Output, RunDir},
    client::{Client, unexpected},
    error::CliError,
    output,
    protocol::{Response, SOCKET, Verb},
};
use crate::{
    cni::{install, store},
    datapath,
    source::kubernetes::SEEN,
};

/// How long a running agent may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running agent is told to end first (whatever supervises it may start it again).
#[derive(Debug, Args)]
pub struct Detach {
    /// The agent's directory on the bpffs
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    #[command(flatten)]
    pub run_dir: RunDir,
    #[command(flatten)]
    pub cni: CniDirectories,
    #[command(flatten)]
    pub output: Output,
}

/// What was done.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// A running agent was ended first.
    agent_ended: bool,
    /// Interfaces that were detached here.
    interfaces: Vec<String>,
    /// Directories of pins that were removed here.
    removed: Vec<PathBuf>,
    /// What is not Weir's and was left alone.
    left: Vec<PathBuf>,
    /// Network configurations that the CNI plugin was taken out of here.
    configurations: usize,
    /// The CNI plugin was removed here.
    plugin: bool,
}

impl Detach {
    /// # Errors
    /// The agent does not end, something cannot be removed.
    pub fn run(self) -> Result<(), CliError> {
        let run_dir = &self.run_dir.run_dir;
        let mut report = Report {
            agent_ended: end_agent(run_dir)?,
            ..Report::default()
        };
        let detach = || datapath::detach_all(&self.bpffs, run_dir).map_err(anyhow::Error::from);
        let (detached, removed) = match self.cni.directories() {
            Some(directories) => install::remove(&directories, detach),
            None => (detach(), Ok(install::Removed::default())),
        };
        let detached = detached?;
        let removed = removed?;
        report.configurations = removed.configurations;
        report.plugin = removed.plugin;
        report.interfaces = detached.interfaces;
        report.removed = detached.removed;
        report.left = detached.left;
        remove_run_dir(run_dir)?;
        if let Some(problem) = removed.problems.first() {
            return Err(CliError::Failed {
                message: format!("the CNI plugin stays, as a network configuration may name it still: {problem}"),
                remedy: Some("mend the file, then run `weir detach` again".to_owned()),
            });
        }

        output::print(self.output.output, &report, |out| {
            if report.agent_ended {
                writeln!(out, "ended the running agent")?;
            }
            for interface in &report.interfaces {
                writeln!(out, "detached from {interface}")?;
            }
            for directory in &report.removed {
                writeln!(out, "removed {}", directory.display())?;
            }
            for file in &report.left {
                writeln!(out, "left alone, as it is not Weir's: {}", file.display())?;
            }
            if report.configurations > 0 {
                writeln!(
                    out,
                    "took the CNI plugin out of {} network configurations",
                    report.configurations
                )?;
            }
            if report.plugin {
                writeln!(out, "removed the CNI plugin")?;
            }
            if !report.agent_ended && !report.plugin && report.interfaces.is_empty() && report.removed.is_empty() {
                writeln!(out, "nothing was attached")?;
            }
            Ok(())
        })
    }
}

/// Tells a running agent to detach and end, and waits until it has. False: none is running.
fn end_agent(run_dir: &Path) -> Result<bool, CliError> {
    let mut client = match Client::connect(run_dir) {
        Ok(client) => client,
        Err(CliError::NoAgent { .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    match client.ask(Verb::Detach)? {
        Response::Detach(_) => {}
        other => return Err(unexpected(&other)),
    }
    let deadline = Instant::now() + PATIENCE;
    while datapath::running_agent(run_dir).is_some() {
        if Instant::now() > deadline {
            return Err(CliError::Failed {
                message: format!("the agent has detached but did not end within {} s", PATIENCE.as_secs()),
                remedy: Some("end it, then run `weir detach` again".to_owned()),
            });
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(true)
}

/// What agents keep in their run directory besides attachments: the socket, the last valid versions of objects, the
/// DaemonSet seen.
fn is_ours(name: &str) -> bool {
    name == SOCKET || name == SEEN || name.starts_with("last-valid.")
}

/// Removes what the agent kept in its run directory, and the directory if it is empty then.
pub(crate) fn remove_run_dir(run_dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(run_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    store::remove_all(run_dir)?;
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_ours) {
            fs::remove_file(entry.path())?;
        }
    }
    match fs::remove_dir(run_dir) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ours_stays_in_the_run_directory() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let run_dir = parent.path().join("weir");
        fs::create_dir(&run_dir).expect("makes the directory");
        fs::create_dir(run_dir.join(store::DIRECTORY)).expect("makes the directory");
        fs::write(run_dir.join(store::DIRECTORY).join("c:eth0"), "").expect("writes");
        for name in [SOCKET, SEEN, "last-valid.log", "flows.json"] {
            fs::write(run_dir.join(name), "").expect("writes");
        }
        remove_run_dir(&run_dir).expect("removes");
        let left: Vec<_> = fs::read_dir(&run_dir)
            .expect("is there")
            .map(|entry| entry.expect("reads").file_name())
            .collect();
        assert_eq!(left, ["flows.json"]);
        fs::remove_file(run_dir.join("flows.json")).expect("removes");
        remove_run_dir(&run_dir).expect("removes");
        assert!(!run_dir.exists());
        remove_run_dir(&run_dir).expect("nothing to do");
    }
}
