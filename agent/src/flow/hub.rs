//! Where records go: the recent ones, the readers at the socket, the flow log.
//!
//! Nothing here waits. A reader or a log that cannot keep up loses records, and is told how many.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use super::{
    filter::Filter,
    json::{LossSource, LostEvent},
    record::FlowRecord,
    sink::Sink,
};
use crate::control::query::FlowReport;

/// How many records are kept for those who come later.
pub const RECENT: usize = 4096;

/// How many records may wait for one reader.
const READER_QUEUE: usize = 4096;

/// One line to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    Record(Arc<FlowRecord>),
    Lost { time: Timestamp, lost: LostEvent },
}

impl Item {
    /// Appends the item as one line of JSON, with its newline.
    pub fn write_line(&self, node: &str, out: &mut Vec<u8>) {
        let before = out.len();
        let result = match self {
            Self::Record(record) => serde_json::to_writer(&mut *out, &record.json()),
            Self::Lost { time, lost } => serde_json::to_writer(
                &mut *out,
                &super::json::Lost {
                    time: *time,
                    node_name: node.into(),
                    lost_events: *lost,
                },
            ),
        };
        match result {
            Ok(()) => out.push(b'\n'),
            // Neither shape has maps with odd keys, and a Vec takes all: half a line is all there is to prevent.
            Err(_) => out.truncate(before),
        }
    }
}

#[derive(Debug)]
struct Reader {
    id: u64,
    filter: Filter,
    queue: mpsc::Sender<Item>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct State {
    recent: VecDeque<Arc<FlowRecord>>,
    readers: Vec<Reader>,
    next_reader: u64,
}

/// Shared by the flow task (which publishes) and the socket (which reads).
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State>,
    sink: Option<Sink>,
    wanted: watch::Sender<bool>,
    records: AtomicU64,
    lost_events: AtomicU64,
    lost_readers: AtomicU64,
}

impl Hub {
    #[must_use]
    pub fn new(sink: Option<Sink>) -> Arc<Self> {
        let (wanted, _) = watch::channel(sink.is_some());
        Arc::new(Self {
            state: Mutex::default(),
            sink,
            wanted,
            records: AtomicU64::new(0),
            lost_events: AtomicU64::new(0),
            lost_readers: AtomicU64::new(0),
        })
    }

    /// Tells whether anybody wants events: the programs report nothing while it says false.
    #[must_use]
    pub fn wanted(&self) -> watch::Receiver<bool> {
        self.wanted.subscribe()
    }

    /// Hands records to everybody. Never waits.
    pub fn publish(&self, records: Vec<FlowRecord>) {
        if records.is_empty() {
            return;
        }
        self.records.fetch_add(records.len() as u64, Ordering::Relaxed);
        let mut items = Vec::with_capacity(records.len());
        {
            let mut state = self.state();
            let mut lost = 0;
            for record in records {
                let record = Arc::new(record);
                for reader in state.readers.iter().filter(|reader| reader.filter.matches(&record)) {
                    if let Err(mpsc::error::TrySendError::Full(_)) = reader.queue.try_send(Item::Record(record.clone()))
                    {
                        reader.lost.fetch_add(1, Ordering::Relaxed);
                        lost += 1;
                    }
                }
                if state.recent.len() == RECENT {
                    state.recent.pop_front();
                }
                state.recent.push_back(record.clone());
                items.push(Item::Record(record));
            }
            self.lost_readers.fetch_add(lost, Ordering::Relaxed);
        }
        if let Some(sink) = &self.sink {
            sink.send(items);
        }
    }

    /// The kernel could not report this many events.
    pub fn lost_events(&self, count: u64) {
        if count == 0 {
            return;
        }
        self.lost_events.fetch_add(count, Ordering::Relaxed);
        let item = Item::Lost {
            time: Timestamp::now(),
            lost: LostEvent {
                source: LossSource::PerfEventRingBuffer,
                num_events_lost: count,
            },
        };
        for reader in &self.state().readers {
            if reader.queue.try_send(item.clone()).is_err() {
                reader.lost.fetch_add(count, Ordering::Relaxed);
            }
        }
        if let Some(sink) = &self.sink {
            sink.send(vec![item]);
        }
    }

    /// The last `last` recent records that match, oldest first.
    #[must_use]
    pub fn recent(&self, filter: &Filter, last: usize) -> Vec<Arc<FlowRecord>> {
        recent(&self.state().recent, filter, last)
    }

    /// As [`Self::recent`], and everything that comes later; no record is missed or doubled between the two.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, filter: Filter, last: usize) -> (Vec<Arc<FlowRecord>>, Subscription) {
        let (queue, receiver) = mpsc::channel(READER_QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let mut state = self.state();
        let backlog = recent(&state.recent, &filter, last);
        let id = state.next_reader;
        state.next_reader += 1;
        state.readers.push(Reader {
            id,
            filter,
            queue,
            lost: lost.clone(),
        });
        self.update_wanted(&state);
        drop(state);
        let subscription = Subscription {
            hub: self.clone(),
            id,
            receiver,
            lost,
        };
        (backlog, subscription)
    }

    /// For `weir status` and metrics.
    #[must_use]
    pub fn report(&self) -> FlowReport {
        let readers = self.state().readers.len() as u64;
        let sink = self.sink.as_ref().map(Sink::report).unwrap_or_default();
        FlowReport {
            enabled: *self.wanted.borrow(),
            readers,
            records: self.records.load(Ordering::Relaxed),
            lost_events: self.lost_events.load(Ordering::Relaxed),
            lost_log: sink.lost,
            lost_readers: self.lost_readers.load(Ordering::Relaxed),
            log_error: sink.error,
        }
    }

    /// Writes out what the log still holds. Call once, at the end; waits for the disk, but not for ever.
    pub fn close(&self) {
        if let Some(sink) = &self.sink {
            sink.close();
        }
    }

    fn unsubscribe(&self, id: u64) {
        let mut state = self.state();
        state.readers.retain(|reader| reader.id != id);
        self.update_wanted(&state);
    }

    fn update_wanted(&self, state: &State) {
        let wanted = self.sink.is_some() || !state.readers.is_empty();
        self.wanted
            .send_if_modified(|now| std::mem::replace(now, wanted) != wanted);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn recent(records: &VecDeque<Arc<FlowRecord>>, filter: &Filter, last: usize) -> Vec<Arc<FlowRecord>> {
    let mut found: Vec<_> = records
        .iter()
        .rev()
        .filter(|record| filter.matches(record))
        .take(last)
        .cloned()
        .collect();
    found.reverse();
    found
}

/// A reader's end. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    id: u64,
    receiver: mpsc::Receiver<Item>,
    lost: Arc<AtomicU64>,
}

impl Subscription {
    /// The next item; once the queue is empty, how many records did not fit into it.
    pub async fn next(&mut self) -> Option<Item> {
        match self.receiver.try_recv() {
            Ok(item) => return Some(item),
            Err(mpsc::error::TryRecvError::Disconnected) => return None,
            Err(mpsc::error::TryRecvError::Empty) => {}
        }
        match self.lost.swap(0, Ordering::Relaxed) {
            0 => self.receiver.recv().await,
            lost => Some(Item::Lost {
                time: Timestamp::now(),
                lost: LostEvent {
                    source: LossSource::HubbleRingBuffer,
                    num_events_lost: lost,
                },
            }),
        }
    }

    /// An item that is there already.
    pub fn try_next(&mut self) -> Option<Item> {
        self.receiver.try_recv().ok()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.unsubscribe(self.id);
    }
}
