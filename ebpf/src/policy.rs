//! The verdict for a flow that nothing is known of: at most nine lookups, whatever the number of rules.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, lpm_trie::Key},
};
use weir_common::{
    Addr, Direction,
    conntrack::CtKey,
    identity::{AddressEntry, CLASS_UNKNOWN, IdentityEntry},
    policy::{
        Decision, DecisionKey, DirectionPolicy, PREFIX_LENGTHS, PrefixMask, Row, RowKey, SOURCE_PORT_KEY_PREFIX, Slot,
        SourceClass, SourcePortKey,
    },
};

use crate::{flow::same, kernel};

#[map]
static ADDRESSES: HashMap<Addr, AddressEntry> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

#[map]
static CIDRS: LpmTrie<Addr, AddressEntry> = LpmTrie::with_max_entries(65536, 0);

#[map]
static IDENTITIES: Array<IdentityEntry> = Array::with_max_entries(131_072, 0);

#[map]
static ROWS: HashMap<RowKey, Row> = HashMap::with_max_entries(262_144, BPF_F_NO_PREALLOC);

#[map]
static DECISIONS: HashMap<DecisionKey, Decision> = HashMap::with_max_entries(1_048_576, BPF_F_NO_PREALLOC);

#[map]
static SOURCE_PORTS: LpmTrie<SourcePortKey, SourceClass> = LpmTrie::with_max_entries(65536, 0);

/// The tables that decide. The maps above in the programs, plain collections in unit tests.
pub trait Tables {
    fn address(&self, addr: &Addr) -> Option<AddressEntry>;
    fn cidr(&self, addr: &Addr) -> Option<AddressEntry>;
    fn identity(&self, identity: u32) -> Option<IdentityEntry>;
    fn row(&self, key: &RowKey, slot: Slot) -> Option<Part>;
    fn decision(&self, key: &DecisionKey) -> Option<Decision>;
    fn source_class(&self, key: &SourcePortKey) -> Option<SourceClass>;
}

/// The kernel's maps.
///
/// Their elements may be recycled while they are read. Single words cannot be torn; rows can, but rows and decisions
/// are removed only after the endpoints that reach them have flipped, and who judges asks afterwards whether its
/// endpoint is still the same.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn address(&self, addr: &Addr) -> Option<AddressEntry> {
        // SAFETY: a live element of the map, and plain data.
        ADDRESSES.get_ptr(addr).map(|entry| unsafe { read_word(entry) })
    }

    #[inline(always)]
    fn cidr(&self, addr: &Addr) -> Option<AddressEntry> {
        // SAFETY: a live element of the map, and plain data.
        CIDRS.get(Key::new(128, *addr)).map(|entry| unsafe { read_word(entry) })
    }

    #[inline(always)]
    fn identity(&self, identity: u32) -> Option<IdentityEntry> {
        let entry = IDENTITIES.get_ptr(identity)?;
        // SAFETY: array elements live as long as their map; eight aligned bytes that were written by one store.
        let word = unsafe { kernel::read(entry.cast::<u64>()) };
        Some(IdentityEntry {
            class: low(word),
            flags: high(word),
        })
    }

    #[inline(always)]
    fn row(&self, key: &RowKey, slot: Slot) -> Option<Part> {
        // SAFETY: a live element of the map.
        ROWS.get_ptr(key).map(|row| unsafe { Part::read(row, slot) })
    }

    #[inline(always)]
    fn decision(&self, key: &DecisionKey) -> Option<Decision> {
        // SAFETY: a live element of the map, one word.
        DECISIONS.get_ptr(key).map(|entry| unsafe { kernel::read(entry) })
    }

    #[inline(always)]
    fn source_class(&self, key: &SourcePortKey) -> Option<SourceClass> {
        SOURCE_PORTS.get(Key::new(SOURCE_PORT_KEY_PREFIX + 16, *key)).copied()
    }
}

/// Both halves of an [`AddressEntry`] by one load: never the identity of one element and the tag of another.
///
/// # Safety
/// `entry` must point to a live map element.
#[inline(always)]
unsafe fn read_word(entry: *const AddressEntry) -> AddressEntry {
    // SAFETY: the caller's promise; the type is eight bytes, aligned to eight.
    let word = unsafe { kernel::read(entry.cast::<u64>()) };
    AddressEntry {
        identity: low(word),
        tag: high(word),
    }
}

/// The word's first four bytes in memory.
#[inline(always)]
const fn low(word: u64) -> u32 {
    if cfg!(target_endian = "little") {
        word as u32
    } else {
        (word >> 32) as u32
    }
}

/// The word's last four bytes in memory.
#[inline(always)]
const fn high(word: u64) -> u32 {
    if cfg!(target_endian = "little") {
        (word >> 32) as u32
    } else {
        word as u32
    }
}

/// What a [`Row`] says of one protocol.
#[derive(Clone, Copy)]
pub struct Part {
    id: u32,
    prefixes: PrefixMask,
    base: Decision,
}

impl Part {
    /// # Safety
    /// `row` must point to a live row. (It may change meanwhile: see [`Maps`].)
    #[inline(always)]
    unsafe fn read(row: *const Row, slot: Slot) -> Self {
        // SAFETY: the caller's promise; integers.
        unsafe {
            Self {
                id: kernel::read(&raw const (*row).id),
                prefixes: kernel::read(&raw const (*row).prefixes),
                base: match slot {
                    Slot::Tcp => kernel::read(&raw const (*row).base[0]),
                    Slot::Udp => kernel::read(&raw const (*row).base[1]),
                    Slot::Sctp => kernel::read(&raw const (*row).base[2]),
                    Slot::Icmp => kernel::read(&raw const (*row).base[3]),
                    Slot::Other => kernel::read(&raw const (*row).base[4]),
                },
            }
        }
    }
}

/// What a [`DirectionPolicy`] says of one protocol.
#[derive(Clone, Copy)]
pub struct Policy {
    table: u32,
    default: Part,
}

impl Policy {
    /// # Safety
    /// `policy` must point to a live endpoint's. (It may change meanwhile: who reads it checks the stamps afterwards.)
    #[inline(always)]
    pub unsafe fn read(policy: *const DirectionPolicy, slot: Slot) -> Self {
        // SAFETY: the caller's promise; integers.
        unsafe {
            Self {
                table: kernel::read(&raw const (*policy).table),
                default: Part::read(&raw const (*policy).default_row, slot),
            }
        }
    }
}

/// What is asked about a flow.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Question {
    /// The endpoint's address of the flow's family.
    pub own: Addr,
    /// ICMP: type << 8 | code of the flow's first packet.
    pub icmp: u16,
    /// Direction of the flow's first packet: ingress.
    pub opened_by_peer: bool,
    /// The node itself made the packet in hand, and that packet opens the flow.
    pub from_node: bool,
}

impl Question {
    /// Direction of the flow's first packet.
    #[inline(always)]
    pub const fn opener(&self) -> Direction {
        if self.opened_by_peer {
            Direction::Ingress
        } else {
            Direction::Egress
        }
    }
}

/// What policy says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub decision: Decision,
    /// Exempt, as the node itself talks to its pod.
    pub node: bool,
}

/// Judges a flow by one direction of its endpoint's policy, as far as it speaks of the flow's `slot`.
#[inline(always)]
pub fn judge<T: Tables>(tables: &T, policy: &Policy, slot: Slot, key: &CtKey, question: &Question) -> Answer {
    let own = &question.own;
    // A missing address is `::`, which is nobody's.
    if same(&key.peer, own) && own.0[0] | own.0[1] | own.0[2] | own.0[3] != 0 {
        return Answer {
            decision: Decision::new(true, false, 0),
            node: false,
        };
    }
    let mut row = policy.default;
    if policy.table != 0 || question.from_node {
        let peer = identify(tables, &key.peer);
        if question.from_node && peer.flags & IdentityEntry::LOCAL_NODE != 0 {
            return Answer {
                decision: Decision::new(true, false, 0),
                node: true,
            };
        }
        if policy.table != 0 {
            let key = RowKey {
                table: policy.table,
                class: peer.class,
                local_class: 0,
            };
            if let Some(found) = tables.row(&key, slot) {
                row = found;
            }
        }
    }
    Answer {
        decision: decide(tables, &row, slot, key, question),
        node: false,
    }
}

/// Who an address is.
#[inline(always)]
fn identify<T: Tables>(tables: &T, addr: &Addr) -> IdentityEntry {
    const UNKNOWN: IdentityEntry = IdentityEntry {
        class: CLASS_UNKNOWN,
        flags: 0,
    };
    let exact = match tables.address(addr) {
        Some(entry) if entry.tag == addr.0[3] => Some(entry),
        // None, or the element was recycled for another address: then this one has just been removed.
        _ => tables.cidr(addr),
    };
    match exact {
        Some(entry) => tables.identity(entry.identity).unwrap_or(UNKNOWN),
        None => UNKNOWN,
    }
}

/// What a row says of the flow's protocol and ports.
#[inline(always)]
fn decide<T: Tables>(tables: &T, row: &Part, slot: Slot, key: &CtKey, question: &Question) -> Decision {
    let protocol = key.protocol();
    let (source, destination) = match (slot, question.opener()) {
        (Slot::Icmp, _) => (0, question.icmp),
        (_, Direction::Egress) => (key.local_port, key.peer_port),
        (_, Direction::Ingress) => (key.peer_port, key.local_port),
    };
    let mut ask = core::mem::MaybeUninit::<DecisionKey>::uninit();
    // SAFETY: integers, for which zero is a value.
    let mut ask = unsafe {
        kernel::clear_words(ask.as_mut_ptr());
        ask.assume_init()
    };
    ask.row = row.id;
    ask.protocol = protocol;
    if let Slot::Other = slot {
        if row.prefixes.0 & PrefixMask::OTHER_BY_NUMBER != 0
            && let Some(decision) = tables.decision(&ask)
        {
            return decision;
        }
        return row.base;
    }
    let mut base = row.base;
    if row.prefixes.0 & PrefixMask::SOURCE_PORTS != 0 && !matches!(slot, Slot::Icmp) {
        let found = tables.source_class(&SourcePortKey {
            row: row.id.to_be_bytes(),
            protocol,
            port: source.to_be_bytes(),
            pad: 0,
        });
        if let Some(found) = found {
            ask.source_class = found.class as u16;
            base = found.base;
        }
    }
    let lengths = row.prefixes.of(slot);
    let mut k = 0;
    while k < PREFIX_LENGTHS.len() {
        if lengths & 1 << k != 0 {
            ask.prefix = PREFIX_LENGTHS[k];
            ask.port = DecisionKey::cut(destination, PREFIX_LENGTHS[k]);
            if let Some(decision) = tables.decision(&ask) {
                return decision;
            }
        }
        k += 1;
    }
    base
}

#[cfg(test)]
mod tests;
