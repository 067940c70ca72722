//! A thread that looks at the directories after every change, and now and then without one.

use std::{
    io,
    os::fd::AsFd,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::{EfdFlags, EventFd},
        inotify::{AddWatchFlags, InitFlags, Inotify},
    },
};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::{
    Options, PluginReport,
    conflist::Entry,
    pass::{self, Binary, Directories},
};
use crate::{api::Problem, cni::PLUGIN};

/// The plugin is this very binary under another name.
const OWN_BINARY: &str = "/proc/self/exe";
/// Without news: what inotify may have missed (a directory that was mounted over, a full queue).
const NOW_AND_THEN: Duration = Duration::from_secs(10);
/// A file that cannot be read may be half written: so long until that is believed.
const HALF_WRITTEN: Duration = Duration::from_millis(300);
/// After a failure.
const RETRY: Duration = Duration::from_secs(1);
/// Somebody who undoes our edits so often within a minute is answered more slowly.
const QUARREL: usize = 20;

/// The running installer. Stops when dropped, and leaves everything as it is then. Where the plugin is not wanted, it
/// takes it away, and is done when nothing of it is left.
#[derive(Debug)]
pub struct Installer {
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    reports: watch::Receiver<Option<PluginReport>>,
}

impl Installer {
    /// Starts to install. The first report comes when it has been tried once.
    ///
    /// # Errors
    /// No inotify, no thread.
    pub fn start(options: &Options, run_dir: &Path) -> io::Result<Self> {
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (sender, reports) = watch::channel(None);
        let runner = Runner {
            install: options.install,
            directories: options.directories.clone(),
            entry: options.entry(run_dir),
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            stop: Arc::clone(&stop),
            reports: sender,
            binary: Binary::new(OWN_BINARY),
            doubted: false,
            edits: Vec::new(),
        };
        let thread = thread::Builder::new()
            .name("cni".to_owned())
            .spawn(move || runner.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
            reports,
        })
    }

    /// How it stands. None: not tried yet.
    #[must_use]
    pub fn reports(&self) -> watch::Receiver<Option<PluginReport>> {
        self.reports.clone()
    }
}

impl Drop for Installer {
    fn drop(&mut self) {
        // Fails only where the counter is full, and then it is read soon.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Runner {
    install: bool,
    directories: Directories,
    entry: Entry,
    inotify: Inotify,
    stop: Arc<EventFd>,
    reports: watch::Sender<Option<PluginReport>>,
    binary: Binary,
    /// The last look found files that cannot be read.
    doubted: bool,
    /// When files were written lately.
    edits: Vec<Instant>,
}

impl Runner {
    fn run(mut self) {
        while !self.install {
            match self.take_away() {
                Some(pause) if !self.wait(pause) => {}
                _ => return,
            }
        }
        loop {
            // Watched before it is looked at: nothing that changes in between is missed. Again each time, since what is
            // watched is an inode, and the directory may be another one by now.
            let watched = self.watch();
            let looked = watched.and_then(|()| pass::install(&self.directories, &self.entry, &mut self.binary));
            let pause = self.conclude(looked);
            if self.wait(pause) {
                return;
            }
        }
    }

    fn watch(&self) -> io::Result<()> {
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_ONLYDIR;
        for directory in [&self.directories.conf, &self.directories.bin] {
            self.inotify
                .add_watch(directory, changes)
                .map_err(|errno| in_directory(directory, &errno.into()))?;
        }
        Ok(())
    }

    /// Takes away what was installed when the plugin was wanted. None: nothing is left of it; else, how long until it is
    /// tried again, if nothing happens.
    fn take_away(&mut self) -> Option<Duration> {
        // Only to hear of a change: a directory that is not there has nothing in it.
        if let Err(error) = self.watch() {
            debug!(%error, "a directory of the CNI plugin cannot be watched");
        }
        let ((), removed) = super::remove(&self.directories, || ());
        let mut report = PluginReport {
            plugin: self.directories.bin.join(PLUGIN),
            ..PluginReport::default()
        };
        let mut pause = None;
        match removed {
            Ok(removed) if removed.problems.is_empty() => {
                report.reason = Some("it is switched off".to_owned());
                if removed.plugin || removed.configurations > 0 {
                    info!(
                        configurations = removed.configurations,
                        "took the CNI plugin away, as it is switched off"
                    );
                }
            }
            Ok(removed) => {
                report.failed = true;
                report.reason = Some("it is switched off, but a network configuration names it still".to_owned());
                report.problems = removed.problems;
                pause = Some(NOW_AND_THEN);
            }
            Err(error) => {
                report.failed = true;
                report.reason = Some(format!("it is switched off, but cannot be taken away: {error}"));
                pause = Some(RETRY);
            }
        }
        self.reports.send_if_modified(|last| {
            if last.as_ref() == Some(&report) {
                return false;
            }
            if let Some(reason) = report.reason.as_deref().filter(|_| report.failed) {
                error!("the CNI plugin stays: {reason}");
            }
            *last = Some(report);
            true
        });
        pause
    }

    /// Reports what was found. Given back: how long until the next look, if nothing happens.
    fn conclude(&mut self, looked: io::Result<pass::Found>) -> Duration {
        let mut report = PluginReport {
            plugin: self.directories.bin.join(PLUGIN),
            ..PluginReport::default()
        };
        let mut pause = NOW_AND_THEN;
        match looked {
            Ok(found) => {
                if !found.problems.is_empty() && !self.doubted {
                    // Not believed yet, and not told.
                    self.doubted = true;
                    return HALF_WRITTEN;
                }
                self.doubted = !found.problems.is_empty();
                if let Some(first) = &found.passed_over {
                    report.failed = true;
                    report.reason = Some(format!(
                        "{} comes first, and container runtimes may use it, but it cannot be edited",
                        first.display()
                    ));
                } else if found.installed.is_none() {
                    report.failed = !found.problems.is_empty();
                    report.reason = Some(if report.failed {
                        "no network configuration can be used".to_owned()
                    } else {
                        format!(
                            "there is no network configuration in {} yet",
                            self.directories.conf.display()
                        )
                    });
                }
                report.installed = found.installed;
                report.problems = found.problems;
                if let Some(quarrel) = self.quarrel(found.written) {
                    report.problems.push(quarrel);
                    pause = RETRY;
                }
            }
            Err(error) => {
                report.failed = true;
                report.reason = Some(error.to_string());
                pause = RETRY;
            }
        }
        self.reports.send_if_modified(|last| {
            if last.as_ref() == Some(&report) {
                return false;
            }
            match (&report.installed, &report.reason) {
                (_, Some(reason)) if report.failed => error!("the CNI plugin is not installed: {reason}"),
                (Some(file), _) => info!(file = %file.display(), "pods are attached by the CNI plugin"),
                (None, reason) => warn!(reason, "the CNI plugin waits to be chained"),
            }
            *last = Some(report);
            true
        });
        pause
    }

    fn quarrel(&mut self, written: usize) -> Option<Problem> {
        let now = Instant::now();
        self.edits
            .retain(|at| now.duration_since(*at) < Duration::from_secs(60));
        if written > 0 {
            self.edits.push(now);
        }
        (self.edits.len() >= QUARREL).then(|| {
            Problem::warning(
                format!("something rewrites network configurations without {PLUGIN} again and again"),
                "pods that start in between are found through netlink, after their first packets: see what writes there",
            )
        })
    }

    /// Waits for a change. True: to stop.
    fn wait(&self, pause: Duration) -> bool {
        let quarrelling = self.edits.len() >= QUARREL;
        if quarrelling {
            // News are not waited for, or there would be no rest.
            return self.poll(pause, false);
        }
        self.poll(pause, true)
    }

    fn poll(&self, pause: Duration, news: bool) -> bool {
        let stop = PollFd::new(self.stop.as_fd(), PollFlags::POLLIN);
        let inotify = PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN);
        let mut both = [stop, inotify];
        let descriptors = if news { &mut both[..] } else { &mut both[..1] };
        let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
        match poll(descriptors, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                warn!(%error, "waiting for changes of network configurations");
                thread::sleep(RETRY);
            }
        }
        // What they say does not matter: everything is looked at. An error means that there is nothing to read.
        while self.inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        self.stop.read().is_ok()
    }
}

fn in_directory(directory: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", directory.display()))
}
