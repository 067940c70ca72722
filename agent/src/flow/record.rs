//! A flow record: what the kernel said of a flow, with names.

use std::{net::IpAddr, sync::Arc};

use jiff::Timestamp;
use weir_common::{
    Direction,
    conntrack::{CtEntry, CtKey},
    event::{DenialEntry, Event, EventKind},
    policy::{Decision, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
    reason::Reason,
};

use super::{
    clock::Clock,
    directory::{Name, Names},
    json::{FlowEvent, Verdict},
};
use crate::policy::{change::PeerKey, evaluate::Flow, model::Judgement, selector::EntityKind};

/// One end of a flow.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    pub address: IpAddr,
    pub port: u16,
    /// None: the world.
    pub name: Option<Name>,
    /// Only at the reporting endpoint's end.
    pub endpoint: Option<u32>,
}

/// All that is known of a flow at one moment. Its JSON is [`super::json::Flow`].
#[derive(Clone, Debug, PartialEq)]
pub struct FlowRecord {
    pub time: Timestamp,
    pub event: FlowEvent,
    pub verdict: Verdict,
    pub reason: Option<Reason>,
    pub protocol: u8,
    /// Who opened the flow.
    pub source: End,
    pub destination: End,
    /// ICMP type << 8 | code.
    pub icmp: u16,
    /// Byte 13 of the TCP header; of several packets, OR-ed.
    pub tcp_flags: u8,
    /// Whose policies decided: ingress of the destination, or egress of the source.
    pub direction: Direction,
    /// None: no policy was asked, or the trace is forgotten.
    pub judgement: Option<Arc<Judgement>>,
    pub log: bool,
    /// What staged policies would make of it; where there are none, and in later records of the flow, None.
    pub staged: Option<Arc<Judgement>>,
    /// Source to destination, destination to source.
    pub packets: [u64; 2],
    pub bytes: [u64; 2],
    pub start: Timestamp,
    pub end: Option<Timestamp>,
    /// Denied packets so far.
    pub count: Option<u64>,
    pub adopted: bool,
    pub endpoint: u32,
    /// 0: not known.
    pub ifindex: u32,
    pub node: Arc<str>,
}

/// What turns numbers into records.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub names: &'a Names,
    pub clock: Clock,
    pub node: &'a Arc<str>,
    /// The agent only audits: what is denied passes.
    pub audit: bool,
}

impl Context<'_> {
    /// From an event. None if it says nothing that this agent understands.
    ///
    /// `cut`: the event is the denial of a known flow that this side had opened ([`super::report::Cuts`]).
    #[must_use]
    pub fn event(&self, event: &Event, cut: Option<Direction>) -> Option<FlowRecord> {
        let kind = match event.kind {
            k if k == EventKind::Started as u8 => FlowEvent::Started,
            k if k == EventKind::Denied as u8 => FlowEvent::Denied,
            k if k == EventKind::Ended as u8 => FlowEvent::Ended,
            _ => return None,
        };
        let reason = Reason::from_number(event.reason);
        // Of a known flow the entry's flags say who opened it; a flow that never was is opened by this packet.
        let opener = match (kind, cut) {
            (FlowEvent::Denied, Some(opener)) => opener,
            (FlowEvent::Denied, None) => direction(event.direction),
            _ => opener(event.flags),
        };
        let time = self.clock.wall(event.time);
        let mut record = self.record(&event.key, opener, event.decision, time);
        record.event = kind;
        record.verdict = self.verdict(kind != FlowEvent::Denied);
        record.reason = reason;
        record.icmp = event.icmp;
        record.tcp_flags = event.tcp_flags;
        record.packets = both_ways(opener, event.packets);
        record.bytes = both_ways(opener, event.bytes);
        record.adopted = event.flags & CtEntry::ADOPTED != 0;
        record.ifindex = event.ifindex;
        match kind {
            FlowEvent::Ended => {
                record.start = self.clock.wall(event.created);
                record.end = Some(time);
            }
            FlowEvent::Denied => record.count = Some(1),
            FlowEvent::Started | FlowEvent::Ongoing => {}
        }
        if kind != FlowEvent::Ended {
            record.staged = self.staged(&record);
        }
        Some(record)
    }

    /// From an entry of the connection table: the flow lasts, or has timed out. `now` is `CLOCK_MONOTONIC`, ns.
    #[must_use]
    pub fn connection(&self, key: &CtKey, entry: &CtEntry, ended: bool, now: u64) -> FlowRecord {
        let opener = entry.opener();
        let mut record = self.record(key, opener, entry.decision, self.clock.wall(now));
        record.event = if ended { FlowEvent::Ended } else { FlowEvent::Ongoing };
        record.reason = Some(if entry.flags & CtEntry::NODE != 0 {
            Reason::Node
        } else if entry.flags & CtEntry::ADOPTED != 0 {
            Reason::Adopted
        } else {
            Reason::Allowed
        });
        record.icmp = entry.opener_icmp;
        record.tcp_flags = (entry.sides[0].flags | entry.sides[1].flags) as u8;
        record.packets = both_ways(opener, [entry.sides[0].packets, entry.sides[1].packets]);
        record.bytes = both_ways(opener, [entry.sides[0].bytes, entry.sides[1].bytes]);
        record.start = self.clock.wall(entry.created);
        record.end = Some(self.clock.wall(entry.last_seen()));
        record.adopted = entry.flags & CtEntry::ADOPTED != 0;
        record
    }

    /// From an entry of the denial map: a flow that is denied again and again.
    #[must_use]
    pub fn denial(&self, key: &CtKey, entry: &DenialEntry, now: u64) -> FlowRecord {
        let opener = direction(entry.direction);
        let mut record = self.record(key, opener, entry.decision, self.clock.wall(now));
        let reason = Reason::from_number(entry.reason);
        record.event = FlowEvent::Denied;
        record.verdict = self.verdict(false);
        record.reason = reason;
        record.icmp = entry.icmp;
        record.packets = [entry.packets, 0];
        record.bytes = [entry.bytes, 0];
        record.start = self.clock.wall(entry.first);
        record.end = Some(self.clock.wall(entry.last));
        record.count = Some(entry.packets);
        record
    }

    /// What staged policies would make of a flow that opens. Exempt flows are not asked.
    fn staged(&self, record: &FlowRecord) -> Option<Arc<Judgement>> {
        let staged = self.names.staged.as_ref()?;
        record.judgement.as_ref()?;
        let pod = self.names.endpoint(record.endpoint)?;
        let (local, peer) = match record.direction {
            Direction::Egress => (&record.source, &record.destination),
            Direction::Ingress => (&record.destination, &record.source),
        };
        let (source_port, destination_port) = record.ports().unwrap_or_default();
        let flow = Flow {
            endpoint: PeerKey {
                kind: EntityKind::Pod,
                namespace: Some(pod.namespace.clone()),
                name: pod.name.clone(),
            },
            direction: record.direction,
            local_addr: local.address,
            peer_addr: peer.address,
            protocol: record.protocol,
            source_port,
            destination_port,
            icmp: record.is_icmp().then(|| record.icmp.to_be_bytes().into()),
        };
        staged.judge(record.endpoint, &flow)
    }

    const fn verdict(&self, passed: bool) -> Verdict {
        match (passed, self.audit) {
            (true, _) => Verdict::Forwarded,
            (false, true) => Verdict::Audit,
            (false, false) => Verdict::Dropped,
        }
    }

    /// Both ends, their names, and who decided; everything else as of a flow that starts.
    fn record(&self, key: &CtKey, opener: Direction, decision: Decision, time: Timestamp) -> FlowRecord {
        let endpoint = key.endpoint();
        let local_address = IpAddr::from(key.local);
        let local = End {
            address: local_address,
            port: key.local_port,
            name: match self.names.endpoint(endpoint) {
                Some(pod) => Some(Name::Pod(pod.clone())),
                None => self.names.address(local_address),
            },
            endpoint: Some(endpoint),
        };
        let peer_address = IpAddr::from(key.peer);
        let peer = End {
            address: peer_address,
            port: key.peer_port,
            name: self.names.address(peer_address),
            endpoint: None,
        };
        let (source, destination) = match opener {
            Direction::Egress => (local, peer),
            Direction::Ingress => (peer, local),
        };
        FlowRecord {
            time,
            event: FlowEvent::Started,
            verdict: Verdict::Forwarded,
            reason: None,
            protocol: key.protocol(),
            source,
            destination,
            icmp: 0,
            tcp_flags: 0,
            direction: opener,
            judgement: self.names.trace(decision.trace()).cloned(),
            log: decision.logs(),
            staged: None,
            packets: [0; 2],
            bytes: [0; 2],
            start: time,
            end: None,
            count: None,
            adopted: false,
            endpoint,
            ifindex: 0,
            node: self.node.clone(),
        }
    }
}

impl FlowRecord {
    /// Source and destination port, where the protocol has ports.
    #[must_use]
    pub const fn ports(&self) -> Option<(u16, u16)> {
        match self.protocol {
            IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP => Some((self.source.port, self.destination.port)),
            _ => None,
        }
    }

    #[must_use]
    pub const fn is_icmp(&self) -> bool {
        matches!(self.protocol, IPPROTO_ICMP | IPPROTO_ICMPV6)
    }
}

/// Who opened a flow, by its entry's flags.
pub const fn opener(flags: u16) -> Direction {
    if flags & CtEntry::OPENED_BY_PEER != 0 {
        Direction::Ingress
    } else {
        Direction::Egress
    }
}

const fn direction(number: u8) -> Direction {
    if number == Direction::Ingress as u8 {
        Direction::Ingress
    } else {
        Direction::Egress
    }
}

/// Indexed by [`Direction`] -> (source to destination, destination to source).
const fn both_ways(opener: Direction, by_direction: [u64; 2]) -> [u64; 2] {
    [by_direction[opener as usize], by_direction[opener.reverse() as usize]]
}
