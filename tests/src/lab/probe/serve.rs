//! The far ends: echo servers in the lab's namespaces, all on one thread.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::{EfdFlags, EventFd},
    socket::SockType,
};

use super::{
    Protocol,
    packet::{self, Sctp, SctpChunk},
    socket,
};
use crate::lab::{address::Family, netns::NetNs};

/// A marked datagram that reached a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Host that it reached.
    pub host: String,
    pub from: IpAddr,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Listener,
    Stream,
    Datagram,
    Sctp,
    Icmp,
}

struct Server {
    host: Arc<str>,
    kind: Kind,
    socket: Arc<OwnedFd>,
}

#[derive(Default)]
struct State {
    servers: HashMap<u64, Server>,
    next: u64,
    arrivals: HashMap<u64, Arrival>,
}

struct Shared {
    epoll: Epoll,
    state: Mutex<State>,
    accepted: AtomicU32,
    stop: AtomicBool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, host: &Arc<str>, kind: Kind, socket: OwnedFd) -> io::Result<()> {
        let socket = Arc::new(socket);
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        self.epoll.add(&*socket, EpollEvent::new(EpollFlags::EPOLLIN, id))?;
        let host = Arc::clone(host);
        state.servers.insert(id, Server { host, kind, socket });
        Ok(())
    }
}

/// The serving thread. TCP and UDP are echoed, SCTP INIT answered by INIT-ACK, ICMP left to the kernel and noted.
pub struct Servers {
    shared: Arc<Shared>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

/// Event number of the descriptor that stops the thread.
const STOP: u64 = 0;

impl Servers {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the kernel has no descriptors left.
    pub fn start() -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll set")?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context("make an eventfd")?;
        epoll
            .add(wake.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, STOP))
            .context("watch an eventfd")?;
        let shared = Arc::new(Shared {
            epoll,
            state: Mutex::default(),
            accepted: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("lab-servers".into())
            .spawn(move || serve(&serving))
            .context("start the serving thread")?;
        Ok(Self {
            shared,
            wake,
            thread: Some(thread),
        })
    }

    /// Serves ports of a host, both families. A raw SCTP socket cannot be bound: with one SCTP port, all are answered.
    /// ICMP is always noted.
    ///
    /// # Errors
    /// If a port is taken.
    pub fn serve(&self, host: &str, netns: &NetNs, ports: &[(Protocol, u16)]) -> Result<()> {
        let host: Arc<str> = host.into();
        netns.run(|| {
            for &(protocol, port) in ports {
                let opened = match protocol {
                    Protocol::Tcp => listener(port).map(|socket| (Kind::Listener, socket)),
                    Protocol::Udp => datagrams(port).map(|socket| (Kind::Datagram, socket)),
                    Protocol::Sctp | Protocol::Icmp => continue,
                };
                let (kind, socket) = opened.with_context(|| format!("serve {protocol} {port} on {host}"))?;
                self.shared.add(&host, kind, socket)?;
            }
            for (family, icmp) in [(Family::V4, 1), (Family::V6, 58)] {
                if ports.iter().any(|(protocol, _)| *protocol == Protocol::Sctp) {
                    let socket = socket::raw(family, 132).with_context(|| format!("serve SCTP on {host}"))?;
                    self.shared.add(&host, Kind::Sctp, socket)?;
                }
                let socket = socket::raw(family, icmp).with_context(|| format!("watch ICMP on {host}"))?;
                self.shared.add(&host, Kind::Icmp, socket)?;
            }
            Ok(())
        })
    }

    /// Closes everything of a host, open connections too.
    pub fn stop(&self, host: &str) {
        self.shared.state().servers.retain(|_, server| &*server.host != host);
    }

    /// Where a marked datagram arrived, if it did.
    #[must_use]
    pub fn arrival(&self, token: u64) -> Option<Arrival> {
        self.shared.state().arrivals.get(&token).cloned()
    }

    /// TCP connections accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u32 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn listener(port: u16) -> io::Result<OwnedFd> {
    let listener = socket::open(Family::V6, SockType::Stream, None)?;
    socket::bind(&listener, Family::V6, port)?;
    socket::listen(&listener)?;
    Ok(listener)
}

fn datagrams(port: u16) -> io::Result<OwnedFd> {
    let socket = socket::open(Family::V6, SockType::Datagram, None)?;
    socket::bind(&socket, Family::V6, port)?;
    Ok(socket)
}

fn serve(shared: &Shared) {
    let mut events = [EpollEvent::empty(); 64];
    let mut buffer = vec![0; 65_536];
    while !shared.stop.load(Ordering::Relaxed) {
        let count = shared.epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
        for event in &events[..count] {
            let id = event.data();
            let found = {
                let state = shared.state();
                let server = state.servers.get(&id);
                server.map(|server| (server.kind, Arc::clone(&server.host), Arc::clone(&server.socket)))
            };
            let Some((kind, host, socket)) = found else { continue };
            if kind == Kind::Listener {
                while let Ok(stream) = socket::accept(&socket) {
                    shared.accepted.fetch_add(1, Ordering::Relaxed);
                    let _ = socket::reset_on_close(&stream);
                    let _ = shared.add(&host, Kind::Stream, stream);
                }
            } else if kind == Kind::Stream {
                if !echo(&socket, &mut buffer) {
                    shared.state().servers.remove(&id);
                }
            } else {
                answer(shared, kind, &host, &socket, &mut buffer);
            }
        }
    }
}

/// Handles the datagrams that a socket has received.
fn answer(shared: &Shared, kind: Kind, host: &Arc<str>, socket: &OwnedFd, buffer: &mut [u8]) {
    loop {
        let (length, from) = match socket::recv_from(socket, buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // An error that an ICMP message left on the socket: the next call goes on.
            Err(_) => continue,
        };
        let packet = &buffer[..length];
        if let Some(token) = packet::token(packet) {
            let arrival = Arrival {
                host: host.to_string(),
                from: from.ip(),
            };
            shared.state().arrivals.insert(token, arrival);
        }
        match kind {
            Kind::Datagram => {
                let back = match from.ip() {
                    IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), from.port()),
                    IpAddr::V6(_) => from,
                };
                let _ = socket::send_to(socket, packet, back);
            }
            Kind::Sctp => acknowledge(socket, packet, from),
            Kind::Icmp | Kind::Listener | Kind::Stream => {}
        }
    }
}

/// Answers an SCTP INIT.
fn acknowledge(socket: &OwnedFd, packet: &[u8], from: SocketAddr) {
    if let Some(init) = Sctp::decode(packet, from.ip())
        && init.chunk == SctpChunk::Init
    {
        let answer = Sctp {
            source: init.destination,
            destination: init.source,
            verification_tag: init.initiate_tag,
            chunk: SctpChunk::InitAck,
            initiate_tag: init.initiate_tag ^ 0x5555_5555,
        };
        let _ = socket::send_to(socket, &answer.encode(), SocketAddr::new(from.ip(), 0));
    }
}

/// Sends back what a connection has received; false at its end.
fn echo(socket: &OwnedFd, buffer: &mut [u8]) -> bool {
    loop {
        match socket::recv(socket, buffer) {
            Ok(0) => return false,
            Ok(length) => {
                if !matches!(socket::send(socket, &buffer[..length]), Ok(sent) if sent == length) {
                    return false;
                }
            }
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}
