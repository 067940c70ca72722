//! Installs the plugin on the node and keeps it there: its binary, and its entry in the network configuration that
//! container runtimes use.
//!
//! | file | what |
//! |---|---|
//! | `conflist` | our entry in and out of a list, as text |
//! | `files` | replacing files whole, against others who write too |
//! | `pass` | one look at the directories, and what follows |
//! | `watch` | a look after every change |
//!
//! Every step leaves a state in which pods start: the binary comes first and goes last, files are replaced in one step,
//! and what cannot be read is left alone. There is nothing to restore from: taking the entry out of the text gives what
//! was there before, whoever has edited the rest meanwhile.

mod conflist;
mod files;
mod pass;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use self::conflist::Entry;
pub use self::{pass::Directories, watch::Installer};
use crate::{api::Problem, cni::PLUGIN};

/// Runtimes that are starting a pod have read their configuration already: they find the plugin for so long after its
/// entry is gone.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// What the agent was told of the plugin.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub directories: Directories,
    /// False: the plugin is not wanted, and what an agent with other options has installed is taken away.
    pub install: bool,
    /// How long an ADD waits for an agent.
    pub wait: Duration,
    /// Pods of these namespaces start without an agent.
    pub exempt_namespaces: Vec<String>,
}

impl Options {
    fn entry(&self, run_dir: &Path) -> Entry {
        // Where the runtime runs the plugin there is no working directory to speak of.
        let run_dir = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.to_owned());
        Entry::new(&run_dir.to_string_lossy(), self.wait, &self.exempt_namespaces)
    }
}

/// How the installation stands, for `weir status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginReport {
    /// The binary.
    pub plugin: PathBuf,
    /// The network configuration that has our entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed: Option<PathBuf>,
    /// Why there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// There is a network that pods can start with, and the plugin is not in it: they may start without policy. Where
    /// it is not wanted: it cannot be taken away.
    #[serde(default)]
    pub failed: bool,
    /// Files that were left alone, and others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

impl PluginReport {
    /// Before it has been tried once.
    #[must_use]
    pub fn starting(options: &Options) -> Self {
        let reason = if options.install {
            "it is being installed"
        } else {
            "it is switched off, and being taken away"
        };
        Self {
            plugin: options.directories.bin.join(PLUGIN),
            reason: Some(reason.to_owned()),
            ..Self::default()
        }
    }
}

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Network configurations that no longer name the plugin.
    pub configurations: usize,
    pub plugin: bool,
    /// Configurations that name the plugin still, or may: what could not be read, and what names it elsewhere than in a
    /// list's plugins. The binary stays then.
    pub problems: Vec<Problem>,
}

/// Why the binary was not removed.
#[must_use]
pub fn stays(problem: &Problem) -> String {
    format!("the CNI plugin stays, as a network configuration names it still, or may: {problem}")
}

/// Takes the plugin away: its entry first, so that no pod fails for want of it; then, while those that are starting
/// finish, what `meanwhile` does; then the binary. Again after a failure does what is left to do.
///
/// # Errors
/// The file system's. The binary stays where an entry may.
pub fn remove<T>(directories: &Directories, meanwhile: impl FnOnce() -> T) -> (T, io::Result<Removed>) {
    let entries = pass::remove_entries(&directories.conf);
    let result = meanwhile();
    let removed = entries.and_then(|(configurations, problems)| {
        if configurations > 0 {
            thread::sleep(UNDER_WAY);
        }
        let plugin = problems.is_empty() && pass::remove_plugin(&directories.bin)?;
        Ok(Removed {
            configurations,
            plugin,
            problems,
        })
    });
    (result, removed)
}
