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
/// [`Error::AgentRuns`] while an agent holds the run directory; it would attach everything again. Else whatever hinders single
/// removals, all of it, after everything else was removed: it can be run again.
pub fn detach_all(bpffs: &Path, run_dir: &Path) -> Result<Report> {
    environment::check_privileges()?;
    let _closed = environment::Closed::take(run_dir)?;
    let pins = Pins::new(bpffs);
    let mut report = Report::default();
    let links = Links {
        pins: pins.clone(),
        mode: Mode::Tcx,
    };
    let mut failures = Vec::new();
    let interfaces: BTreeSet<u32> = links.attached().unwrap_or_else(|error| {
        failures.push(error);
        // Those of links and qdiscs, which the pins name: more cannot be found out.
        let pinned = pins.link_pins().into_iter().flatten().map(|link| link.ifindex);
        pinned.chain(pins.qdisc_marks().into_iter().flatten()).collect()
    });
    for ifindex in interfaces {
        match links.detach(ifindex) {
            Ok(_) => report
                .interfaces
                .push(sys::interface_name(ifindex).unwrap_or_else(|| format!("index {ifindex} (gone)"))),
            Err(error) => failures.push(error),
        }
    }
    if bpffs.exists() {
        // Not before: where there is nothing, nothing needs a BPF file system.
        match environment::check_bpffs(bpffs) {
            Ok(()) => remove_directories(&pins, &mut report, &mut failures),
            Err(error) => failures.push(error),
        }
    }
    if failures.is_empty()
        && let Err(error) = pins::remove_file(&environment::lock_path(run_dir))
    {
        failures.push(error);
    }
    Error::all(failures)?;
    Ok(report)
}

fn remove_directories(pins: &Pins, report: &mut Report, failures: &mut Vec<Error>) {
    match pins.scan() {
        Ok(found) => {
            for numbered in found.generations.into_iter().chain(found.states) {
                match pins::remove_pins(&numbered.path) {
                    Ok(()) => report.removed.push(numbered.path),
                    Err(error) => failures.push(error),
                }
            }
            report.left.extend(found.unknown);
        }
        Err(error) => failures.push(error),
    }
    // Of an interface that is still attached they are needed to try again.
    if failures.is_empty() {
        match pins.qdisc_marks() {
            Ok(marks) => {
                let removed = marks
                    .into_iter()
                    .map(|ifindex| pins::remove_empty(&pins.qdisc(ifindex)));
                failures.extend(removed.filter_map(Result::err));
            }
            Err(error) => failures.push(error),
        }
    }
    for dir in [pins.links(), pins.qdiscs()] {
        if !dir.exists() {
            continue;
        }
        match pins::remove_empty(&dir) {
            Ok(true) => report.removed.push(dir),
            Ok(false) => report.left.push(dir),
            Err(error) => failures.push(error),
        }
    }
    match pins::remove_empty(&pins.root) {
        Ok(true) => report.removed.push(pins.root.clone()),
        Ok(false) => {}
        Err(error) => failures.push(error),
    }
}
