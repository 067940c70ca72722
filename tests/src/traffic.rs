//! Traffic that never pauses, to see what a change or a dying agent does to it.

use std::{
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};

use crate::{
    connection::Connection,
    lab::{
        Family, Hosts,
        probe::{Servers, packet},
    },
    world::World,
};

/// Between two packets.
const PAUSE: Duration = Duration::from_millis(1);

/// A connection that takes longer has lost its first packet: the kernel sends it again after a second.
const LOST: Duration = Duration::from_millis(800);

/// An echo that takes longer was lost, however little a loaded machine gets done. Datagrams are not sent again, and of a
/// connection the kernel counts what is.
const NEVER: Duration = Duration::from_secs(5);

/// So many refused connections are told at once.
const SHOWN: u64 = 3;

/// What the traffic met.
#[derive(Clone, Copy, Debug, Default)]
pub struct TrafficReport {
    /// Datagrams that must be echoed, and how many were not.
    pub sent: u64,
    pub lost: u64,
    /// Round trips on the connection, and whether it broke.
    pub round_trips: u64,
    pub broken: bool,
    /// Segments of the connection that were lost.
    pub lost_segments: u32,
    /// New connections tried to where they must be answered, and how many were not.
    pub opened: u64,
    pub refused: u64,
    /// Datagrams sent where none must arrive, and how many arrived.
    pub forbidden: u64,
    pub leaked: u64,
}

/// Tells the threads to end, also where nobody asks for their report.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Running traffic.
pub struct Traffic {
    stop: Stop,
    echoes: JoinHandle<Result<TrafficReport>>,
    openings: JoinHandle<Result<TrafficReport>>,
    forbidden: Option<JoinHandle<Result<Vec<u64>>>>,
}

impl Traffic {
    /// Begins: from one pod to another over a connection, datagrams and ever new connections, all to port 80; and, where
    /// a pair is given, datagrams that policy must stop.
    ///
    /// # Errors
    /// If the pods do not reach each other now.
    pub fn start(
        world: &World,
        family: Family,
        allowed: (&str, &str),
        forbidden: Option<(&str, &str)>,
    ) -> Result<Self> {
        Self::between(&world.lab, family, allowed, forbidden)
    }

    /// The same between any hosts; those that are sent to have servers on port 80.
    ///
    /// # Errors
    /// If they do not reach each other now.
    pub fn between(
        hosts: &impl Hosts,
        family: Family,
        allowed: (&str, &str),
        forbidden: Option<(&str, &str)>,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (netns, _) = hosts.host(allowed.0)?;
        let to = SocketAddr::new(hosts.address(allowed.1, family)?, 80);
        let stream = netns.run(|| {
            TcpStream::connect_timeout(&to, Duration::from_secs(10))
                .with_context(|| format!("connect from {} to {} at {to}", allowed.0, allowed.1))
        })?;
        let connection = Connection::new(stream)?;
        let datagrams = netns.run(|| socket(to))?;
        let stopping = Arc::clone(&stop);
        let echoes = thread::spawn(move || echoes(&stopping, &datagrams, connection));
        let stopping = Arc::clone(&stop);
        let opener = Arc::clone(netns);
        let openings = thread::spawn(move || {
            opener.enter().context("enter a pod's namespace")?;
            Ok(openings(&stopping, to))
        });
        let forbidden = match forbidden {
            None => None,
            Some((from, to)) => {
                let (netns, _) = hosts.host(from)?;
                let to = SocketAddr::new(hosts.address(to, family)?, 80);
                let socket = netns.run(|| socket(to))?;
                let stopping = Arc::clone(&stop);
                Some(thread::spawn(move || Ok(tokens(&stopping, &socket))))
            }
        };
        Ok(Self {
            stop: Stop(stop),
            echoes,
            openings,
            forbidden,
        })
    }

    /// Ends the traffic and tells what it met.
    ///
    /// # Errors
    /// If it could not be sent at all.
    pub fn stop(self, world: &World) -> Result<TrafficReport> {
        self.finish(&world.servers)
    }

    /// The same, with the servers that the traffic went to.
    ///
    /// # Errors
    /// If it could not be sent at all.
    pub fn finish(self, servers: &Servers) -> Result<TrafficReport> {
        drop(self.stop);
        let mut report = join(self.echoes)?;
        let opened = join(self.openings)?;
        report.opened = opened.opened;
        report.refused = opened.refused;
        if let Some(forbidden) = self.forbidden {
            let tokens = join(forbidden)?;
            report.forbidden = tokens.len() as u64;
            report.leaked = tokens.iter().filter(|token| servers.arrival(**token).is_some()).count() as u64;
        }
        Ok(report)
    }
}

impl TrafficReport {
    /// Nothing was lost, nothing broke, nothing leaked, and there was traffic of every kind.
    ///
    /// # Errors
    /// What there was instead.
    pub fn unharmed(&self) -> Result<()> {
        let harmed = self.lost > 0 || self.broken || self.lost_segments > 0 || self.refused > 0 || self.leaked > 0;
        let idle = self.sent == 0 || self.round_trips == 0 || self.opened == 0;
        if harmed || idle {
            Err(anyhow!("the traffic was disturbed: {self:?}"))
        } else {
            Ok(())
        }
    }
}

fn join<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread.join().map_err(|_| anyhow!("a traffic thread panicked"))?
}

fn socket(to: SocketAddr) -> Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).context("bind a UDP socket")?;
    socket
        .connect(to)
        .with_context(|| format!("connect a UDP socket to {to}"))?;
    socket.set_read_timeout(Some(NEVER))?;
    Ok(socket)
}

fn echoes(stop: &AtomicBool, datagrams: &UdpSocket, mut connection: Connection) -> Result<TrafficReport> {
    let mut report = TrafficReport::default();
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        report.sent += 1;
        let number = report.sent.to_be_bytes();
        let sent = datagrams.send(&number).is_ok();
        let back = sent
            && loop {
                match datagrams.recv(&mut buffer) {
                    Ok(8) if buffer[..8] == number => break true,
                    // One that was given up.
                    Ok(8) => {}
                    _ => break false,
                }
            };
        report.lost += u64::from(!back);
        if !report.broken {
            report.broken = !connection.echo(NEVER)?;
            report.round_trips += u64::from(!report.broken);
        }
        thread::sleep(PAUSE);
    }
    report.lost_segments = connection.lost()?;
    Ok(report)
}

fn openings(stop: &AtomicBool, to: SocketAddr) -> TrafficReport {
    let mut report = TrafficReport::default();
    let began = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        report.opened += 1;
        // The kernel would send a lost SYN again after a second: before that it counts as lost.
        if let Err(error) = TcpStream::connect_timeout(&to, LOST) {
            report.refused += 1;
            // The first few tell what there is to tell.
            if report.refused <= SHOWN {
                eprintln!(
                    "traffic: connection {} to {to}, {:.1?} after the first: {error}",
                    report.opened,
                    began.elapsed()
                );
            }
        }
        thread::sleep(PAUSE);
    }
    report
}

fn tokens(stop: &AtomicBool, socket: &UdpSocket) -> Vec<u64> {
    let mut tokens = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // Far from those of probes.
        let token = 1 << 63 | tokens.len() as u64;
        // An ICMP error that came back makes the send fail: it says nothing about whether packets arrive.
        let _ = socket.send(&packet::mark(token));
        tokens.push(token);
        thread::sleep(PAUSE);
    }
    tokens
}
