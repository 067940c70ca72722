//! The event loop that asks all probes at once.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{
    Outcome, Probe, Protocol, Verdict,
    attempt::{Attempt, one_way, open, raw_answer, stream_answer},
    serve::Servers,
    socket,
};
use crate::lab::{Hosts, address::Family};

/// How long silence must last to be a denial: one entry per attempt.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Since the last answer of any probe.
    pub silences: &'static [Duration],
}

impl Patience {
    /// For tables of probes: a first attempt, and one that confirms.
    pub const TABLE: Self = Self {
        silences: &[Duration::from_millis(30), Duration::from_millis(60)],
    };
    /// A single attempt.
    pub const ONCE: Self = Self {
        silences: &[Duration::from_millis(100)],
    };
    /// For answers that contradict what a test expects: is it really so?
    pub const STUBBORN: Self = Self {
        silences: &[Duration::from_millis(200), Duration::from_millis(400)],
    };
}

/// Source ports: many, so that a tuple comes back late. One that is taken is skipped.
const SOURCE_PORTS: std::ops::Range<u16> = 10_000..60_000;

/// Asks probes. Remembers which source ports it has used.
pub struct Prober {
    next_port: u16,
    /// Ports by probe: a datagram on the tuple of an earlier one would belong to that one's flow.
    used: HashSet<(Probe, u16)>,
    next_token: u64,
}

/// How a raw socket's answers are told apart: host, protocol, family.
type RawKey = (String, Protocol, Family);

struct Run<'a> {
    probes: &'a [Probe],
    epoll: Epoll,
    attempts: Vec<Attempt>,
    raw: BTreeMap<RawKey, Arc<OwnedFd>>,
    raw_keys: Vec<RawKey>,
    /// Raw attempts by socket, source port and who must answer.
    by_port: HashMap<(usize, u16), usize>,
    outcomes: Vec<Option<Outcome>>,
    open: usize,
}

/// Event numbers from here on are raw sockets.
const RAW: u64 = 1 << 32;

impl Default for Prober {
    fn default() -> Self {
        Self {
            next_port: SOURCE_PORTS.start,
            used: HashSet::new(),
            next_token: 1,
        }
    }
}

impl Prober {
    /// Asks all probes and says which outcomes are not as wanted; a second time before any is believed to be wrong.
    ///
    /// # Errors
    /// As of [`Self::ask`].
    pub fn wrong(
        &mut self,
        hosts: &impl Hosts,
        servers: &Servers,
        probes: &[Probe],
        wanted: &[Verdict],
    ) -> Result<Vec<String>> {
        let mut outcomes = self.ask(hosts, servers, probes, Patience::TABLE)?;
        let pairs = outcomes.iter().zip(wanted);
        if pairs.into_iter().any(|(outcome, wanted)| outcome.verdict != *wanted) {
            outcomes = self.ask(hosts, servers, probes, Patience::STUBBORN)?;
        }
        let all = probes.iter().zip(&outcomes).zip(wanted);
        let wrong = all.filter(|((_, outcome), wanted)| outcome.verdict != **wanted);
        Ok(wrong
            .map(|((probe, outcome), wanted)| {
                let Probe {
                    from,
                    to,
                    protocol,
                    port,
                } = probe;
                format!("{from} -> {to} {protocol} {port}: {}, not {wanted}", outcome.verdict)
            })
            .collect())
    }

    /// Asks all probes at once and waits for their verdicts, in order.
    ///
    /// # Errors
    /// If a source does not exist, or sockets cannot be made.
    pub fn ask(
        &mut self,
        hosts: &impl Hosts,
        servers: &Servers,
        probes: &[Probe],
        patience: Patience,
    ) -> Result<Vec<Outcome>> {
        let mut run = Run {
            probes,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll set")?,
            attempts: Vec::with_capacity(probes.len()),
            raw: BTreeMap::new(),
            raw_keys: Vec::new(),
            by_port: HashMap::new(),
            outcomes: vec![None; probes.len()],
            open: probes.len(),
        };
        for silence in patience.silences {
            let pending: Vec<usize> = (0..probes.len())
                .filter(|&probe| run.outcomes[probe].is_none())
                .collect();
            if pending.is_empty() {
                break;
            }
            self.start(hosts, &mut run, &pending)?;
            run.wait(servers, *silence)?;
        }
        let mut last = vec![0; probes.len()];
        for attempt in &run.attempts {
            last[attempt.probe] = attempt.source_port;
        }
        let silent = |probe: usize| Outcome {
            verdict: Verdict::Deny,
            source_port: last[probe],
        };
        Ok(run
            .outcomes
            .iter()
            .enumerate()
            .map(|(probe, outcome)| outcome.unwrap_or_else(|| silent(probe)))
            .collect())
    }

    /// Makes the sockets of the pending probes, one visit to each source's namespace, and sends.
    fn start(&mut self, hosts: &impl Hosts, run: &mut Run<'_>, pending: &[usize]) -> Result<()> {
        let mut by_source: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for &probe in pending {
            by_source.entry(&run.probes[probe].from).or_default().push(probe);
        }
        for (source, probes) in by_source {
            let (netns, _) = hosts.host(source)?;
            let asked = run.probes;
            let known = &run.raw;
            let made = thread::scope(|scope| {
                let maker = scope.spawn(|| -> Result<Vec<Option<OwnedFd>>> {
                    netns.enter().with_context(|| format!("enter {source}"))?;
                    let mut fresh: Vec<RawKey> = Vec::new();
                    let mut sockets = Vec::with_capacity(probes.len());
                    for &probe in &probes {
                        let key = raw_key(&asked[probe]);
                        if let Some(key) = &key
                            && (known.contains_key(key) || fresh.contains(key))
                        {
                            sockets.push(None);
                            continue;
                        }
                        sockets.push(Some(
                            open(&asked[probe]).with_context(|| format!("a socket of {source}"))?,
                        ));
                        fresh.extend(key);
                    }
                    Ok(sockets)
                });
                maker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })?;
            for (probe, made) in probes.into_iter().zip(made) {
                self.attempt(run, probe, made)
                    .with_context(|| format!("probe {:?}", run.probes[probe]))?;
            }
        }
        Ok(())
    }

    fn attempt(&mut self, run: &mut Run<'_>, index: usize, made: Option<OwnedFd>) -> Result<()> {
        let probe = &run.probes[index];
        let key = raw_key(probe);
        let socket = match (&key, made) {
            (None, Some(made)) => Arc::new(made),
            (Some(key), Some(made)) => {
                let socket = Arc::new(made);
                let number = run.raw_keys.len() as u64;
                run.epoll
                    .add(&*socket, EpollEvent::new(EpollFlags::EPOLLIN, RAW + number))?;
                run.raw_keys.push(key.clone());
                run.raw.insert(key.clone(), Arc::clone(&socket));
                socket
            }
            (Some(key), None) => Arc::clone(run.raw.get(key).context("a raw socket that was made before")?),
            (None, None) => anyhow::bail!("no socket was made"),
        };
        let source_port = loop {
            let port = self.next_port;
            self.next_port = if port + 1 == SOURCE_PORTS.end {
                SOURCE_PORTS.start
            } else {
                port + 1
            };
            if !self.used.insert((probe.clone(), port)) {
                continue;
            }
            if key.is_some() {
                break port;
            }
            match socket::bind(&socket, Family::of(probe.to), port) {
                Ok(()) => break port,
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).context("bind a source port"),
            }
        };
        self.next_token += 1;
        let attempt = Attempt {
            probe: index,
            source_port,
            token: u64::from(std::process::id()) << 32 | self.next_token,
            socket,
        };
        let number = run.attempts.len();
        let sent = attempt.start(probe).is_ok();
        if !sent {
            run.settle(index, Verdict::Unsent, source_port);
        } else if let Some(key) = &key {
            let raw = run.raw_keys.iter().position(|known| known == key).unwrap_or_default();
            run.by_port.insert((raw, source_port), number);
        } else {
            // Watched from now on only: a TCP socket that has not begun to connect counts as writable.
            let tcp = probe.protocol == Protocol::Tcp;
            let interest = if tcp { EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            run.epoll
                .add(&*attempt.socket, EpollEvent::new(interest, number as u64))?;
        }
        run.attempts.push(attempt);
        Ok(())
    }
}

/// Set for probes that share a raw socket.
fn raw_key(probe: &Probe) -> Option<RawKey> {
    matches!(probe.protocol, Protocol::Sctp | Protocol::Icmp)
        .then(|| (probe.from.clone(), probe.protocol, Family::of(probe.to)))
}

impl Run<'_> {
    fn settle(&mut self, probe: usize, verdict: Verdict, source_port: u16) {
        let outcome = &mut self.outcomes[probe];
        if outcome.is_none() {
            *outcome = Some(Outcome { verdict, source_port });
            self.open -= 1;
        }
    }

    /// Takes answers until all are there or nothing has come for as long as `silence`.
    fn wait(&mut self, servers: &Servers, silence: Duration) -> Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        let mut deadline = Instant::now() + silence;
        while self.open > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // Arrivals have no descriptor to wait for.
            let slice = left.min(Duration::from_millis(5));
            let timeout = EpollTimeout::try_from(slice).unwrap_or(EpollTimeout::ZERO);
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error).context("wait for answers"),
            };
            let before = self.open;
            for event in &events[..count] {
                match event.data().checked_sub(RAW) {
                    Some(raw) => self.raw_event(usize::try_from(raw)?),
                    None => self.stream_event(usize::try_from(event.data())?)?,
                }
            }
            self.arrivals(servers);
            if self.open < before {
                deadline = Instant::now() + silence;
            }
        }
        Ok(())
    }

    fn stream_event(&mut self, number: usize) -> Result<()> {
        let attempt = &self.attempts[number];
        let (probe, source_port) = (attempt.probe, attempt.source_port);
        if let Some(verdict) = stream_answer(self.probes[probe].protocol, &attempt.socket) {
            self.epoll.delete(&*attempt.socket)?;
            self.settle(probe, verdict, source_port);
        }
        Ok(())
    }

    fn raw_event(&mut self, raw: usize) {
        let key = &self.raw_keys[raw];
        let Some(socket) = self.raw.get(key).cloned() else {
            return;
        };
        let protocol = key.1;
        while let Ok(answer) = raw_answer(protocol, &socket) {
            let Some((from, answer)) = answer else { continue };
            let Some(&number) = self.by_port.get(&(raw, answer.source_port)) else {
                continue;
            };
            let attempt = &self.attempts[number];
            let probe = &self.probes[attempt.probe];
            if probe.to == from.ip() {
                if answer.verdict == Verdict::Allow {
                    attempt.finish(probe, answer.peer_tag);
                }
                self.settle(attempt.probe, answer.verdict, answer.source_port);
            }
        }
    }

    fn arrivals(&mut self, servers: &Servers) {
        for number in 0..self.attempts.len() {
            let attempt = &self.attempts[number];
            let (probe, source_port) = (attempt.probe, attempt.source_port);
            if self.outcomes[probe].is_none()
                && one_way(&self.probes[probe])
                && servers.arrival(attempt.token).is_some()
            {
                self.settle(probe, Verdict::Allow, source_port);
            }
        }
    }
}
