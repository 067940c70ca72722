//! Whether one row allows all that another allows.

use weir_common::policy::{
    Decision, DecisionKey, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP, Row, Slot,
};

use super::rows::{Entries, SourcePort};

/// A row with its entries.
#[derive(Clone, Copy, Debug)]
pub struct Full<'a> {
    pub row: Row,
    pub entries: &'a Entries,
}

impl Full<'_> {
    fn source_class(&self, protocol: u8, port: u16) -> Option<&SourcePort> {
        let holding = self
            .entries
            .source_ports
            .iter()
            .filter(|entry| entry.protocol == protocol && DecisionKey::cut(port, entry.prefix) == entry.port);
        holding.max_by_key(|entry| entry.prefix)
    }

    fn decide(&self, slot: Slot, protocol: u8, source: u16, port: u16) -> Decision {
        let (class, base) = self
            .source_class(protocol, source)
            .map_or((0, self.row.base[slot as usize]), |entry| (entry.class, entry.base));
        let holding = self.entries.decisions.iter().filter(|entry| {
            entry.protocol == protocol
                && entry.source_class == class
                && DecisionKey::cut(port, entry.prefix) == entry.port
        });
        let longest = holding.max_by_key(|entry| entry.prefix);
        longest.map_or(base, |entry| entry.decision)
    }

    /// First ports of all stretches in which the row cannot change its mind.
    fn cuts(&self, protocol: u8, source: bool, into: &mut Vec<u16>) {
        let mut cut = |port: u16, prefix: u8| {
            into.push(port);
            let after = u32::from(port) + (0x1_0000_u32 >> prefix);
            into.extend(u16::try_from(after));
        };
        if source {
            let entries = self.entries.source_ports.iter();
            entries
                .filter(|entry| entry.protocol == protocol)
                .for_each(|entry| cut(entry.port, entry.prefix));
        } else {
            let entries = self.entries.decisions.iter();
            entries
                .filter(|entry| entry.protocol == protocol)
                .for_each(|entry| cut(entry.port, entry.prefix));
        }
    }
}

/// True if `new` allows whatever `old` allows.
pub fn allows_all_of(new: Full<'_>, old: Full<'_>) -> bool {
    if new.row == old.row {
        return true;
    }
    let keeps = |slot: Slot, protocol: u8| {
        let cuts = |source: bool| {
            let mut cuts = vec![0];
            new.cuts(protocol, source, &mut cuts);
            old.cuts(protocol, source, &mut cuts);
            cuts.sort_unstable();
            cuts.dedup();
            cuts
        };
        let ports = cuts(false);
        cuts(true).into_iter().all(|source| {
            ports.iter().all(|&port| {
                new.decide(slot, protocol, source, port).allows() || !old.decide(slot, protocol, source, port).allows()
            })
        })
    };
    let slots = [
        (Slot::Tcp, IPPROTO_TCP),
        (Slot::Udp, IPPROTO_UDP),
        (Slot::Sctp, IPPROTO_SCTP),
        (Slot::Icmp, IPPROTO_ICMP),
        (Slot::Icmp, IPPROTO_ICMPV6),
    ];
    let named = new.entries.decisions.iter().chain(&old.entries.decisions);
    let mut others = named.map(|entry| entry.protocol).chain([u8::MAX]);
    slots.into_iter().all(|(slot, protocol)| keeps(slot, protocol))
        && others.all(|protocol| {
            let slotted = matches!(protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP);
            slotted || keeps(Slot::Other, protocol)
        })
}
