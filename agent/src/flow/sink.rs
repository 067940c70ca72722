//! The flow log: JSON lines to a file or standard output, by a thread of its own.
//!
//! The thread sleeps while there is nothing to write. A disk that is slow or full costs records, never anything else.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tracing::{error, info};

use super::{
    encode::Encoder,
    hub::Item,
    json::{LossSource, LostEvent},
    rotate::RotatingFile,
};
use crate::control::options::{FlowLogOptions, FlowLogTarget};

/// Batches that may wait for the disk; a batch is what the event reader got at once.
const QUEUE: usize = 256;

/// Written at once, bytes.
const CHUNK: usize = 256 * 1024;

/// How long the end of the agent waits for the disk.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the thread and its users share.
#[derive(Debug, Default)]
struct Shared {
    /// Lost since the start.
    lost: AtomicU64,
    /// Of these, not yet written into the log.
    unreported: AtomicU64,
    error: Mutex<Option<String>>,
}

impl Shared {
    fn lose(&self, records: u64) {
        self.lost.fetch_add(records, Ordering::Relaxed);
        self.unreported.fetch_add(records, Ordering::Relaxed);
    }

    /// Tells of a change once, not of every failed write.
    fn set_error(&self, new: Option<String>) {
        let mut current = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        match (&*current, &new) {
            (None, Some(message)) => {
                error!("flow log: {message}: records are lost until it can be written again; policies stay enforced");
            }
            (Some(_), None) => info!("flow log: written again"),
            _ => {}
        }
        *current = new;
    }
}

/// For status.
#[derive(Clone, Debug, Default)]
pub struct SinkReport {
    pub lost: u64,
    pub error: Option<String>,
}

/// The writing end of the queue to the thread.
#[derive(Debug)]
pub struct Sink {
    queue: Mutex<Option<SyncSender<Vec<Item>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    shared: Arc<Shared>,
}

impl Sink {
    /// Opens the log and starts its thread.
    ///
    /// # Errors
    /// The file cannot be opened, or there are no more threads.
    pub fn start(options: &FlowLogOptions, node: &Arc<str>) -> io::Result<Self> {
        let output = match &options.target {
            FlowLogTarget::Stdout => Output::Stdout,
            FlowLogTarget::File(path) => {
                Output::File(RotatingFile::open(path.clone(), options.max_size, options.max_files)?)
            }
        };
        let (queue, batches) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::default());
        let writer = Writer {
            output,
            node: node.clone(),
            shared: shared.clone(),
            buffer: Vec::with_capacity(CHUNK),
            encoder: Encoder::default(),
            buffered: 0,
            buffered_losses: 0,
        };
        let thread = std::thread::Builder::new()
            .name("flow-log".to_owned())
            .spawn(move || writer.run(&batches))?;
        Ok(Self {
            queue: Mutex::new(Some(queue)),
            thread: Mutex::new(Some(thread)),
            shared,
        })
    }

    /// Hands over a batch, or loses it.
    pub fn send(&self, items: Vec<Item>) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(queue) = &*queue else {
            return;
        };
        if let Err(TrySendError::Full(items) | TrySendError::Disconnected(items)) = queue.try_send(items) {
            self.shared.lose(items.len() as u64);
        }
    }

    #[must_use]
    pub fn report(&self) -> SinkReport {
        SinkReport {
            lost: self.shared.lost.load(Ordering::Relaxed),
            error: self.shared.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Takes nothing more and writes what is there.
    pub fn close(&self) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else {
            return;
        };
        let deadline = Instant::now() + CLOSE_TIMEOUT;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                error!("flow log: not written out within {CLOSE_TIMEOUT:?}, the last records are lost");
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // A panic of the thread has been printed by it.
        let _ = thread.join();
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.close();
    }
}

#[derive(Debug)]
enum Output {
    Stdout,
    File(RotatingFile),
}

/// What the thread owns.
struct Writer {
    output: Output,
    node: Arc<str>,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
    encoder: Encoder,
    /// Records in `buffer`.
    buffered: u64,
    /// Losses that a line in `buffer` tells of.
    buffered_losses: u64,
}

impl Writer {
    fn run(mut self, batches: &Receiver<Vec<Item>>) {
        while let Ok(batch) = batches.recv() {
            self.take(&batch);
            // More that is there already goes into the same write.
            while let Ok(batch) = batches.try_recv() {
                self.take(&batch);
            }
            self.report_losses();
            self.flush();
        }
    }

    fn take(&mut self, batch: &[Item]) {
        for item in batch {
            self.push(item);
        }
    }

    fn push(&mut self, item: &Item) {
        let before = self.buffer.len();
        match item {
            Item::Record(record) => self.encoder.line(record, &mut self.buffer),
            lost @ Item::Lost { .. } => lost.write_line(&self.node, &mut self.buffer),
        }
        if let Output::File(file) = &self.output
            && !file.fits(self.buffer.len() as u64)
            && (before > 0 || !file.is_empty())
        {
            // This line belongs into the next file.
            let line = self.buffer.split_off(before);
            self.flush();
            self.rotate();
            self.buffer.extend_from_slice(&line);
        }
        self.buffered += 1;
        if self.buffer.len() >= CHUNK {
            self.flush();
        }
    }

    fn report_losses(&mut self) {
        let lost = self.shared.unreported.swap(0, Ordering::Relaxed);
        if lost > 0 {
            if self.buffer.len() + 1024 > CHUNK {
                self.flush();
            }
            self.push(&Item::Lost {
                time: Timestamp::now(),
                lost: LostEvent {
                    source: LossSource::ObserverEventsQueue,
                    num_events_lost: lost,
                },
            });
            // The line itself is no record; if it does not get written either, what it tells must be told again.
            self.buffered = self.buffered.saturating_sub(1);
            self.buffered_losses = lost;
        }
    }

    fn rotate(&mut self) {
        if let Output::File(file) = &mut self.output
            && let Err(error) = file.rotate()
        {
            self.shared
                .set_error(Some(format!("cannot rotate {}: {error}", file.path().display())));
        }
    }

    fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        let result = match &mut self.output {
            Output::Stdout => {
                use io::Write;
                let mut stdout = io::stdout().lock();
                stdout.write_all(&self.buffer).and_then(|()| stdout.flush())
            }
            Output::File(file) => file.write(&self.buffer),
        };
        match result {
            Ok(()) => self.shared.set_error(None),
            Err(error) => {
                let name = match &self.output {
                    Output::Stdout => "standard output".to_owned(),
                    Output::File(file) => file.path().display().to_string(),
                };
                self.shared.set_error(Some(format!("cannot write {name}: {error}")));
                self.shared.lose(self.buffered);
                self.shared
                    .unreported
                    .fetch_add(self.buffered_losses, Ordering::Relaxed);
            }
        }
        self.buffer.clear();
        self.buffered = 0;
        self.buffered_losses = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::flow::{json::Line, testing::denied};

    fn options(path: &Path, max_size: u64) -> FlowLogOptions {
        FlowLogOptions {
            target: FlowLogTarget::File(path.to_owned()),
            max_size,
            max_files: 3,
        }
    }

    fn batch(ports: std::ops::Range<u16>) -> Vec<Item> {
        ports.map(|port| Item::Record(Arc::new(denied(port)))).collect()
    }

    /// Ports of the records of a file, in order; losses as None.
    fn ports(path: &Path) -> Vec<Option<u16>> {
        let text = std::fs::read_to_string(path).expect("reads");
        text.lines()
            .map(|line| match serde_json::from_str(line).expect(line) {
                Line::Flow(flow) => flow.l4.and_then(|l4| l4.ports()).map(|(_, port)| port),
                Line::Lost(_) => None,
            })
            .collect()
    }

    #[test]
    fn every_record_is_in_one_of_the_files_whole_and_none_is_too_large() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("flows.json");
        let node = Arc::from("n1");
        let mut line = Vec::new();
        batch(1000..1001)[0].write_line(&node, &mut line);
        let max_size = line.len() as u64 * 10;

        let sink = Sink::start(&options(&path, max_size), &node).expect("starts");
        sink.send(batch(1000..1013));
        sink.send(batch(1013..1025));
        sink.close();
        assert_eq!(sink.report().lost, 0);

        let files = ["flows.json.2", "flows.json.1", "flows.json"].map(|name| directory.path().join(name));
        let sizes = files
            .each_ref()
            .map(|file| std::fs::metadata(file).expect("is there").len());
        assert!(sizes.iter().all(|size| *size <= max_size), "{sizes:?} > {max_size}");
        let found: Vec<_> = files.iter().flat_map(|file| ports(file)).collect();
        assert_eq!(found, (1000..1025).map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn a_full_disk_costs_records_and_is_told_once_it_has_room() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("flows.json");
        let node: Arc<str> = Arc::from("n1");
        let mut writer = Writer {
            output: Output::File(RotatingFile::open("/dev/full".into(), u64::MAX, 1).expect("opens")),
            node,
            shared: Arc::new(Shared::default()),
            buffer: Vec::new(),
            encoder: Encoder::default(),
            buffered: 0,
            buffered_losses: 0,
        };
        writer.take(&batch(1..4));
        writer.flush();
        let error = writer.shared.error.lock().expect("no panic").clone().expect("is told");
        assert!(error.contains("/dev/full") && error.contains("space"), "{error}");
        assert_eq!(writer.shared.lost.load(Ordering::Relaxed), 3);
        // The line that tells of the losses does not fit either: they must be told again.
        writer.report_losses();
        writer.flush();
        assert_eq!(writer.shared.lost.load(Ordering::Relaxed), 3);
        assert_eq!(writer.shared.unreported.load(Ordering::Relaxed), 3);

        writer.output = Output::File(RotatingFile::open(path.clone(), u64::MAX, 1).expect("opens"));
        writer.take(&batch(7..8));
        writer.report_losses();
        writer.flush();
        assert_eq!(ports(&path), [Some(7), None]);
        assert_eq!(*writer.shared.error.lock().expect("no panic"), None);
    }

    #[test]
    fn a_queue_that_is_full_loses_records_and_says_how_many() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("makes a pipe");
        // Both ends open, nobody reads: the thread blocks as on a disk that hangs.
        let reader = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("opens");
        let sink = Sink::start(&options(&path, u64::MAX), &Arc::from("n1")).expect("starts");
        let batch = batch(1..10);
        for _ in 0..2 * QUEUE {
            sink.send(batch.clone());
        }
        assert!(sink.report().lost >= 9);
        drop(reader);
    }
}
