//! The judge on plain collections, against a walk over everything that the tables hold.

use std::{cell::Cell, collections::BTreeMap};

use proptest::prelude::*;

use super::*;

/// Tables that count what they are asked.
#[derive(Default)]
struct Plain {
    addresses: BTreeMap<Addr, AddressEntry>,
    cidrs: Vec<(Addr, u32, AddressEntry)>,
    identities: BTreeMap<u32, IdentityEntry>,
    rows: BTreeMap<(u32, u32), Row>,
    /// By (row, protocol, prefix, source class, port).
    decisions: BTreeMap<(u32, u8, u8, u16, u16), Decision>,
    /// Source ports of a row, by range.
    source_ports: Vec<(u32, u8, std::ops::RangeInclusive<u16>, SourceClass)>,
    lookups: Cell<usize>,
}

impl Plain {
    fn count(&self) {
        self.lookups.set(self.lookups.get() + 1);
    }
}

impl Tables for Plain {
    fn address(&self, addr: &Addr) -> Option<AddressEntry> {
        self.count();
        self.addresses.get(addr).copied()
    }

    fn cidr(&self, addr: &Addr) -> Option<AddressEntry> {
        self.count();
        let bits = |addr: &Addr| {
            addr.0
                .iter()
                .fold(0_u128, |bits, word| bits << 32 | u128::from(u32::from_be(*word)))
        };
        self.cidrs
            .iter()
            .filter(|(net, length, _)| *length == 0 || (bits(net) ^ bits(addr)) >> (128 - length) == 0)
            .max_by_key(|(_, length, _)| *length)
            .map(|(_, _, entry)| *entry)
    }

    fn identity(&self, identity: u32) -> Option<IdentityEntry> {
        self.count();
        self.identities.get(&identity).copied()
    }

    fn row(&self, key: &RowKey, slot: Slot) -> Option<Part> {
        self.count();
        let found = self.rows.get(&(key.table, key.class))?;
        // SAFETY: a row of ours.
        Some(unsafe { Part::read(found, slot) })
    }

    fn decision(&self, key: &DecisionKey) -> Option<Decision> {
        self.count();
        self.decisions
            .get(&(key.row, key.protocol, key.prefix, key.source_class, key.port))
            .copied()
    }

    fn source_class(&self, key: &SourcePortKey) -> Option<SourceClass> {
        self.count();
        let (row, port) = (u32::from_be_bytes(key.row), u16::from_be_bytes(key.port));
        self.source_ports
            .iter()
            .find(|(of, protocol, ports, _)| *of == row && *protocol == key.protocol && ports.contains(&port))
            .map(|(.., class)| *class)
    }
}

const ROW: u32 = 9;
const TABLE: u32 = 4;
const PEER: Addr = Addr::from_v4_word(0x0707_0707);
const OWN: Addr = Addr::from_v4_word(0x0101_0101);

fn decision(number: u32) -> Decision {
    Decision::new(number.is_multiple_of(2), false, number)
}

fn source_class(class: u32, base: u32) -> SourceClass {
    SourceClass {
        class,
        base: decision(base),
    }
}

fn base() -> [Decision; 5] {
    [1, 2, 3, 4, 5].map(|slot| decision(1000 + slot))
}

/// One peer of class 6, with one row.
fn plain(prefixes: u32) -> Plain {
    let mut plain = Plain::default();
    plain.addresses.insert(
        PEER,
        AddressEntry {
            identity: 3,
            tag: PEER.0[3],
        },
    );
    plain.identities.insert(3, IdentityEntry { class: 6, flags: 0 });
    plain.rows.insert(
        (TABLE, 6),
        Row {
            id: ROW,
            prefixes: PrefixMask(prefixes),
            base: base(),
        },
    );
    plain
}

fn ask(plain: &Plain, table: u32, key: &CtKey, opener: Direction, icmp: u16, from_node: bool) -> Answer {
    let policy = DirectionPolicy {
        table,
        default_row: Row {
            id: 0,
            prefixes: PrefixMask(0),
            base: [decision(7); 5],
        },
    };
    let slot = Slot::of(key.protocol(), key.peer.is_v4());
    judge(
        plain,
        // SAFETY: a policy of ours.
        &unsafe { Policy::read(&policy, slot) },
        slot,
        key,
        &Question {
            own: OWN,
            icmp,
            opened_by_peer: opener == Direction::Ingress,
            from_node,
        },
    )
}

fn flow(protocol: u8, local_port: u16, peer_port: u16) -> CtKey {
    CtKey {
        endpoint_protocol: 5 << 8 | u32::from(protocol),
        local_port,
        peer_port,
        local: OWN,
        peer: PEER,
    }
}

proptest! {
    /// The longest of the used prefixes that holds the port decides, by the opener's destination port.
    #[test]
    fn ports(
        entries in prop::collection::vec((any::<u16>(), 0..4_usize), 0..12), mask in 0..16_u32,
        protocol in prop::sample::select(vec![6_u8, 17, 132]), from_pod: bool, near: prop::sample::Index, offset in 0..40_u16,
    ) {
        let slot = Slot::of(protocol, true);
        let mut plain = plain(mask << (4 * slot as u32));
        for (number, (port, k)) in entries.iter().enumerate() {
            let prefix = PREFIX_LENGTHS[*k];
            plain.decisions.insert((ROW, protocol, prefix, 0, DecisionKey::cut(*port, prefix)), decision(number as u32));
        }
        let port = if entries.is_empty() { offset } else { entries[near.index(entries.len())].0.wrapping_add(offset) };
        let (opener, key) = if from_pod {
            (Direction::Egress, flow(protocol, 1, port))
        } else {
            (Direction::Ingress, flow(protocol, port, 1))
        };
        let expected = plain
            .decisions
            .iter()
            .filter(|((_, _, prefix, _, start), _)| {
                let used = PREFIX_LENGTHS.iter().position(|length| length == prefix).is_some_and(|k| mask & 1 << k != 0);
                used && u32::from(*start) <= u32::from(port) && u32::from(port) < u32::from(*start) + (1 << (16 - prefix))
            })
            .max_by_key(|((_, _, prefix, ..), _)| *prefix)
            .map_or(base()[slot as usize], |(_, decision)| *decision);
        let answer = ask(&plain, TABLE, &key, opener, 0, false);
        prop_assert_eq!(answer, Answer { decision: expected, node: false });
        prop_assert!(plain.lookups.get() <= 7, "address, identity, row and four prefixes");
    }
}

#[test]
fn the_worst_case_is_nine_lookups() {
    let mut plain = plain(PrefixMask::SOURCE_PORTS | 0xf);
    // Known by CIDR, so the exact lookup misses; a source class without entries, so every prefix is asked.
    plain.addresses.clear();
    plain
        .cidrs
        .push((Addr::UNSPECIFIED, 0, AddressEntry { identity: 3, tag: 0 }));
    plain.source_ports.push((ROW, 6, 0..=0xffff, source_class(8, 50)));
    let answer = ask(&plain, TABLE, &flow(6, 1, 80), Direction::Egress, 0, false);
    assert_eq!(answer.decision, decision(50));
    assert_eq!(plain.lookups.get(), 9);
}

#[test]
fn without_a_table_no_peer_is_looked_up() {
    let plain = plain(0);
    assert_eq!(
        ask(&plain, 0, &flow(6, 1, 80), Direction::Egress, 0, false).decision,
        decision(7)
    );
    assert_eq!(plain.lookups.get(), 0);
}

#[test]
fn a_class_without_row_gets_the_default_row() {
    let mut plain = plain(0);
    plain.identities.insert(3, IdentityEntry { class: 99, flags: 0 });
    assert_eq!(
        ask(&plain, TABLE, &flow(6, 1, 80), Direction::Egress, 0, false).decision,
        decision(7)
    );
}

#[test]
fn the_node_is_exempt_only_where_it_made_the_packet_itself() {
    let mut plain = plain(0);
    plain.identities.insert(
        3,
        IdentityEntry {
            class: 6,
            flags: IdentityEntry::LOCAL_NODE,
        },
    );
    for table in [0, TABLE] {
        assert!(ask(&plain, table, &flow(6, 80, 1), Direction::Ingress, 0, true).node);
        assert!(!ask(&plain, table, &flow(6, 80, 1), Direction::Ingress, 0, false).node);
    }
    plain.identities.insert(3, IdentityEntry { class: 6, flags: 0 });
    assert!(!ask(&plain, TABLE, &flow(6, 80, 1), Direction::Ingress, 0, true).node);
}

#[test]
fn icmp_is_judged_by_type_and_code() {
    let mut plain = plain(0b0101 << 12);
    plain.decisions.insert((ROW, 1, 8, 0, 8 << 8), decision(30));
    plain.decisions.insert((ROW, 1, 16, 0, 3 << 8 | 4), decision(32));
    let ask = |icmp| ask(&plain, TABLE, &flow(1, 77, 8), Direction::Egress, icmp, false).decision;
    assert_eq!(
        (ask(8 << 8 | 5), ask(3 << 8 | 4), ask(3 << 8 | 3)),
        (decision(30), decision(32), base()[3])
    );
    // ICMPv6 within IPv4 is just another protocol.
    let other = super::Question {
        own: OWN,
        icmp: 8 << 8,
        opened_by_peer: false,
        from_node: false,
    };
    let row = plain.rows[&(TABLE, 6)];
    // SAFETY: a row of ours.
    let part = unsafe { Part::read(&row, Slot::Other) };
    assert_eq!(decide(&plain, &part, Slot::Other, &flow(58, 0, 0), &other), base()[4]);
}

#[test]
fn source_classes_have_decisions_of_their_own() {
    let mut plain = plain(PrefixMask::SOURCE_PORTS | 1);
    plain.source_ports.push((ROW, 6, 1000..=1999, source_class(2, 44)));
    plain.decisions.insert((ROW, 6, 16, 0, 22), decision(40));
    plain.decisions.insert((ROW, 6, 16, 2, 80), decision(42));
    let ask = |source, port| ask(&plain, TABLE, &flow(6, port, source), Direction::Ingress, 0, false).decision;
    assert_eq!((ask(1, 22), ask(1, 80)), (decision(40), base()[0]));
    assert_eq!(
        (ask(1000, 80), ask(1999, 22), ask(2000, 22)),
        (decision(42), decision(44), decision(40))
    );
}
