//! Reads events as they come, sweeps the connection table now and then, and publishes records of both.
//!
//! Both sleep while there is nothing to do. Under load the reader waits a moment before it reads again, so that the
//! kernel wakes it a few hundred times a second at most, not for every event.

use std::{
    io,
    mem::size_of,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep, sleep_until},
};
use tracing::{error, warn};
use weir_common::{
    conntrack::{CtEntry, CtKey},
    event::{DenialEntry, Event},
};

use super::{
    clock::Clock,
    directory::Directory,
    hub::Hub,
    record::{Context, FlowRecord},
    report::{Cuts, Sweep},
};
use crate::datapath::{self, SweepReport, Sweeper, Swept};

/// Events that are read, named and published at once: the directory is locked for that long.
const BATCH: usize = 512;

/// What is read at the end at most: as much as the ring buffer holds. Traffic goes on, the agent does not.
const LAST_BATCHES: usize = 32;

/// How long the reader lets events gather once some have come.
const GATHER: Duration = Duration::from_millis(5);

/// Between sweeps while somebody reads: how late a record of a flow that lasts may be.
const SWEEP_FOR_READERS: Duration = Duration::from_secs(5);

/// Between sweeps while nobody does: entries that timed out are only in the way.
const SWEEP: Duration = Duration::from_secs(30);

/// What both halves need.
#[derive(Clone, Debug)]
pub struct Shared {
    pub hub: Arc<Hub>,
    pub directory: Arc<Directory>,
    /// Name of this node.
    pub node: Arc<str>,
    /// The agent only audits.
    pub audit: bool,
    /// How often a flow that lasts, or is denied again and again, is told of. Sweeps find them, so not more often than those.
    pub period: Duration,
}

/// Names and publishes. Both halves share one clock, so that a flow's start is the same in all of its records.
#[derive(Clone)]
struct Publisher {
    shared: Shared,
    clock: Arc<Mutex<Clock>>,
}

impl Publisher {
    fn publish<T>(
        &self,
        items: impl IntoIterator<Item = T>,
        mut record: impl FnMut(&Context<'_>, T) -> Option<FlowRecord>,
    ) {
        let clock = {
            let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
            *clock = clock.again();
            *clock
        };
        let records: Vec<FlowRecord> = {
            let names = self.shared.directory.read();
            let context = Context {
                names: &names,
                clock,
                node: &self.shared.node,
                audit: self.shared.audit,
            };
            items.into_iter().filter_map(|item| record(&context, item)).collect()
        };
        self.shared.hub.publish(records);
    }
}

/// The running halves.
#[derive(Debug)]
pub struct FlowTask {
    hub: Arc<Hub>,
    stop: watch::Sender<bool>,
    reader: JoinHandle<()>,
    sweeps: JoinHandle<()>,
    last_sweep: Arc<Mutex<Option<SweepReport>>>,
}

impl FlowTask {
    /// Starts both. Whoever holds the datapath must switch its events ([`crate::datapath::Datapath::set_events`]) as
    /// [`Hub::wanted`] says.
    ///
    /// # Errors
    /// The ring buffer cannot be waited for.
    pub fn start(events: RingBuf<MapData>, sweeper: Sweeper, shared: Shared) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        // SAFETY: the ring buffer owns its descriptor, never replaces it, and stays inside until it is dropped.
        let events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }
            .map_err(|error| error.into_parts().1)?;
        let last_sweep = Arc::new(Mutex::new(None));
        let publisher = Publisher {
            shared,
            clock: Arc::new(Mutex::new(Clock::now())),
        };
        Ok(Self {
            hub: publisher.shared.hub.clone(),
            reader: tokio::spawn(read_events(events, publisher.clone(), stopped.clone())),
            sweeps: tokio::spawn(sweep_tables(sweeper, publisher, last_sweep.clone(), stopped)),
            stop,
            last_sweep,
        })
    }

    /// What the last sweep found.
    #[must_use]
    pub fn last_sweep(&self) -> Option<SweepReport> {
        *self.last_sweep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes what the kernel has told so far, writes the log out and ends.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for half in [self.reader, self.sweeps] {
            if let Err(error) = half.await {
                error!("a flow task ended badly: {error}");
            }
        }
        let hub = self.hub;
        // Waits for the disk.
        let _ = spawn_blocking(move || hub.close()).await;
    }
}

async fn read_events(mut events: AsyncFd<RingBuf<MapData>>, publisher: Publisher, mut stop: watch::Receiver<bool>) {
    let mut cuts = Cuts::default();
    loop {
        let mut guard = tokio::select! {
            ready = events.readable_mut() => match ready {
                Ok(guard) => guard,
                Err(error) => {
                    error!("cannot wait for events: {error}; flows are not reported until the agent is restarted");
                    return;
                }
            },
            _ = stop.changed() => break,
        };
        loop {
            match drain(guard.get_inner_mut(), &publisher, &mut cuts) {
                0 => break,
                _ if *stop.borrow() => break,
                BATCH => {}
                _ => sleep(GATHER).await,
            }
        }
        // An event that came after the last look has made the descriptor readable anew, and that is not cleared here.
        guard.clear_ready();
    }
    for _ in 0..LAST_BATCHES {
        if drain(events.get_mut(), &publisher, &mut cuts) == 0 {
            break;
        }
    }
}

/// Publishes up to a batch of events and says how many there were.
fn drain(events: &mut RingBuf<MapData>, publisher: &Publisher, cuts: &mut Cuts) -> usize {
    let mut batch = Vec::new();
    while batch.len() < BATCH
        && let Some(item) = events.next()
    {
        match parse(&item) {
            Some(event) => batch.push(event),
            // Programs of another layout share no ring buffer with us.
            None => warn!(bytes = item.len(), "an event of an unknown shape"),
        }
    }
    let count = batch.len();
    publisher.publish(batch, |context, event| {
        let cut = cuts.observe(&event);
        context.event(&event, cut)
    });
    count
}

fn parse(bytes: &[u8]) -> Option<Event> {
    if bytes.len() != size_of::<Event>() {
        return None;
    }
    // SAFETY: as many bytes as an event has, every pattern of them is one (aya::Pod), and it is read unaligned.
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}

/// An entry that something is to be said of.
enum Told {
    Connection(CtKey, CtEntry, bool),
    Denial(CtKey, DenialEntry),
}

async fn sweep_tables(
    mut sweeper: Sweeper,
    publisher: Publisher,
    last_sweep: Arc<Mutex<Option<SweepReport>>>,
    mut stop: watch::Receiver<bool>,
) {
    let hub = publisher.shared.hub.clone();
    let mut wanted = hub.wanted();
    let period = publisher.shared.period.max(SWEEP_FOR_READERS);
    let period = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
    let mut previous = datapath::clock();
    let mut last = Instant::now();
    // What was lost before us, nobody here missed.
    let mut lost = sweeper.lost_events().unwrap_or(0);
    loop {
        let readers = *wanted.borrow_and_update();
        let due = last + if readers { SWEEP_FOR_READERS } else { SWEEP };
        tokio::select! {
            () = sleep_until(due) => {}
            // The hub outlives this task, so the other end is never gone.
            _ = wanted.changed() => continue,
            _ = stop.changed() => return,
        }
        let sweep = Sweep {
            previous,
            now: datapath::clock(),
            period,
        };
        let to_publish = readers.then(|| publisher.clone());
        let swept = spawn_blocking(move || {
            let result = run_sweep(&mut sweeper, sweep, to_publish.as_ref());
            (sweeper, result)
        });
        let result;
        (sweeper, result) = match swept.await {
            Ok(swept) => swept,
            Err(error) => {
                error!(
                    "the sweep of the connection table ended badly: {error}; entries time out in the kernel all the same"
                );
                return;
            }
        };
        match result {
            Ok(report) => *last_sweep.lock().unwrap_or_else(PoisonError::into_inner) = Some(report),
            Err(error) => warn!("cannot sweep the connection table: {error}"),
        }
        if let Ok(now_lost) = sweeper.lost_events() {
            hub.lost_events(now_lost.saturating_sub(lost));
            lost = now_lost;
        }
        previous = sweep.now;
        last = Instant::now();
    }
}

fn run_sweep(sweeper: &mut Sweeper, sweep: Sweep, to_publish: Option<&Publisher>) -> datapath::Result<SweepReport> {
    let mut batch = Vec::new();
    let report = sweeper.sweep(sweep.now, |swept| {
        let Some(publisher) = to_publish else {
            return;
        };
        match swept {
            Swept::Connection { key, entry, ended, .. } if sweep.tells_connection(key, entry, ended) => {
                batch.push(Told::Connection(*key, *entry, ended));
            }
            Swept::Denial { key, entry, ended } if sweep.tells_denial(entry, ended) => {
                batch.push(Told::Denial(*key, *entry));
            }
            _ => return,
        }
        if batch.len() == BATCH {
            publish_told(publisher, &mut batch, sweep.now);
        }
    });
    if let Some(publisher) = to_publish {
        publish_told(publisher, &mut batch, sweep.now);
    }
    report
}

fn publish_told(publisher: &Publisher, batch: &mut Vec<Told>, now: u64) {
    publisher.publish(batch.drain(..), |context, told| {
        Some(match told {
            Told::Connection(key, entry, ended) => context.connection(&key, &entry, ended, now),
            Told::Denial(key, entry) => context.denial(&key, &entry, now),
        })
    });
}
