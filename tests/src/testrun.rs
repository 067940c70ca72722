//! The eBPF programs under `BPF_PROG_TEST_RUN`: loaded with maps of their own (nothing pinned, nothing attached, no
//! traffic), which a test fills by hand and reads back after each packet.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, EbpfLoader, Pod, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, MapData, PerCpuArray, PerCpuHashMap, RingBuf, lpm_trie::Key},
    programs::{ProgramError, SchedClassifier},
};
use weir_common::{
    Addr, Direction,
    conntrack::{CtEntry, CtKey},
    counters::{Counter, Tally, index},
    endpoint::EndpointEntry,
    event::{DenialEntry, Event},
    fragment::{FragmentEntry, FragmentKey},
    identity::{AddressEntry, IdentityEntry, SourceKey},
    layout::{Config, map, program},
    policy::{Decision, DecisionKey, Row, RowKey, SourceClass, SourcePortKey},
    reason::Reason,
};

/// What TC is told to do with a packet that passes (`TC_ACT_UNSPEC`: the next program decides).
pub const PASS: i32 = -1;
/// What TC is told to do with a packet that is dropped (`TC_ACT_SHOT`).
pub const DROP: i32 = 2;

/// What TC is told to do with a packet that is handed to another interface (`TC_ACT_REDIRECT`).
pub const REDIRECT: i32 = 7;

/// The interface whose packets are tested: every network namespace's loopback has this index.
pub const IFINDEX: u32 = 1;
/// Some other interface: where forwarded packets came in.
pub const OTHER_IFINDEX: u32 = 7;

/// Freshly loaded programs with empty maps.
pub struct Programs {
    ebpf: Ebpf,
}

/// What the hook tells of a packet beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    pub direction: Direction,
    /// 0: the node itself made the packet.
    pub ingress_ifindex: u32,
    /// Segments of a GSO packet; 0: not one.
    pub gso_segs: u32,
    pub gso_size: u32,
}

impl Hook {
    /// A packet that the pod sends.
    pub const FROM_POD: Self = Self {
        direction: Direction::Egress,
        ingress_ifindex: IFINDEX,
        gso_segs: 0,
        gso_size: 0,
    };
    /// A packet that was forwarded to the pod.
    pub const TO_POD: Self = Self {
        direction: Direction::Ingress,
        ingress_ifindex: OTHER_IFINDEX,
        gso_segs: 0,
        gso_size: 0,
    };
    /// A packet that the node itself sends to the pod.
    pub const FROM_NODE: Self = Self {
        ingress_ifindex: 0,
        ..Self::TO_POD
    };

    /// `struct __sk_buff` (include/uapi/linux/bpf.h) with the fields that a test run may set.
    pub(crate) fn context(self) -> Vec<u8> {
        let mut context = vec![0; 184];
        for (offset, value) in [
            (36, self.ingress_ifindex),
            (40, IFINDEX),
            (164, self.gso_segs),
            (176, self.gso_size),
        ] {
            let field: &mut [u8] = &mut context[offset..offset + 4];
            field.copy_from_slice(&value.to_ne_bytes());
        }
        context
    }
}

/// All packet counters that are not zero.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Counters(pub BTreeMap<(u8, u8), (u64, u64)>);

impl Counters {
    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut grown = self.0.clone();
        for (key, (packets, bytes)) in &earlier.0 {
            let now = grown.entry(*key).or_default();
            *now = (now.0 - packets, now.1 - bytes);
        }
        grown.retain(|_, counter| *counter != (0, 0));
        Self(grown)
    }

    /// One counter, nothing else.
    #[must_use]
    pub fn only(reason: Reason, direction: Direction, packets: u64, bytes: u64) -> Self {
        Self(BTreeMap::from([((reason as u8, direction as u8), (packets, bytes))]))
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_list();
        for ((reason, direction), (packets, bytes)) in &self.0 {
            let name = Reason::from_number(*reason).map_or("unknown", Reason::name);
            let direction = ["from pod", "to pod"].get(usize::from(*direction)).unwrap_or(&"?");
            list.entry(&format_args!("{name} {direction}: {packets} packets, {bytes} bytes"));
        }
        list.finish()
    }
}

/// How many elements the larger maps get; what is not named keeps a size fit for tests.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub connections: u32,
    pub unconfirmed: u32,
    pub policy: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            connections: 1024,
            unconfirmed: 1024,
            policy: 1024,
        }
    }
}

impl Programs {
    /// Loads both programs through the verifier.
    ///
    /// # Errors
    /// The verifier's last words where it refuses a program.
    pub fn load(sizes: Sizes) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        for (name, entries) in [
            (map::CONNECTIONS, sizes.connections),
            (map::UNCONFIRMED, sizes.unconfirmed),
            (map::FRAGMENTS, 256),
            (map::DENIALS, 1024),
            (map::ENDPOINTS, 64),
            (map::IDENTITIES, sizes.policy.max(1024)),
            (map::ADDRESSES, sizes.policy),
            (map::CIDRS, sizes.policy),
            (map::ROWS, sizes.policy),
            (map::DECISIONS, sizes.policy),
            (map::TRACES, sizes.policy),
        ] {
            loader.map_max_entries(name, entries);
        }
        let mut ebpf = loader.load(weir::object::BYTES).context("loading the object's maps")?;
        for name in [program::FROM_POD, program::TO_POD] {
            match program(&mut ebpf, name)?.load() {
                Ok(()) => {}
                Err(ProgramError::LoadError { io_error, verifier_log }) => {
                    let log = verifier_log.to_string();
                    let lines: Vec<_> = log.lines().collect();
                    let last = lines[lines.len().saturating_sub(40)..].join("\n");
                    bail!("the kernel refuses {name}: {io_error}\n{last}");
                }
                Err(error) => return Err(error).context(name),
            }
        }
        Ok(Self { ebpf })
    }

    fn program(&mut self, direction: Direction) -> Result<&mut SchedClassifier> {
        let name = match direction {
            Direction::Egress => program::FROM_POD,
            Direction::Ingress => program::TO_POD,
        };
        program(&mut self.ebpf, name)
    }

    /// Hands a packet to the program of its direction; returns what it tells TC.
    ///
    /// # Errors
    /// The kernel did not run the program (packets shorter than an Ethernet header cannot be).
    pub fn run(&mut self, hook: Hook, packet: &[u8]) -> Result<i32> {
        Ok(self.repeat(hook, packet, 1)?.0)
    }

    /// Hands the same packet to the program `repeat` times; returns what it told last, and the mean time.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn repeat(&mut self, hook: Hook, packet: &[u8], repeat: u32) -> Result<(i32, Duration)> {
        let context = hook.context();
        let options = TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::new()
        };
        let result = self.program(hook.direction)?.test_run(options)?;
        Ok((result.return_value as i32, result.duration))
    }

    /// The program of a direction, to be run by others.
    ///
    /// # Errors
    /// It is not loaded.
    pub fn program_fd(&mut self, direction: Direction) -> Result<BorrowedFd<'_>> {
        Ok(self.program(direction)?.fd()?.as_fd())
    }

    /// A map, to be used by others.
    ///
    /// # Errors
    /// The object has no such map.
    pub fn map_fd(&self, name: &str) -> Result<BorrowedFd<'_>> {
        use aya::maps::Map;
        match self.ebpf.map(name) {
            Some(Map::LruHashMap(map) | Map::HashMap(map)) => Ok(map.fd().as_fd()),
            _ => bail!("the object has no hash map {name}"),
        }
    }

    /// How many instructions the verifier walked to be sure of a program (since Linux 5.16).
    ///
    /// # Errors
    /// The program is not loaded, or the kernel does not tell.
    pub fn verified_instructions(&mut self, direction: Direction) -> Result<u32> {
        self.program(direction)?
            .info()?
            .verified_instruction_count()
            .context("the kernel does not count what it verifies")
    }

    /// # Errors
    /// The map cannot be read.
    pub fn counters(&mut self) -> Result<Counters> {
        let counters: PerCpuArray<_, Counter> = PerCpuArray::try_from(self.map(map::COUNTERS)?)?;
        let mut found = BTreeMap::new();
        for reason in Reason::ALL {
            for direction in [Direction::Egress, Direction::Ingress] {
                let mut sum = (0, 0);
                for counter in counters.get(&index(*reason, direction), 0)?.iter() {
                    sum = (sum.0 + counter.packets, sum.1 + counter.bytes);
                }
                if sum != (0, 0) {
                    found.insert((*reason as u8, direction as u8), sum);
                }
            }
        }
        Ok(Counters(found))
    }

    /// # Errors
    /// The map cannot be read.
    pub fn tally(&mut self, tally: Tally) -> Result<u64> {
        let tallies: PerCpuArray<_, u64> = PerCpuArray::try_from(self.map(map::TALLIES)?)?;
        Ok(tallies.get(&(tally as u32), 0)?.iter().sum())
    }

    /// # Errors
    /// The map cannot be written.
    pub fn set_endpoint(&mut self, entry: &EndpointEntry) -> Result<()> {
        Ok(self
            .hash::<u32, EndpointEntry>(map::ENDPOINTS)?
            .insert(entry.ifindex, entry, 0)?)
    }

    /// # Errors
    /// The map cannot be written.
    pub fn remove_endpoint(&mut self) -> Result<()> {
        Ok(self.hash::<u32, EndpointEntry>(map::ENDPOINTS)?.remove(&IFINDEX)?)
    }

    /// # Errors
    /// The map cannot be written, or has no such endpoint.
    pub fn remove_endpoint_of(&mut self, ifindex: u32) -> Result<()> {
        Ok(self.hash::<u32, EndpointEntry>(map::ENDPOINTS)?.remove(&ifindex)?)
    }

    /// # Errors
    /// The map cannot be written.
    pub fn set_address(&mut self, address: IpAddr, identity: u32) -> Result<()> {
        self.set_tagged_address(address, identity, Addr::from(address).0[3])
    }

    /// As [`Self::set_address`], with a tag that need not be the address's own.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set_tagged_address(&mut self, address: IpAddr, identity: u32, tag: u32) -> Result<()> {
        let entry = AddressEntry { identity, tag };
        Ok(self
            .hash::<Addr, AddressEntry>(map::ADDRESSES)?
            .insert(Addr::from(address), entry, 0)?)
    }

    /// # Errors
    /// The map cannot be written, or has no such address.
    pub fn remove_address(&mut self, address: IpAddr) -> Result<()> {
        Ok(self
            .hash::<Addr, AddressEntry>(map::ADDRESSES)?
            .remove(&Addr::from(address))?)
    }

    /// `length` counts from the family's own first bit.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set_cidr(&mut self, address: IpAddr, length: u32, identity: u32) -> Result<()> {
        let entry = AddressEntry { identity, tag: 0 };
        let mut cidrs: LpmTrie<_, Addr, AddressEntry> = LpmTrie::try_from(self.map_mut(map::CIDRS)?)?;
        Ok(cidrs.insert(&cidr_key(address, length), entry, 0)?)
    }

    /// # Errors
    /// The map cannot be written, or has no such prefix.
    pub fn remove_cidr(&mut self, address: IpAddr, length: u32) -> Result<()> {
        let mut cidrs: LpmTrie<_, Addr, AddressEntry> = LpmTrie::try_from(self.map_mut(map::CIDRS)?)?;
        Ok(cidrs.remove(&cidr_key(address, length))?)
    }

    /// # Errors
    /// The map cannot be written.
    pub fn set_identity(&mut self, identity: u32, class: u32, flags: u32) -> Result<()> {
        let mut identities: Array<_, IdentityEntry> = Array::try_from(self.map_mut(map::IDENTITIES)?)?;
        Ok(identities.set(identity, IdentityEntry { class, flags }, 0)?)
    }

    /// # Errors
    /// The map cannot be written.
    pub fn set_row(&mut self, table: u32, class: u32, row: Row) -> Result<()> {
        let key = RowKey {
            table,
            class,
            local_class: 0,
        };
        Ok(self.hash::<RowKey, Row>(map::ROWS)?.insert(key, row, 0)?)
    }

    /// # Errors
    /// The map cannot be written.
    pub fn set_decision(&mut self, key: DecisionKey, decision: Decision) -> Result<()> {
        Ok(self
            .hash::<DecisionKey, Decision>(map::DECISIONS)?
            .insert(key, decision, 0)?)
    }

    /// # Errors
    /// The map cannot be written.
    pub fn set_source_port(&mut self, key: SourcePortKey, length: u32, class: SourceClass) -> Result<()> {
        let mut ports: LpmTrie<_, SourcePortKey, SourceClass> = LpmTrie::try_from(self.map_mut(map::SOURCE_PORTS)?)?;
        Ok(ports.insert(&Key::new(length, key), class, 0)?)
    }

    /// # Errors
    /// The map cannot be written.
    pub fn set_source(&mut self, key: SourceKey, length: u32) -> Result<()> {
        let mut sources: LpmTrie<_, SourceKey, u32> = LpmTrie::try_from(self.map_mut(map::SOURCES)?)?;
        Ok(sources.insert(&Key::new(length, key), 1, 0)?)
    }

    /// # Errors
    /// The map cannot be written.
    pub fn set_config(&mut self, config: Config) -> Result<()> {
        let mut array: Array<_, Config> = Array::try_from(self.map_mut(map::CONFIG)?)?;
        Ok(array.set(0, config, 0)?)
    }

    /// Says until when packets may be handed over directly (`CLOCK_MONOTONIC`, ns).
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set_direct_until(&mut self, until: u64) -> Result<()> {
        let mut array: Array<_, u64> = Array::try_from(self.map_mut(map::DIRECT_UNTIL)?)?;
        Ok(array.set(0, until, 0)?)
    }

    /// Makes a trace's counter.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn make_trace(&mut self, trace: u32) -> Result<()> {
        let mut traces: PerCpuHashMap<_, u32, u64> = PerCpuHashMap::try_from(self.map_mut(map::TRACES)?)?;
        let zeros = aya::maps::PerCpuValues::try_from(vec![0_u64; aya::util::nr_cpus().map_err(|(_, error)| error)?])?;
        Ok(traces.insert(trace, zeros, 0)?)
    }

    /// # Errors
    /// The map cannot be read, or has no such trace.
    pub fn trace(&mut self, trace: u32) -> Result<u64> {
        let traces: PerCpuHashMap<_, u32, u64> = PerCpuHashMap::try_from(self.map(map::TRACES)?)?;
        Ok(traces.get(&trace, 0)?.iter().sum())
    }

    /// The entries of one of the connection maps.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn connections(&mut self, name: &str) -> Result<Vec<(CtKey, CtEntry)>> {
        let connections: HashMap<_, CtKey, CtEntry> = HashMap::try_from(self.map(name)?)?;
        Ok(connections.iter().collect::<Result<_, _>>()?)
    }

    /// # Errors
    /// The map cannot be written.
    pub fn set_connection(&mut self, name: &str, key: CtKey, entry: CtEntry) -> Result<()> {
        Ok(self.hash::<CtKey, CtEntry>(name)?.insert(key, entry, 0)?)
    }

    /// # Errors
    /// The map cannot be written.
    pub fn remove_connection(&mut self, name: &str, key: CtKey) -> Result<()> {
        Ok(self.hash::<CtKey, CtEntry>(name)?.remove(&key)?)
    }

    /// # Errors
    /// The map cannot be read.
    pub fn denials(&mut self) -> Result<Vec<(CtKey, DenialEntry)>> {
        let denials: HashMap<_, CtKey, DenialEntry> = HashMap::try_from(self.map(map::DENIALS)?)?;
        Ok(denials.iter().collect::<Result<_, _>>()?)
    }

    /// Takes all events out of the ring buffer.
    ///
    /// # Errors
    /// The map cannot be read, or a record is not an event.
    pub fn events(&mut self) -> Result<Vec<Event>> {
        let mut ring = RingBuf::try_from(self.map_mut(map::EVENTS)?)?;
        let mut events = Vec::new();
        while let Some(record) = ring.next() {
            if record.len() != size_of::<Event>() {
                bail!("a record of {} bytes is no event", record.len());
            }
            // SAFETY: an event is plain data of exactly this size.
            events.push(unsafe { record.as_ptr().cast::<Event>().read_unaligned() });
        }
        Ok(events)
    }

    /// Empties the maps that a test fills, so that the next one need not pay for the verifier again. Addresses, CIDRs
    /// and identities stay, and so do counters and tallies.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn clear(&mut self) -> Result<()> {
        self.clear_hash::<u32, EndpointEntry>(map::ENDPOINTS)?;
        self.clear_hash::<RowKey, Row>(map::ROWS)?;
        self.clear_hash::<DecisionKey, Decision>(map::DECISIONS)?;
        self.clear_hash::<CtKey, CtEntry>(map::CONNECTIONS)?;
        self.clear_hash::<CtKey, CtEntry>(map::UNCONFIRMED)?;
        self.clear_hash::<FragmentKey, FragmentEntry>(map::FRAGMENTS)?;
        self.clear_hash::<CtKey, DenialEntry>(map::DENIALS)?;
        self.clear_trie::<SourcePortKey, SourceClass>(map::SOURCE_PORTS)?;
        self.clear_trie::<SourceKey, u32>(map::SOURCES)?;
        self.set_config(Config::default())?;
        self.set_direct_until(0)?;
        self.events()?;
        Ok(())
    }

    fn clear_hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<()> {
        let mut hash = self.hash::<K, V>(name)?;
        for key in hash.keys().collect::<Result<Vec<_>, _>>()? {
            hash.remove(&key)?;
        }
        Ok(())
    }

    fn clear_trie<K: Pod, V: Pod>(&mut self, name: &str) -> Result<()> {
        let mut trie: LpmTrie<_, K, V> = LpmTrie::try_from(self.map_mut(name)?)?;
        for key in trie.keys().collect::<Result<Vec<_>, _>>()? {
            trie.remove(&key)?;
        }
        Ok(())
    }

    /// Lets every denial be so old, ns.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub fn age_denials(&mut self, by: u64) -> Result<()> {
        let mut denials = self.hash::<CtKey, DenialEntry>(map::DENIALS)?;
        for element in denials.iter().collect::<Result<Vec<_>, _>>()? {
            let (key, mut entry) = element;
            entry.last = entry.last.saturating_sub(by);
            denials.insert(key, entry, 0)?;
        }
        Ok(())
    }

    /// Changes the state of every fragment entry.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub fn change_fragments(&mut self, change: impl Fn(&mut FragmentEntry)) -> Result<()> {
        let mut hash = self.hash::<FragmentKey, FragmentEntry>(map::FRAGMENTS)?;
        for entry in hash.iter().collect::<Result<Vec<_>, _>>()? {
            let (key, mut value) = entry;
            change(&mut value);
            hash.insert(key, value, 0)?;
        }
        Ok(())
    }

    fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> Result<HashMap<&mut MapData, K, V>> {
        Ok(HashMap::try_from(self.map_mut(name)?)?)
    }

    fn map(&self, name: &str) -> Result<&aya::maps::Map> {
        self.ebpf
            .map(name)
            .ok_or_else(|| anyhow!("the object has no map {name}"))
    }

    fn map_mut(&mut self, name: &str) -> Result<&mut aya::maps::Map> {
        self.ebpf
            .map_mut(name)
            .ok_or_else(|| anyhow!("the object has no map {name}"))
    }
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut SchedClassifier> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| anyhow!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// `length` counts from the family's own first bit.
fn cidr_key(address: IpAddr, length: u32) -> Key<Addr> {
    let length = if address.is_ipv4() {
        Addr::V4_PREFIX + length
    } else {
        length
    };
    Key::new(length, address.into())
}
