//! One try of one probe: its socket, what is sent, and how an answer is told.

use std::{io, net::SocketAddr, os::fd::OwnedFd, sync::Arc};

use nix::sys::socket::SockType;

use super::{
    Probe, Protocol, Verdict,
    packet::{self, Sctp, SctpChunk},
    socket,
};
use crate::lab::address::Family;

/// The type of an ICMP echo request and of its reply, by family.
const fn echo_types(family: Family) -> (u8, u8) {
    match family {
        Family::V4 => (8, 0),
        Family::V6 => (128, 129),
    }
}

pub(super) struct Attempt {
    /// Which probe of the run.
    pub probe: usize,
    pub source_port: u16,
    pub token: u64,
    pub socket: Arc<OwnedFd>,
}

/// Opens the socket of an attempt in the calling thread's namespace. Raw sockets serve all attempts of a host.
pub(super) fn open(probe: &Probe) -> io::Result<OwnedFd> {
    let family = Family::of(probe.to);
    match probe.protocol {
        Protocol::Tcp => socket::open(family, SockType::Stream, None),
        Protocol::Udp => socket::open(family, SockType::Datagram, None),
        Protocol::Sctp | Protocol::Icmp => socket::raw(family, probe.protocol.number(probe.to)),
    }
}

impl Attempt {
    /// Sends the first packet. The socket is bound to the source port already.
    pub fn start(&self, probe: &Probe) -> io::Result<()> {
        let to = SocketAddr::new(probe.to, probe.port);
        let raw_to = SocketAddr::new(probe.to, 0);
        match probe.protocol {
            Protocol::Tcp => {
                socket::reset_on_close(&self.socket)?;
                socket::connect(&self.socket, to)
            }
            Protocol::Udp => {
                socket::connect(&self.socket, to)?;
                socket::send(&self.socket, &packet::mark(self.token)).map(drop)
            }
            Protocol::Sctp => {
                let init = self.sctp(probe, SctpChunk::Init, 0);
                socket::send_to(&self.socket, &init.encode(), raw_to).map(drop)
            }
            Protocol::Icmp => {
                let [kind, code] = probe.port.to_be_bytes();
                let message = packet::icmp(kind, code, self.source_port, self.token, probe.to);
                socket::send_to(&self.socket, &message, raw_to).map(drop)
            }
        }
    }

    /// Ends the flow where the transport knows an end and closing the socket does not tell it.
    pub fn finish(&self, probe: &Probe, peer_tag: u32) {
        if probe.protocol == Protocol::Sctp {
            let abort = self.sctp(probe, SctpChunk::Abort, peer_tag);
            // A lost ABORT costs the agents an entry for a while, nothing more.
            let _ = socket::send_to(&self.socket, &abort.encode(), SocketAddr::new(probe.to, 0));
        }
    }

    fn sctp(&self, probe: &Probe, chunk: SctpChunk, verification_tag: u32) -> Sctp {
        Sctp {
            source: self.source_port,
            destination: probe.port,
            verification_tag,
            chunk,
            initiate_tag: 0x7765_0000 | u32::from(self.source_port),
        }
    }
}

/// What a readable socket told about an attempt of TCP or UDP. None: nothing yet.
pub(super) fn stream_answer(protocol: Protocol, socket: &OwnedFd) -> Option<Verdict> {
    let result = match protocol {
        Protocol::Tcp => socket::take_error(socket),
        _ => socket::recv(socket, &mut [0; packet::MARK]).map(drop),
    };
    match result {
        Ok(()) => Some(Verdict::Allow),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock => None,
            io::ErrorKind::ConnectionRefused => Some(Verdict::Refused),
            // The path says no (ICMP unreachable, time-out): nothing has arrived.
            _ => Some(Verdict::Deny),
        },
    }
}

/// An answer on a raw socket: which source port it is for, what it says, and the peer's SCTP tag.
pub(super) struct RawAnswer {
    pub source_port: u16,
    pub verdict: Verdict,
    pub peer_tag: u32,
}

/// Reads one packet off a raw socket.
///
/// # Errors
/// `WouldBlock` when all are read.
pub(super) fn raw_answer(protocol: Protocol, socket: &OwnedFd) -> io::Result<Option<(SocketAddr, RawAnswer)>> {
    let mut buffer = [0; 2048];
    let (length, from) = socket::recv_from(socket, &mut buffer)?;
    let packet = &buffer[..length];
    let answer = if protocol == Protocol::Sctp {
        Sctp::decode(packet, from.ip()).and_then(|sctp| {
            let verdict = match sctp.chunk {
                SctpChunk::InitAck => Verdict::Allow,
                SctpChunk::Abort => Verdict::Refused,
                SctpChunk::Init => return None,
            };
            Some(RawAnswer {
                source_port: sctp.destination,
                verdict,
                peer_tag: sctp.initiate_tag,
            })
        })
    } else {
        let (_, reply) = echo_types(Family::of(from.ip()));
        packet::icmp_header(packet, from.ip())
            .filter(|(kind, _)| *kind == reply)
            .map(|(_, identifier)| RawAnswer {
                source_port: identifier,
                verdict: Verdict::Allow,
                peer_tag: 0,
            })
    };
    Ok(answer.map(|answer| (from, answer)))
}

/// Whether nobody answers this probe, so that its arrival is what counts.
pub(super) fn one_way(probe: &Probe) -> bool {
    let [kind, _] = probe.port.to_be_bytes();
    probe.protocol == Protocol::Icmp && kind != echo_types(Family::of(probe.to)).0
}
