//! `weir detach`: takes everything off the interfaces and removes every pin, also with no agent running.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    environment,
    error::{Error, Result},
    links::{Links, Mode},
    pins::{self, Pins},
    sys,
};

/// What was removed and what was left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Interfaces that were detached, by name (or index, where they are gone).
    pub interfaces: Vec<String>,
    /// Directories of pins that were removed.
    pub removed: Vec<PathBuf>,
    /// Files in the bpffs directory that are not ours: left alone, and the directory with them.
    pub left: Vec<PathBuf>,
}

impl Report {
    /// There was nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.interfaces.is_empty() && self.removed.is_empty()
    }
}

/// Removes every trace of Weir from the interfaces of this network namespace and from the bpffs directory: links,
/// filters (known by priority, handle and name), clsact qdiscs that we added and that are empty, pins, directories;
/// and the lock in the run directory. Traffic is open from the moment an interface is detached.
///
/// # Errors
/// [`Error::AgentRuns`] while an agent holds the run directory; it would attach everything again. Else whatever hinders a single
/// removal, after everything before it was removed: it can be run again.
pub fn detach_all(bpffs: &Path, run_dir: &Path) -> Result<Report> {
    environment::check_privileges()?;
    if let Some(pid) = environment::running_agent(run_dir) {
        return Err(Error::AgentRuns { pid });
    }
    let pins = Pins::new(bpffs);
    let mut report = Report::default();
    let links = Links {
        pins: pins.clone(),
        mode: Mode::Tcx,
    };
    let interfaces: BTreeSet<u32> = links.attached()?;
    for ifindex in interfaces {
        links.detach(ifindex)?;
        report
            .interfaces
            .push(sys::interface_name(ifindex).unwrap_or_else(|| format!("index {ifindex} (gone)")));
    }
    if bpffs.exists() {
        // Not before: where there is nothing, nothing needs a BPF file system.
        environment::check_bpffs(bpffs)?;
        remove_directories(&pins, &mut report)?;
    }
    pins::remove_file(&environment::lock_path(run_dir))?;
    Ok(report)
}

fn remove_directories(pins: &Pins, report: &mut Report) -> Result<()> {
    let found = pins.scan()?;
    for numbered in found.generations.into_iter().chain(found.states) {
        pins::remove_pins(&numbered.path)?;
        report.removed.push(numbered.path);
    }
    for ifindex in pins.qdisc_marks()? {
        pins::remove_empty(&pins.qdisc(ifindex))?;
    }
    for dir in [pins.links(), pins.qdiscs()] {
        if !dir.exists() {
            continue;
        }
        if pins::remove_empty(&dir)? {
            report.removed.push(dir);
        } else {
            report.left.push(dir);
        }
    }
    report.left.extend(found.unknown);
    if pins::remove_empty(&pins.root)? {
        report.removed.push(pins.root.clone());
    }
    Ok(())
}
