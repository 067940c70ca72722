//! The programs of a cluster: each in the background, with a log, and in the cluster's control group.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};

use super::{cgroup, namespaces::apart};

/// What this process has started. Not ended on drop, only waited for: the control group ends it.
#[derive(Debug)]
pub struct Processes {
    logs: PathBuf,
    children: Mutex<Vec<Child>>,
}

impl Processes {
    /// Logs go to a directory, which is made.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(logs: &Path) -> Result<Self> {
        fs::create_dir_all(logs).with_context(|| format!("make {}", logs.display()))?;
        Ok(Self {
            logs: logs.to_owned(),
            children: Mutex::default(),
        })
    }

    /// Where a program's output goes.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// Starts a program; returns its process id.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, name: &str, mut command: Command, group: &str) -> Result<i32> {
        let log = self.log(name);
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("open {}", log.display()))?;
        let errors = output.try_clone().context("duplicate a descriptor")?;
        command.stdout(output).stderr(errors);
        apart(&mut command, cgroup::entrance(group)?);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(self.adopt(child))
    }

    /// Takes a process that runs; returns its id.
    pub fn adopt(&self, child: Child) -> i32 {
        let pid = i32::try_from(child.id()).unwrap_or_default();
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended need not be kept.
        children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        children.push(child);
        pid
    }

    /// Collects those that have ended.
    pub fn reap(&self) {
        let mut children = self.children.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.reap();
    }
}
