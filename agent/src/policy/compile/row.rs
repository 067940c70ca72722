//! One row: what the rules that hold for a peer say of each protocol and port.
//!
//! The rules are walked once for each kind of traffic that they tell apart, from the first to the last, over all ports at
//! once: a rule decides the ports that it covers and leaves the others.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use weir_common::{
    Direction,
    policy::{
        Decision, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP, PREFIX_LENGTHS, PrefixMask,
        Slot,
    },
};

use super::{
    ports::{Ranges, Segments, cover},
    rows::{Content, PortDecision, SourcePort},
    trace::Traces,
};
use crate::policy::model::{Action, Family, IcmpMatch, NamedPort, PortMatch, TierDefault, TrafficMatch};

/// A step of the walk that holds for the peer.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    Rule {
        action: Action,
        hit: u32,
        traffic: &'a [TrafficMatch],
    },
    EndOfTier {
        action: TierDefault,
        hit: u32,
    },
}

/// Whose row it is.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    pub direction: Direction,
    pub family: Family,
    /// Declared ports of the pod, and of the peer, sorted.
    pub local_ports: &'a [NamedPort],
    pub peer_ports: &'a [NamedPort],
    /// The hit of the end of the walk.
    pub profile: u32,
}

impl Ends<'_> {
    const fn source_ports(&self) -> &[NamedPort] {
        match self.direction {
            Direction::Ingress => self.peer_ports,
            Direction::Egress => self.local_ports,
        }
    }

    const fn destination_ports(&self) -> &[NamedPort] {
        match self.direction {
            Direction::Ingress => self.local_ports,
            Direction::Egress => self.peer_ports,
        }
    }

    const fn icmp(&self) -> u8 {
        match self.family {
            Family::V4 => IPPROTO_ICMP,
            Family::V6 => IPPROTO_ICMPV6,
        }
    }
}

/// Traffic that is looked up in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Space {
    /// By ports.
    Ported(u8),
    /// The family's ICMP: by type and code.
    Icmp(u8),
    /// Another protocol that some rule names.
    Numbered(u8),
    /// Protocols that no rule names.
    Unnamed,
}

impl Space {
    const fn protocol(self) -> Option<u8> {
        match self {
            Self::Ported(protocol) | Self::Icmp(protocol) | Self::Numbered(protocol) => Some(protocol),
            Self::Unnamed => None,
        }
    }
}

fn resolve(ports: &[PortMatch], named: &[NamedPort], protocol: u8) -> Ranges {
    Ranges::of(ports.iter().flat_map(|port| {
        let mut ranges: SmallVec<[(u16, u16); 2]> = SmallVec::new();
        match port {
            PortMatch::Range(range) => ranges.push((*range.start(), *range.end())),
            PortMatch::Named(name) => ranges.extend(
                named
                    .iter()
                    .filter(|own| own.name == *name && own.protocol == protocol)
                    .map(|own| (own.port, own.port)),
            ),
        }
        ranges
    }))
}

fn icmp_range(icmp: IcmpMatch) -> Ranges {
    let first = u16::from(icmp.kind) << 8;
    Ranges::of([match icmp.code {
        Some(code) => (first | u16::from(code), first | u16::from(code)),
        None => (first, first | 0xff),
    }])
}

/// Ports that satisfy a pair of conditions.
fn conditions(some: Option<&[PortMatch]>, none: &[PortMatch], named: &[NamedPort], protocol: u8) -> Ranges {
    let ranges = some.map_or_else(Ranges::all, |some| resolve(some, named, protocol));
    if none.is_empty() {
        ranges
    } else {
        ranges.without(&resolve(none, named, protocol))
    }
}

fn has_source_conditions(traffic: &TrafficMatch) -> bool {
    traffic.source_ports.is_some() || !traffic.not_source_ports.is_empty()
}

fn has_port_conditions(traffic: &TrafficMatch) -> bool {
    traffic.ports.is_some() || !traffic.not_ports.is_empty() || has_source_conditions(traffic)
}

fn protocol_holds(traffic: &TrafficMatch, space: Space) -> bool {
    traffic.protocol.is_none_or(|wanted| space.protocol() == Some(wanted))
        && traffic
            .not_protocol
            .is_none_or(|unwanted| space.protocol() != Some(unwanted))
}

/// Destination ports (or ICMP types and codes) of a space that match. `source`: the source port.
fn matching(traffic: &TrafficMatch, space: Space, source: Option<u16>, ends: &Ends<'_>) -> Ranges {
    if !protocol_holds(traffic, space) {
        return Ranges::default();
    }
    let icmp = traffic.icmp.is_some() || traffic.not_icmp.is_some();
    match space {
        Space::Ported(_) if icmp => Ranges::default(),
        Space::Ported(protocol) => {
            if has_source_conditions(traffic)
                && !source.is_some_and(|source| source_ranges(traffic, protocol, ends).contains(source))
            {
                return Ranges::default();
            }
            conditions(
                traffic.ports.as_deref(),
                &traffic.not_ports,
                ends.destination_ports(),
                protocol,
            )
        }
        _ if has_port_conditions(traffic) => Ranges::default(),
        Space::Icmp(_) => {
            let wanted = traffic.icmp.map_or_else(Ranges::all, icmp_range);
            traffic
                .not_icmp
                .map_or_else(|| wanted.clone(), |unwanted| wanted.without(&icmp_range(unwanted)))
        }
        Space::Numbered(_) | Space::Unnamed if icmp => Ranges::default(),
        Space::Numbered(_) | Space::Unnamed => Ranges::all(),
    }
}

fn source_ranges(traffic: &TrafficMatch, protocol: u8, ends: &Ends<'_>) -> Ranges {
    conditions(
        traffic.source_ports.as_deref(),
        &traffic.not_source_ports,
        ends.source_ports(),
        protocol,
    )
}

/// Ports that are not decided yet: (first, last, node).
type Open = Vec<(u16, u16, u32)>;

/// The lists of hits that a walk makes, as a tree.
struct Walk<'a> {
    traces: &'a mut Traces,
    /// (Parent, hit); the first is the root.
    nodes: Vec<(u32, u32)>,
    children: FxHashMap<(u32, u32), u32>,
    decisions: FxHashMap<u32, Decision>,
}

impl Walk<'_> {
    fn child(&mut self, node: u32, hit: u32) -> u32 {
        if node != 0 && self.nodes[node as usize].1 == hit {
            // Several rules of the model that are one of the object.
            return node;
        }
        *self.children.entry((node, hit)).or_insert_with(|| {
            self.nodes.push((node, hit));
            (self.nodes.len() - 1) as u32
        })
    }

    fn decision(&mut self, node: u32) -> Decision {
        if let Some(&decision) = self.decisions.get(&node) {
            return decision;
        }
        let mut hits = Vec::new();
        let mut at = node;
        while at != 0 {
            let (parent, hit) = self.nodes[at as usize];
            hits.push(hit);
            at = parent;
        }
        hits.reverse();
        let (trace, outcome) = self.traces.intern(&hits);
        let decision = Decision::new(outcome.allow, outcome.log, trace);
        self.decisions.insert(node, decision);
        decision
    }

    /// What is decided of a space, by port.
    fn run(&mut self, steps: &[Step<'_>], space: Space, source: Option<u16>, ends: &Ends<'_>) -> Segments<Decision> {
        let mut open: Open = vec![(0, u16::MAX, 0)];
        // Ports that a rule passed on to the next tier.
        let mut passed: Open = Vec::new();
        let mut decided: Open = Vec::new();
        for step in steps {
            match *step {
                Step::Rule { action, hit, traffic } => {
                    let mut ranges = Ranges::default();
                    for traffic in traffic {
                        ranges = ranges.union(&matching(traffic, space, source, ends));
                    }
                    for range in ranges.iter() {
                        self.apply(range, action, hit, &mut open, &mut passed, &mut decided);
                    }
                }
                Step::EndOfTier { action, hit } => {
                    for segment in &mut open {
                        segment.2 = self.child(segment.2, hit);
                    }
                    if action == TierDefault::Deny {
                        decided.append(&mut open);
                    }
                    open.append(&mut passed);
                    open.sort_unstable();
                }
            }
            if open.is_empty() && passed.is_empty() {
                break;
            }
        }
        for segment in &mut open {
            segment.2 = self.child(segment.2, ends.profile);
        }
        decided.append(&mut open);
        decided.sort_unstable();
        let mut segments: Segments<Decision> = Vec::with_capacity(decided.len());
        for (_, hi, node) in decided {
            let decision = self.decision(node);
            match segments.last_mut() {
                Some(last) if last.1 == decision => last.0 = hi,
                _ => segments.push((hi, decision)),
            }
        }
        segments
    }

    fn apply(
        &mut self,
        (lo, hi): (u16, u16),
        action: Action,
        hit: u32,
        open: &mut Open,
        passed: &mut Open,
        decided: &mut Open,
    ) {
        let from = open.partition_point(|&(_, last, _)| last < lo);
        let to = open.partition_point(|&(first, ..)| first <= hi);
        if from >= to {
            return;
        }
        let mut rest: SmallVec<[(u16, u16, u32); 4]> = SmallVec::new();
        for &(first, last, node) in &open[from..to] {
            let hit_node = self.child(node, hit);
            let inner = (first.max(lo), last.min(hi), hit_node);
            if first < lo {
                rest.push((first, lo - 1, node));
            }
            match action {
                Action::Log => rest.push(inner),
                Action::Allow | Action::Deny => decided.push(inner),
                Action::Pass => passed.push(inner),
            }
            if last > hi {
                rest.push((hi + 1, last, node));
            }
        }
        open.splice(from..to, rest);
    }
}

/// Source ports of one protocol that no rule tells apart: one of them, and all of them. The first class is the largest.
fn source_classes(steps: &[Step<'_>], protocol: u8, ends: &Ends<'_>) -> Vec<(u16, Vec<(u16, u16)>)> {
    let mut conditions: Vec<Ranges> = Vec::new();
    for step in steps {
        if let Step::Rule { traffic, .. } = step {
            let relevant = traffic
                .iter()
                .filter(|it| has_source_conditions(it) && protocol_holds(it, Space::Ported(protocol)));
            conditions.extend(relevant.map(|it| source_ranges(it, protocol, ends)));
        }
    }
    let mut cuts: Vec<u32> = vec![0, 1 << 16];
    for (lo, hi) in conditions.iter().flat_map(Ranges::iter) {
        cuts.extend([u32::from(lo), u32::from(hi) + 1]);
    }
    cuts.sort_unstable();
    cuts.dedup();
    let mut classes: FxHashMap<Vec<bool>, Vec<(u16, u16)>> = FxHashMap::default();
    for cut in cuts.windows(2) {
        let (lo, hi) = (cut[0] as u16, (cut[1] - 1) as u16);
        let who = conditions.iter().map(|ranges| ranges.contains(lo)).collect();
        classes.entry(who).or_default().push((lo, hi));
    }
    let mut classes: Vec<_> = classes.into_values().map(|ranges| (ranges[0].0, ranges)).collect();
    let size = |ranges: &[(u16, u16)]| ranges.iter().map(|(lo, hi)| u32::from(hi - lo) + 1).sum::<u32>();
    classes.sort_by_key(|(first, ranges)| (std::cmp::Reverse(size(ranges)), *first));
    classes
}

/// Protocol numbers that rules name, beyond those with a slot of their own.
fn named_protocols(steps: &[Step<'_>]) -> Vec<u8> {
    let mut numbers: Vec<u8> = Vec::new();
    for step in steps {
        if let Step::Rule { traffic, .. } = step {
            numbers.extend(
                traffic
                    .iter()
                    .flat_map(|it| it.protocol.into_iter().chain(it.not_protocol)),
            );
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    numbers.retain(|number| !matches!(*number, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP));
    numbers
}

/// Builds the row of a peer for which these steps hold.
pub fn compile(steps: &[Step<'_>], ends: &Ends<'_>, traces: &mut Traces) -> Content {
    let mut walk = Walk {
        traces,
        nodes: vec![(0, 0)],
        children: FxHashMap::default(),
        decisions: FxHashMap::default(),
    };
    let mut content = Content::default();
    let indifferent = steps.iter().all(|step| match step {
        Step::Rule { traffic, .. } => traffic.is_empty() || traffic.contains(&TrafficMatch::ANY),
        Step::EndOfTier { .. } => true,
    });
    if indifferent {
        let segments = walk.run(steps, Space::Unnamed, None, ends);
        content.base = [segments[0].1; Slot::COUNT];
        return content;
    }
    for (slot, protocol) in [
        (Slot::Tcp, IPPROTO_TCP),
        (Slot::Udp, IPPROTO_UDP),
        (Slot::Sctp, IPPROTO_SCTP),
    ] {
        for (class, (source, ranges)) in source_classes(steps, protocol, ends).into_iter().enumerate() {
            let segments = walk.run(steps, Space::Ported(protocol), Some(source), ends);
            let class = class as u16;
            let ports = cover(&segments, 4, None);
            if class == 0 {
                content.base[slot as usize] = ports.base;
            } else {
                content.cover_sources(protocol, class, ports.base, &ranges);
            }
            for prefix in ports.prefixes {
                content.put(slot, protocol, class, prefix);
            }
        }
    }
    let numbers = named_protocols(steps);
    let segments = walk.run(steps, Space::Icmp(ends.icmp()), None, ends);
    let types = cover(&segments, 8, None);
    content.base[Slot::Icmp as usize] = types.base;
    // Where no rule names ICMP by its number, the row serves both families.
    let both = !numbers.contains(&IPPROTO_ICMP) && !numbers.contains(&IPPROTO_ICMPV6);
    for protocol in [IPPROTO_ICMP, IPPROTO_ICMPV6] {
        if both || protocol == ends.icmp() {
            for &prefix in &types.prefixes {
                content.put(Slot::Icmp, protocol, 0, prefix);
            }
        }
    }
    let other = walk.run(steps, Space::Unnamed, None, ends)[0].1;
    content.base[Slot::Other as usize] = other;
    for number in numbers.into_iter().filter(|&number| number != ends.icmp()) {
        let decision = walk.run(steps, Space::Numbered(number), None, ends)[0].1;
        if decision != other {
            content.prefixes.0 |= PrefixMask::OTHER_BY_NUMBER;
            content.entries.decisions.push(PortDecision {
                protocol: number,
                prefix: 0,
                source_class: 0,
                port: 0,
                decision,
            });
        }
    }
    content
}

impl Content {
    fn put(&mut self, slot: Slot, protocol: u8, source_class: u16, (prefix, port, decision): (u8, u16, Decision)) {
        if let Some(k) = PREFIX_LENGTHS.iter().position(|&length| length == prefix) {
            self.prefixes.0 |= 1 << (4 * slot as u32 + k as u32);
        }
        self.entries.decisions.push(PortDecision {
            protocol,
            prefix,
            source_class,
            port,
            decision,
        });
    }

    /// A class's source ports as prefixes. Each class covers only its own ports, so that classes do not meet.
    fn cover_sources(&mut self, protocol: u8, class: u16, base: Decision, ranges: &[(u16, u16)]) {
        self.prefixes.0 |= PrefixMask::SOURCE_PORTS;
        for &(lo, hi) in ranges {
            let mut from = u32::from(lo);
            let end = u32::from(hi) + 1;
            while from < end {
                // The largest aligned block that starts here and does not go beyond the end.
                let aligned = if from == 0 { 16 } else { from.trailing_zeros().min(16) };
                let bits = aligned.min((end - from).ilog2());
                self.entries.source_ports.push(SourcePort {
                    protocol,
                    prefix: 16 - bits as u8,
                    port: from as u16,
                    class,
                    base,
                });
                from += 1 << bits;
            }
        }
    }
}
