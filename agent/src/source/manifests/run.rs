//! The thread: waits for changes, reads what changed, tells what follows.

use std::{
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, mpsc as commands},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll, ppoll},
    sys::{eventfd::EventFd, time::TimeSpec},
};
use tokio::sync::mpsc;

use super::{
    Command,
    catalogue::{Catalogue, Looked},
    pending::Pending,
    walk::{Tree, walk},
    watch::{Drained, Watcher},
};
use crate::{
    api::Problem,
    metrics::Arrivals,
    source::{
        SourceEvent,
        store::{Store, Stored},
    },
};

/// What vanished is believed only after this time, in which what takes its place may be told.
const GRACE: Duration = Duration::from_micros(500);
/// How often to look where changes may go unseen: not all directories can be watched, or the directory is gone.
const UNSEEN: Duration = Duration::from_secs(1);
/// How often to look at links to files that may lie outside.
const LINKS: Duration = Duration::from_secs(5);

pub(super) struct Runner {
    directory: PathBuf,
    wake: Arc<EventFd>,
    inbox: commands::Receiver<Command>,
    outbox: Outbox,
    /// When the thread last had something to look at.
    woken: Instant,
    catalogue: Catalogue,
    watcher: Watcher,
    pending: Pending,
    /// Refreshes to be answered, not before that time.
    tokens: Vec<(u64, Option<Instant>)>,
    next_look: Option<Instant>,
    directory_problems: Vec<Problem>,
    /// To be told after the objects.
    later: Vec<SourceEvent>,
}

/// The way to whoever takes events.
pub(super) struct Outbox {
    pub events: mpsc::UnboundedSender<SourceEvent>,
    /// Is told when what led to the events was seen.
    pub arrivals: Arrivals,
}

enum Next {
    Go,
    Stop,
}

impl Runner {
    pub(super) fn new(
        directory: PathBuf,
        wake: Arc<EventFd>,
        inbox: commands::Receiver<Command>,
        outbox: Outbox,
        store: Store,
        stored: Stored,
    ) -> Self {
        Self {
            directory,
            wake,
            inbox,
            outbox,
            woken: Instant::now(),
            catalogue: Catalogue::new(store, stored),
            watcher: Watcher::new(),
            pending: Pending::default(),
            tokens: Vec::new(),
            next_look: None,
            directory_problems: Vec::new(),
            later: Vec::new(),
        }
    }

    pub(super) fn run(mut self) {
        self.look_at_all();
        self.read_pending();
        loop {
            if self.tell().is_err() {
                return;
            }
            self.wait();
            self.woken = Instant::now();
            if matches!(self.take_commands(), Next::Stop) || self.outbox.events.is_closed() {
                return;
            }
            self.take_events();
            self.pending.settle(Instant::now());
            if self.next_look.is_some_and(|at| at <= Instant::now()) {
                self.look_at_all();
            }
            self.read_pending();
        }
    }

    fn wait(&self) {
        let tokens = self.tokens.iter().filter_map(|(_, at)| *at);
        let next = tokens.chain(self.pending.next_deadline()).chain(self.next_look).min();
        let timeout = match next {
            None => PollTimeout::NONE,
            // A millisecond more, since the time is rounded down.
            Some(at) => PollTimeout::try_from(at.saturating_duration_since(Instant::now()) + Duration::from_millis(1))
                .unwrap_or(PollTimeout::MAX),
        };
        self.poll(timeout);
    }

    fn poll(&self, timeout: PollTimeout) {
        let mut fds = vec![PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.watcher.fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        // An interrupted wait is a short one: the loop looks at everything anyway.
        let _ = poll(&mut fds, timeout);
    }

    fn take_commands(&mut self) -> Next {
        // Not readable if nobody woke the thread.
        let _ = self.wake.read();
        let mut refreshed = Vec::new();
        while let Ok(command) = self.inbox.try_recv() {
            match command {
                Command::Stop => return Next::Stop,
                Command::Refresh(token) => refreshed.push(token),
            }
        }
        if !refreshed.is_empty() {
            // Which files are being written right now.
            self.take_events();
            self.look_at_all();
            self.read_pending();
            let settled = self.pending.last_deadline();
            self.tokens.extend(refreshed.into_iter().map(|token| (token, settled)));
        }
        Next::Go
    }

    fn take_events(&mut self) {
        let mut drained = Drained::default();
        self.watcher.drain(&mut drained);
        self.pending.take_in(&drained.events, Instant::now());
        if self.pending.vanished {
            let until = Instant::now() + GRACE;
            while Instant::now() < until {
                let mut more = Drained::default();
                self.poll_events_until(until);
                self.watcher.drain(&mut more);
                drained.overflow |= more.overflow;
                if !more.events.is_empty() {
                    self.pending.take_in(&more.events, Instant::now());
                }
            }
            self.pending.vanished = false;
        }
        if drained.overflow {
            tracing::warn!(directory = %self.directory.display(), "more changes than inotify can queue; reading everything again");
            self.look_at_all();
        }
    }

    fn poll_events_until(&self, until: Instant) {
        let left = until.saturating_duration_since(Instant::now());
        match self.watcher.fd() {
            Some(fd) => {
                let _ = ppoll(
                    &mut [PollFd::new(fd, PollFlags::POLLIN)],
                    Some(TimeSpec::from_duration(left)),
                    None,
                );
            }
            None => std::thread::sleep(left),
        }
    }

    /// Has every file looked at that is not surely as it was.
    fn look_at_all(&mut self) {
        self.watcher.retry();
        let directory = self.directory.clone();
        let mut problems = Vec::new();
        self.next_look = None;
        if directory.is_dir() {
            let tree = self.compare(&directory);
            for (path, reason) in tree.unreadable {
                problems.push(
                    Problem::error(
                        format!("cannot be read: {reason}"),
                        "make the directory readable; until then its last objects stay in force",
                    )
                    .in_file(path, None),
                );
            }
            if tree.has_links {
                self.look_again_in(LINKS);
            }
        } else {
            problems.push(
                Problem::error(
                    "the manifest directory is gone",
                    "bring it back; until then its last objects stay in force",
                )
                .in_file(&directory, None),
            );
            self.look_again_in(UNSEEN);
        }
        if let Some(failure) = self.watcher.failure() {
            problems.push(
                Problem::warning(
                    format!("changes are seen only once a second: {failure}"),
                    "raise fs.inotify.max_user_watches and fs.inotify.max_user_instances (sysctl)",
                )
                .in_file(&directory, None),
            );
            self.look_again_in(UNSEEN);
        }
        self.tell_directory_problems(problems);
    }

    fn look_again_in(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.next_look = Some(self.next_look.map_or(at, |other| other.min(at)));
    }

    fn tell_directory_problems(&mut self, problems: Vec<Problem>) {
        if self.directory_problems != problems {
            for problem in &problems {
                tracing::warn!(%problem, "manifest directory");
            }
            self.directory_problems.clone_from(&problems);
            self.later.push(SourceEvent::Problems {
                origin: format!("directory {}", self.directory.display()).into(),
                problems,
            });
        }
    }

    /// Compares what lies at or below a path with what is known.
    fn compare(&mut self, path: &Path) -> Tree {
        let watcher = &mut self.watcher;
        let tree = if path.is_dir() {
            walk(path, &mut |directory| watcher.add(directory))
        } else {
            Tree::default()
        };
        for file in &tree.files {
            if !self.catalogue.is_current(file) && !self.pending.is_held(file) {
                self.pending.files.insert(file.clone());
            }
        }
        for known in self.catalogue.known_below(path) {
            if tree.files.binary_search_by(|file| file.as_path().cmp(&known)).is_err()
                && !tree
                    .unreadable
                    .iter()
                    .any(|(unreadable, _)| known.starts_with(unreadable))
            {
                self.pending.files.insert(known.to_path_buf());
            }
        }
        tree
    }

    fn read_pending(&mut self) {
        if self.pending.is_idle() {
            return;
        }
        for path in std::mem::take(&mut self.pending.moved) {
            self.watcher.remove_below(&path);
            if self.directory.starts_with(&path) {
                self.look_at_all();
            }
        }
        if !self.directory.is_dir() {
            // Nothing can be said of any file: all keep their last objects.
            self.pending.directories.clear();
            self.pending.files.clear();
            self.look_at_all();
            return;
        }
        for path in std::mem::take(&mut self.pending.directories) {
            if self.compare(&path).has_links {
                self.look_again_in(LINKS);
            }
        }
        let settled = std::mem::take(&mut self.pending.settled);
        for path in std::mem::take(&mut self.pending.files) {
            if self.catalogue.look(&path, settled.contains(&path)) == Looked::Emptied {
                self.pending.hold(&path, Instant::now());
            }
        }
    }

    /// Err: nobody listens any more.
    fn tell(&mut self) -> Result<(), mpsc::error::SendError<SourceEvent>> {
        let mut events = self.catalogue.events();
        events.append(&mut self.later);
        if !events.is_empty() {
            self.outbox.arrivals.mark(self.woken);
        }
        for event in events {
            self.outbox.events.send(event)?;
        }
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.tokens).into_iter().partition(|(_, at)| {
            at.is_none_or(|at| at <= now && self.pending.next_deadline().is_none_or(|next| next > at))
        });
        self.tokens = later;
        let due: Vec<(u64, Option<Instant>)> = due;
        for (token, _) in due {
            self.outbox.events.send(SourceEvent::Refreshed(token))?;
        }
        Ok(())
    }
}
