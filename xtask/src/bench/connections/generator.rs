//! Traffic between two pods, made as fast as the kernel can carry it.
//!
//! Everything happens in this process: a socket belongs to the namespace in which it was made. One thread is the client,
//! one the server, each on a CPU of its own.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    ops::RangeInclusive,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_setaffinity},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        resource::{Resource, getrlimit, setrlimit},
        socket::{AddressFamily, MsgFlags, SockFlag, SockType, SockaddrIn, connect, recv, socket},
    },
    unistd::Pid,
};

use crate::node::{Node, Pod};

/// Where the server listens. With the client's 28,000 ports these are over a hundred million tuples, so every measured
/// connection is one that no connection table has seen. As one prefix of the port number (16384 to 20479) the range is
/// one entry in any table of port prefixes and one interval in any table of ranges.
pub const PORTS: RangeInclusive<u16> = 0x4000..=0x4fff;

/// Where the ping-pong is played.
const ECHO_PORT: u16 = *PORTS.start();

/// Connections under way at any time. Less than one for each port, so that no accept queue can overflow.
const WINDOW: usize = 256;

/// How long one connection may take before the run is given up: less than a lost SYN's repetition would be a
/// measurement of the timer.
const PATIENCE: Duration = Duration::from_secs(4);

pub struct Generator<'node> {
    client: &'node Pod,
    server: &'node Pod,
    listeners: Vec<TcpListener>,
    ready: Epoll,
    /// The next destination port, as an offset in [`PORTS`]; goes on from run to run.
    next: u16,
}

impl<'node> Generator<'node> {
    pub fn new(node: &'node Node) -> Result<Self> {
        let (client, server) = node.client_and_server()?;
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        // Of two generators.
        let needed = 3 * PORTS.len() as u64;
        if soft < needed {
            setrlimit(Resource::RLIMIT_NOFILE, needed, hard.max(needed)).context("raising the limit of open files")?;
        }
        for pod in [client, server] {
            pod.netns.sysctl(&[
                // Connections are closed by FIN as real ones are, but a million in TIME_WAIT would measure their table.
                ("ipv4/tcp_max_tw_buckets", "0"),
                // Above 60 s the kernel keeps the socket itself in FIN_WAIT2, not an entry of that table.
                ("ipv4/tcp_fin_timeout", "90"),
                // BBR, where it is the default, would add its pacing timers.
                ("ipv4/tcp_congestion_control", "reno"),
                ("ipv4/ip_local_port_range", "32768 60999"),
            ])?;
        }
        let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let listeners = server
            .netns
            .run(|| PORTS.map(|port| listen(server, port)).collect::<Result<Vec<_>>>())?;
        for (number, listener) in listeners.iter().enumerate() {
            ready.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, number as u64))?;
        }
        Ok(Self {
            client,
            server,
            listeners,
            ready,
            next: 0,
        })
    }

    /// Opens and closes connections for `duration`; returns how many a second were opened, accepted and closed on both
    /// sides.
    pub fn connections(&mut self, duration: Duration) -> Result<f64> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let (listeners, ready) = (&self.listeners, &self.ready);
            let server = scope.spawn(|| {
                on_cpu(1)?;
                accept_and_close(listeners, ready, &stop)
            });
            let (client, address, next) = (self.client, self.server.address, &mut self.next);
            let rate = scope
                .spawn(move || {
                    on_cpu(0)?;
                    client.netns.enter()?;
                    open_and_close(address, next, duration)
                })
                .join();
            stop.store(true, Ordering::Relaxed);
            let served = server.join();
            let rate = rate.map_err(|_| anyhow::anyhow!("the client thread panicked"))??;
            served.map_err(|_| anyhow::anyhow!("the server thread panicked"))??;
            Ok(rate)
        })
    }

    /// Whether the server pod answers, if only by a refusal, on a port beside those that the rules allow.
    pub fn forbidden_port_answers(&self) -> Result<bool> {
        let address = SocketAddrV4::new(self.server.address, PORTS.end() + 1);
        let attempt = || Ok(TcpStream::connect_timeout(&address.into(), Duration::from_millis(50)));
        match self.client.netns.run(attempt)? {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
            Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
            Err(error) => Err(error).with_context(|| format!("connecting to {address}")),
        }
    }

    /// Plays ping-pong with one byte over one established connection for `duration`; returns round trips a second.
    pub fn round_trips(&mut self, duration: Duration) -> Result<f64> {
        let address = SocketAddrV4::new(self.server.address, ECHO_PORT);
        let open = || TcpStream::connect_timeout(&address.into(), PATIENCE).context("opening the ping-pong");
        let stream = self.client.netns.run(open)?;
        let peer = self.listeners.first().context("no listener")?.accept()?.0;
        for end in [&stream, &peer] {
            end.set_nodelay(true)?;
            end.set_nonblocking(true)?;
        }
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let server = scope.spawn(|| {
                on_cpu(1)?;
                echo(&peer, &stop)
            });
            let rate = scope
                .spawn(|| {
                    on_cpu(0)?;
                    ping(&stream, duration)
                })
                .join();
            stop.store(true, Ordering::Relaxed);
            let served = server.join();
            let rate = rate.map_err(|_| anyhow::anyhow!("the client thread panicked"))??;
            served.map_err(|_| anyhow::anyhow!("the server thread panicked"))??;
            Ok(rate)
        })
    }
}

fn listen(server: &Pod, port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((server.address, port)).context("listening in the server pod")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The client: keeps [`WINDOW`] connections under way. The oldest is closed once the server has closed its side, which
/// proves that it was established and accepted.
fn open_and_close(server: Ipv4Addr, next: &mut u16, duration: Duration) -> Result<f64> {
    let mut open = VecDeque::with_capacity(WINDOW);
    let mut finished = 0_u64;
    let start = Instant::now();
    let mut now = start;
    while now - start < duration {
        // The clock is read once for so many connections.
        for _ in 0..16 {
            if open.len() == WINDOW {
                finish(&mut open)?;
                finished += 1;
            }
            open.push_back(begin(SocketAddrV4::new(server, PORTS.start() + *next))?);
            *next = (*next + 1) % PORTS.len() as u16;
        }
        now = Instant::now();
    }
    let rate = finished as f64 / (now - start).as_secs_f64();
    while !open.is_empty() {
        finish(&mut open)?;
    }
    Ok(rate)
}

fn begin(server: SocketAddrV4) -> Result<(OwnedFd, u16)> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    match connect(socket.as_raw_fd(), &SockaddrIn::from(server)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok((socket, server.port())),
        Err(error) => Err(error).with_context(|| format!("connecting to {server}")),
    }
}

/// Waits for the oldest connection's end and closes it.
fn finish(open: &mut VecDeque<(OwnedFd, u16)>) -> Result<()> {
    let Some((socket, port)) = open.pop_front() else {
        return Ok(());
    };
    let mut byte = [0];
    let mut since = None;
    loop {
        match recv(socket.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Ok(()),
            Ok(_) => bail!("the server sent something on port {port}"),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error).with_context(|| format!("connection to port {port}")),
        }
        if since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            bail!("a connection to port {port} was not established within {PATIENCE:?}");
        }
    }
}

/// The server: accepts and closes at once.
fn accept_and_close(listeners: &[TcpListener], ready: &Epoll, stop: &AtomicBool) -> Result<()> {
    let mut events = [EpollEvent::empty(); 128];
    while !stop.load(Ordering::Relaxed) {
        let count = match ready.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("waiting for connections"),
        };
        for event in events.iter().take(count) {
            let listener = usize::try_from(event.data())
                .ok()
                .and_then(|number| listeners.get(number));
            match listener.map(TcpListener::accept) {
                Some(Err(error)) if error.kind() != ErrorKind::WouldBlock => {
                    return Err(error).context("accepting a connection");
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn ping(mut stream: &TcpStream, duration: Duration) -> Result<f64> {
    let start = Instant::now();
    let mut now = start;
    let mut trips = 0_u64;
    while now - start < duration {
        for _ in 0..16 {
            stream.write_all(&[1])?;
            let sent = Instant::now();
            while !receive(stream)? {
                if sent.elapsed() > PATIENCE {
                    bail!("the established connection does not answer");
                }
            }
            trips += 1;
        }
        now = Instant::now();
    }
    Ok(trips as f64 / (now - start).as_secs_f64())
}

fn echo(mut peer: &TcpStream, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        if receive(peer)? {
            peer.write_all(&[1])?;
        }
    }
    Ok(())
}

/// Takes a byte that has come.
fn receive(mut stream: &TcpStream) -> Result<bool> {
    let mut byte = [0];
    match stream.read(&mut byte) {
        Ok(0) => bail!("the ping-pong's connection was closed"),
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(false),
        Err(error) => Err(error).context("receiving"),
    }
}

/// Keeps the calling thread on one CPU (on the last one, where there are fewer).
fn on_cpu(number: usize) -> Result<()> {
    let cpus = thread::available_parallelism()?.get();
    let mut set = CpuSet::new();
    set.set(number.min(cpus - 1))?;
    sched_setaffinity(Pid::from_raw(0), &set).context("binding a thread to a CPU")
}
