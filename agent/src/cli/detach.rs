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
    /// The agent does not end; some things cannot be removed, of which all others are.
    pub fn run(self) -> Result<(), CliError> {
        let run_dir = &self.run_dir.run_dir;
        let mut report = Report {
            agent_ended: end_agent(run_dir)?,
            ..Report::default()
        };
        if let Some(pid) = datapath::running_agent(run_dir) {
            return Err(CliError::Failed {
                message: datapath::Error::AgentRuns { pid }.to_string(),
                remedy: Some("something has started it again: end that, then run `weir detach` again".to_owned()),
            });
        }
        let mut failures = Vec::new();
        let detach = || datapath::detach_all(&self.bpffs, run_dir);
        let (detached, removed) = match self.cni.directories() {
            Some(directories) => install::remove(&directories, detach),
            None => (detach(), Ok(install::Removed::default())),
        };
        let detached = detached.unwrap_or_else(|error| {
            failures.push(error.to_string());
            datapath::Report::default()
        });
        let removed = removed.unwrap_or_else(|error| {
            failures.push(format!("cannot remove the CNI plugin: {error}"));
            install::Removed::default()
        });
        report.configurations = removed.configurations;
        report.plugin = removed.plugin;
        report.interfaces = detached.interfaces;
        report.removed = detached.removed;
        report.left = detached.left;
        failures.extend(removed.problems.iter().map(install::stays));
        // One that has started meanwhile keeps what is its own.
        if datapath::running_agent(run_dir).is_none() {
            failures.extend(remove_run_dir(run_dir));
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
            let nothing = !report.agent_ended && !report.plugin && report.interfaces.is_empty();
            if nothing && report.removed.is_empty() && failures.is_empty() {
                writeln!(out, "nothing was attached")?;
            }
            Ok(())
        })?;
        if failures.is_empty() {
            return Ok(());
        }
        Err(CliError::Failed {
            message: failures.join("\n"),
            remedy: Some("mend this, then run `weir detach` again".to_owned()),
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

/// Removes what the agent kept in its run directory, and the directory if it is empty then and nothing is mounted there.
/// Given back: what could not be removed, and why.
pub(crate) fn remove_run_dir(run_dir: &Path) -> Vec<String> {
    let mut failures = Vec::new();
    let mut note = |path: &Path, removed: io::Result<()>| {
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            failures.push(format!("{}: cannot be removed: {error}", path.display()));
        }
    };
    note(run_dir, store::remove_all(run_dir));
    match fs::read_dir(run_dir) {
        Ok(entries) => {
            for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
                if path.file_name().and_then(|name| name.to_str()).is_some_and(is_ours) {
                    note(&path, fs::remove_file(&path));
                }
            }
        }
        Err(error) => note(run_dir, Err(error)),
    }
    match fs::remove_dir(run_dir) {
        // Somebody else's files; or it is mounted into the agent's pod, whose root can be read only.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy | io::ErrorKind::ReadOnlyFilesystem
            ) => {}
        removed => note(run_dir, removed),
    }
    failures
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
        assert_eq!(remove_run_dir(&run_dir), [""; 0]);
        let left: Vec<_> = fs::read_dir(&run_dir)
            .expect("is there")
            .map(|entry| entry.expect("reads").file_name())
            .collect();
        assert_eq!(left, ["flows.json"]);
        // One that cannot be removed is told, and keeps nothing else.
        fs::create_dir(run_dir.join("last-valid.log")).expect("makes the directory");
        fs::write(run_dir.join(SEEN), "").expect("writes");
        let told = remove_run_dir(&run_dir);
        assert!(told.len() == 1 && told[0].contains("last-valid.log"), "{told:?}");
        assert!(!run_dir.join(SEEN).exists());
        fs::remove_dir(run_dir.join("last-valid.log")).expect("removes");
        fs::remove_file(run_dir.join("flows.json")).expect("removes");
        assert_eq!(remove_run_dir(&run_dir), [""; 0]);
        assert!(!run_dir.exists());
        assert_eq!(remove_run_dir(&run_dir), [""; 0], "nothing to do");
    }
}
