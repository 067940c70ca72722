//! What any process must know of a cluster to use it or to take it away.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use serde::{Deserialize, Serialize};

use super::{Proxy, cgroup, place::Place};
use crate::lab::cleanup::Undo;

/// Kept in the cluster's directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The process that the cluster ends with.
    pub owner: Option<i32>,
    /// The processes that hold namespaces: of the fabric, the control plane, each node.
    pub fabric: i32,
    pub control: i32,
    pub nodes: Vec<i32>,
    pub proxy: Proxy,
    /// Further arguments of the API server.
    pub api_server: Vec<String>,
}

fn path(place: &Place) -> PathBuf {
    place.directory().join("state.json")
}

impl State {
    /// # Errors
    /// The file system's.
    pub fn save(&self, place: &Place) -> Result<()> {
        let path = path(place);
        let half = path.with_extension("new");
        let text = serde_json::to_string_pretty(self).context("write a cluster's state")?;
        fs::write(&half, text)
            .and_then(|()| fs::rename(&half, &path))
            .with_context(|| format!("write {}", path.display()))
    }

    /// None: there is no such cluster, or none that got so far.
    ///
    /// # Errors
    /// If the file cannot be read or understood.
    pub fn load(place: &Place) -> Result<Option<Self>> {
        let path = path(place);
        match fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text)
                .map(Some)
                .with_context(|| format!("understand {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
}

/// Ends everything of a cluster and removes it. Also what was left half made or half taken away.
///
/// # Errors
/// If something withstands, with what.
pub fn destroy(place: &Place) -> Result<()> {
    cgroup::destroy(&place.group())?;
    remove(&place.directory())
}

/// Removes a directory with all that is in it, or a file, of processes that have just ended. That there is none is fine.
///
/// # Errors
/// If something withstands.
pub fn remove(path: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // Of a symbolic link, the link alone.
        let kind = fs::symlink_metadata(path).map(|found| found.file_type());
        let removed = match kind {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // Mounts go a moment after the last process of their namespace.
            Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(error).with_context(|| format!("remove {}", path.display())),
        }
    }
}

/// Removes the clusters whose processes are gone.
pub fn remove_orphans() {
    for place in Place::existing() {
        let Ok(Some(State { owner: Some(owner), .. })) = State::load(&place) else {
            continue;
        };
        if kill(Pid::from_raw(owner), None) == Err(Errno::ESRCH)
            && let Err(error) = destroy(&place)
        {
            eprintln!("cluster: the remains of {}: {error:#}", place.name());
        }
    }
}

/// Takes a cluster away on drop and on a signal.
#[derive(Debug)]
pub struct Teardown {
    place: Option<Place>,
    _undo: Undo,
}

impl Teardown {
    /// Makes the directory of a new cluster and remembers whose it is.
    ///
    /// # Errors
    /// If there is one of that name.
    pub fn new(place: &Place) -> Result<Self> {
        let directory = place.directory();
        ensure!(
            !directory.exists(),
            "there is a cluster {} already, in {}",
            place.name(),
            directory.display()
        );
        fs::create_dir(&directory).with_context(|| format!("make {}", directory.display()))?;
        let undone = place.clone();
        let teardown = Self {
            place: Some(place.clone()),
            _undo: Undo::new(move || report(&undone)),
        };
        let state = State {
            owner: Some(i32::try_from(std::process::id())?),
            ..State::default()
        };
        state.save(place)?;
        Ok(teardown)
    }

    /// Lets the cluster be.
    pub fn disarm(mut self) {
        self.place = None;
    }
}

impl Drop for Teardown {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            report(place);
        }
    }
}

fn report(place: &Place) {
    if let Err(error) = destroy(place) {
        eprintln!("cluster: take {} away: {error:#}", place.name());
    }
}
