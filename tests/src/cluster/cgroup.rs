//! Every process of a cluster runs in control groups of the cluster's name, so that all of them can be found and ended:
//! containers and their shims outlive containerd.
//!
//! Where the first version of control groups is mounted, there is a directory in every hierarchy, and the one of `pids` is
//! what processes are found by. With the second version there is one directory.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const ROOT: &str = "/sys/fs/cgroup";

/// Processes are killed and waited for as long as this.
const PATIENCE: Duration = Duration::from_secs(20);

/// The second version, mounted alone.
fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").is_file()
}

/// The directories below which groups are made, one per hierarchy.
fn hierarchies() -> Result<Vec<PathBuf>> {
    if unified() {
        return Ok(vec![PathBuf::from(ROOT)]);
    }
    let entries = fs::read_dir(ROOT).with_context(|| format!("list {ROOT}"))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // Symbolic links name hierarchies that have several controllers.
        if path.join("cgroup.procs").is_file() && !path.is_symlink() {
            found.push(path);
        }
    }
    ensure!(
        found.iter().any(|path| path.ends_with("pids")),
        "no control group hierarchy `pids` is mounted below {ROOT}"
    );
    Ok(found)
}

/// The hierarchy that processes are found by.
fn main_hierarchy() -> PathBuf {
    if unified() {
        PathBuf::from(ROOT)
    } else {
        Path::new(ROOT).join("pids")
    }
}

/// Makes a group, and the ones above it, in every hierarchy.
pub fn make(group: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut path = hierarchy.clone();
        for part in group.split('/') {
            let above = path.clone();
            path.push(part);
            if unified() {
                // Controllers that are missing here are kubelet's to complain of.
                for controller in ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"] {
                    let _ = fs::write(above.join("cgroup.subtree_control"), format!("+{controller}"));
                }
            }
            if !path.is_dir() {
                fs::create_dir(&path).with_context(|| format!("make {} (root is needed)", path.display()))?;
            }
            // A new group of this controller takes no process before it has been told its processors and memory.
            for name in ["cpuset.cpus", "cpuset.mems"] {
                if !unified() && path.join(name).is_file() {
                    let value = fs::read_to_string(above.join(name)).with_context(|| format!("read {name}"))?;
                    fs::write(path.join(name), value.trim()).with_context(|| format!("write {name}"))?;
                }
            }
        }
    }
    Ok(())
}

/// The file that a process writes `0` to in order to join a group. With the second version, processes live in a leaf.
pub fn entrance(group: &str) -> Result<File> {
    let mut path = main_hierarchy().join(group);
    if unified() {
        path.push("system");
        if !path.is_dir() {
            fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        }
    }
    path.push("cgroup.procs");
    OpenOptions::new()
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))
}

/// Whether a process is in a group or below it.
pub fn contains(group: &str, pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| {
        text.lines()
            .any(|line| line.contains(&format!("/{group}/")) || line.ends_with(&format!("/{group}")))
    })
}

/// The processes of a group, those of groups below it included.
pub fn processes(group: &str) -> Vec<i32> {
    tree(&main_hierarchy().join(group))
}

/// Ends every process of a group and takes the group away, in every hierarchy.
///
/// # Errors
/// If processes do not end.
pub fn destroy(group: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let processes = processes(group);
        if processes.is_empty() {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "processes of {group} do not end: {processes:?}"
        );
        for pid in processes {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(20));
    }
    for hierarchy in hierarchies()? {
        let path = hierarchy.join(group);
        loop {
            remove(&path);
            if !path.exists() {
                break;
            }
            // The kernel takes a moment after the last process.
            ensure!(Instant::now() < deadline, "{} cannot be removed", path.display());
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// The processes of a group and of those below it. Zombies are in no list.
fn tree(path: &Path) -> Vec<i32> {
    let mut found: Vec<i32> = fs::read_to_string(path.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for below in directories(path) {
        found.extend(tree(&below));
    }
    found
}

fn remove(path: &Path) {
    for below in directories(path) {
        remove(&below);
    }
    // What is not empty yet is tried again.
    let _ = fs::remove_dir(path);
}

fn directories(path: &Path) -> Vec<PathBuf> {
    fs::read_dir(path)
        .map(|entries| {
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path())
                .collect()
        })
        .unwrap_or_default()
}
