//! Nanoseconds per packet, as the kernel's test run measures them: for established, new and denied flows, under any
//! number of rules.
//!
//! A repeated test run hands over one and the same packet, which would be a new flow only once. So new flows are
//! measured through a driver: a program of a few instructions that removes the flow's entry, or changes the packet's
//! source port, and then tail-calls the program under test, unchanged. What the driver costs is measured without a
//! callee, and taken off (but not what it takes to remove an entry that is there).

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result, bail};
use weir_common::{
    Direction,
    conntrack::CtKey,
    counters::Tally,
    endpoint::EndpointEntry,
    layout::map,
    policy::{Decision, DecisionKey, DirectionPolicy, PrefixMask, Row},
};

use crate::{
    kernel::bpf,
    packet::{ACK, SYN, tcp},
    testrun::{DROP, Hook, IFINDEX, PASS, Programs, Sizes},
    tiers,
};

/// What the tables hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// So many peers, each a class of its own with its row and a port of its own.
    Pods(u32),
    /// So many CIDRs (/24), each a class of its own with its row and a port of its own; the peer is in one of them.
    Cidrs(u32),
    /// So many tiers of [`tiers::POLICIES`] policies, compiled; the last lets the peer in, all before it pass it on.
    Tiers(u32),
}

/// Mean time of a packet, ns, the test run's own overhead included (an empty program: see [`empty`]). Of several
/// series, the fastest: everything else on the machine only adds.
#[derive(Clone, Copy, Debug)]
pub struct Nanoseconds {
    /// A packet of a known flow that the pod receives.
    pub established: f64,
    /// The same for one that the pod sends (its source is checked).
    pub established_from_pod: f64,
    /// The first packet of an allowed flow, its entry included, and the removal of that entry before it comes again: a
    /// connection's way through the table, as its confirmation removes the entry too.
    pub new: f64,
    /// The same for flows of which each leaves its entry, as in a flood: every one takes memory that no cache holds.
    pub flood: f64,
    /// A packet that policy denies.
    pub denied: f64,
}

const POD: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const PORT: u16 = 8080;
const ENDPOINT: u32 = 1;
/// New flows per measurement of a flood: source ports.
const FLOWS: u32 = 60_000;
/// The source port of flows that are made and removed.
const AGAIN: u16 = 998;
/// Series of which the fastest counts.
const SERIES: u32 = 20;

/// Measures the programs with tables of a size; `repeat` packets for each number but that of new flows.
///
/// # Errors
/// The programs cannot be loaded or run, or do not do what is to be measured.
pub fn measure(rules: Rules, repeat: u32) -> Result<Nanoseconds> {
    let count = match rules {
        Rules::Pods(count) | Rules::Cidrs(count) => count.max(1),
        // Rows and decisions of the peers; identities and classes of everybody.
        Rules::Tiers(_) => 4 * tiers::POLICIES,
    };
    let mut programs = Programs::load(Sizes {
        // As large as in earnest: what does not fit into a cache is part of the price of a new flow.
        connections: 262_144,
        unconfirmed: 65_536,
        policy: count * 2 + 16,
    })?;
    let peer = fill(&mut programs, rules, count)?;
    let pod = IpAddr::V4(POD);

    let syn = tcp(peer, pod, (999, PORT), SYN);
    let answer = tcp(pod, peer, (PORT, 999), SYN | ACK);
    let data = tcp(peer, pod, (999, PORT), ACK);
    for (hook, packet) in [(Hook::TO_POD, &syn), (Hook::FROM_POD, &answer), (Hook::TO_POD, &data)] {
        expect(programs.run(hook, packet)?, PASS)?;
    }
    let mut series = |hook, packet: &[u8], expected| {
        fastest(|| {
            let (action, time) = programs.repeat(hook, packet, repeat / SERIES)?;
            expect(action, expected)?;
            Ok(time.as_nanos() as f64)
        })
    };
    let established = series(Hook::TO_POD, &data, PASS)?;
    let established_from_pod = series(Hook::FROM_POD, &answer, PASS)?;
    let denied = series(Hook::TO_POD, &tcp(peer, pod, (999, PORT + 1), SYN), DROP)?;

    let again = tcp(peer, pod, (AGAIN, PORT), SYN);
    let key = CtKey {
        endpoint_protocol: ENDPOINT << 8 | u32::from(crate::packet::TCP),
        local_port: PORT,
        peer_port: AGAIN,
        local: pod.into(),
        peer: peer.into(),
    };
    let driver = Driver::new(Before::Remove(programs.map_fd(map::UNCONFIRMED)?.as_raw_fd(), key))?;
    let alone = fastest(|| driver.run(&again, repeat / SERIES))?;
    driver.drive(programs.program_fd(Direction::Ingress)?.as_raw_fd())?;
    let together = fastest(|| {
        let before = programs.tally(Tally::Unconfirmed)?;
        let time = driver.run(&again, repeat / SERIES)?;
        let made = programs.tally(Tally::Unconfirmed)? - before;
        if made < u64::from(repeat / SERIES) {
            bail!("{made} of {} packets were new flows", repeat / SERIES);
        }
        Ok(time)
    })?;
    // The driver's own time holds that of an empty program already.
    let empty = empty(repeat)?;
    let new = together - (alone - empty);

    let driver = Driver::new(Before::NextPort)?;
    let syn = tcp(peer, pod, (1024, PORT), SYN);
    let alone = fastest(|| driver.run(&syn, FLOWS / SERIES))?;
    driver.drive(programs.program_fd(Direction::Ingress)?.as_raw_fd())?;
    let mut first_port = 1024;
    let together = fastest(|| {
        let before = programs.tally(Tally::Unconfirmed)?;
        let time = driver.run(&tcp(peer, pod, (first_port, PORT), SYN), FLOWS / SERIES)?;
        first_port += (FLOWS / SERIES) as u16;
        let made = programs.tally(Tally::Unconfirmed)? - before;
        if made < u64::from(FLOWS / SERIES) {
            bail!("{made} of {} packets were new flows", FLOWS / SERIES);
        }
        Ok(time)
    })?;
    let flood = together - (alone - empty);
    Ok(Nanoseconds {
        established,
        established_from_pod,
        new,
        flood,
        denied,
    })
}

/// Mean time of a program that only returns, ns.
///
/// # Errors
/// It cannot be loaded or run.
pub fn empty(repeat: u32) -> Result<f64> {
    let program = load(&[mov(0, -1), instruction(0x95, 0, 0, 0, 0)])?;
    let ip = IpAddr::V4(POD);
    let packet = tcp(ip, ip, (1, 2), SYN);
    fastest(|| test_run(&program, &packet, repeat / SERIES))
}

/// The shortest of [`SERIES`] times.
fn fastest(mut time: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut shortest = time()?;
    for _ in 1..SERIES {
        shortest = shortest.min(time()?);
    }
    Ok(shortest)
}

fn expect(action: i32, expected: i32) -> Result<()> {
    if action != expected {
        bail!("the program says {action}, not {expected}: this would measure something else");
    }
    Ok(())
}

/// Fills the tables, and returns a peer in the middle of them.
fn fill(programs: &mut Programs, rules: Rules, count: u32) -> Result<IpAddr> {
    let peer = |i: u32| match rules {
        Rules::Pods(_) | Rules::Tiers(_) => IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 0, 0).to_bits() + i)),
        Rules::Cidrs(_) => IpAddr::V4(Ipv4Addr::from_bits(Ipv4Addr::new(32, 0, 0, 0).to_bits() + (i << 8))),
    };
    if let Rules::Tiers(tiers) = rules {
        let policy = tiers::fill(programs, tiers.max(1), IpAddr::V4(POD), peer, PORT)?;
        put_endpoint(programs, policy.egress, policy.ingress)?;
        return Ok(peer(tiers::POLICIES / 2));
    }
    let table = 1;
    programs.set_cidr(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0, 0)?;
    for i in 0..count {
        let class = i + 1;
        match rules {
            Rules::Pods(_) | Rules::Tiers(_) => programs.set_address(peer(i), class)?,
            Rules::Cidrs(_) => programs.set_cidr(peer(i), 24, class)?,
        }
        programs.set_identity(class, class, 0)?;
        let row = Row {
            id: class,
            prefixes: PrefixMask(1),
            base: [Decision::DENY; 5],
        };
        programs.set_row(table, class, row)?;
        let key = DecisionKey {
            row: class,
            protocol: crate::packet::TCP,
            prefix: 16,
            source_class: 0,
            port: PORT,
            pad: 0,
        };
        programs.set_decision(key, Decision::new(true, false, class))?;
    }
    let chosen = count / 2;
    programs.make_trace(chosen + 1)?;
    let policy = DirectionPolicy {
        table,
        default_row: Row::default(),
    };
    put_endpoint(programs, policy, policy)?;
    let middle = peer(chosen);
    Ok(match middle {
        // Within its /24, not at its edge.
        IpAddr::V4(address) if matches!(rules, Rules::Cidrs(_)) => {
            IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() + 9))
        }
        other => other,
    })
}

fn put_endpoint(programs: &mut Programs, egress: DirectionPolicy, ingress: DirectionPolicy) -> Result<()> {
    let stamp = EndpointEntry::make_stamp(ENDPOINT, 1);
    programs.set_direct_until(u64::MAX)?;
    programs.set_endpoint(&EndpointEntry {
        stamp,
        adopt_until: 0,
        ifindex: IFINDEX,
        // As on a node that hands packets between its pods over: the peer might be one of them.
        flags: EndpointEntry::INGRESS_ISOLATED | EndpointEntry::EGRESS_ISOLATED | EndpointEntry::DIRECT,
        addr4: POD.into(),
        addr6: weir_common::Addr::UNSPECIFIED,
        egress,
        ingress,
        stamp_end: stamp,
    })
}

/// The driver, and the program array of one slot that it jumps through.
struct Driver {
    program: OwnedFd,
    callee: OwnedFd,
}

impl Driver {
    fn new(before: Before) -> Result<Self> {
        let callee = program_array()?;
        let program = load(&driver(before, callee.as_raw_fd()))?;
        Ok(Self { program, callee })
    }

    /// Makes `program` what is driven.
    fn drive(&self, program: RawFd) -> Result<()> {
        let (key, value) = (0_u32, program as u32);
        let mut attributes = [0_u64; 4];
        attributes[0] = self.callee.as_raw_fd() as u64;
        attributes[1] = (&raw const key) as u64;
        attributes[2] = (&raw const value) as u64;
        bpf(MAP_UPDATE_ELEM, &mut attributes).context("putting the program into the array")?;
        Ok(())
    }

    fn run(&self, packet: &[u8], repeat: u32) -> Result<f64> {
        test_run(&self.program, packet, repeat)
    }
}

/// What a driver does before it jumps.
enum Before {
    /// Adds one to the source port of an IPv4 packet without options.
    NextPort,
    /// Removes the entry of a flow from a map.
    Remove(RawFd, CtKey),
}

fn driver(before: Before, array: RawFd) -> Vec<u64> {
    const TAIL_CALL: i32 = 12;
    // r6 = the context
    let mut code = vec![instruction(0xbf, 6, 1, 0, 0)];
    match before {
        Before::NextPort => code.extend(next_port()),
        Before::Remove(map, key) => code.extend(remove(map, &key)),
    }
    // tail_call(context, array, 0)
    code.push(instruction(0xbf, 1, 6, 0, 0));
    code.extend(load_map(2, array));
    code.extend([
        mov(3, 0),
        instruction(0x85, 0, 0, 0, TAIL_CALL),
        mov(0, -1),
        instruction(0x95, 0, 0, 0, 0),
    ]);
    code
}

/// A register becomes a map: an immediate of two instructions, whose source register says that it is a descriptor.
fn load_map(register: u8, map: RawFd) -> [u64; 2] {
    [instruction(0x18, register, 1, 0, map), 0]
}

fn remove(map: RawFd, key: &CtKey) -> Vec<u64> {
    const MAP_DELETE_ELEM: i32 = 3;
    const SIZE: i16 = size_of::<CtKey>() as i16;
    let mut words = vec![
        key.endpoint_protocol,
        // Two halves as they lie in memory.
        pair_of_halves(key.local_port, key.peer_port),
    ];
    words.extend(key.local.0);
    words.extend(key.peer.0);
    // *(u32 *)(stack - SIZE + 4 * i) = word
    let mut code: Vec<u64> = words
        .iter()
        .zip(0_i16..)
        .map(|(word, i)| instruction(0x62, 10, 0, 4 * i - SIZE, *word as i32))
        .collect();
    // map_delete_elem(map, stack - SIZE)
    code.extend(load_map(1, map));
    code.extend([
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, i32::from(-SIZE)),
        instruction(0x85, 0, 0, 0, MAP_DELETE_ELEM),
    ]);
    code
}

fn next_port() -> Vec<u64> {
    const SOURCE_PORT: i32 = 14 + 20;
    const SKB_STORE_BYTES: i32 = 9;
    const SKB_LOAD_BYTES: i32 = 26;
    vec![
        // skb_load_bytes(context, SOURCE_PORT, stack - 8, 2)
        mov(2, SOURCE_PORT),
        instruction(0xbf, 3, 10, 0, 0),
        instruction(0x07, 3, 0, 0, -8),
        mov(4, 2),
        instruction(0x85, 0, 0, 0, SKB_LOAD_BYTES),
        // r1 = *(u16 *)(stack - 8), as a number; plus one; back
        instruction(0x69, 1, 10, -8, 0),
        instruction(0xdc, 1, 0, 0, 16),
        instruction(0x07, 1, 0, 0, 1),
        instruction(0xdc, 1, 0, 0, 16),
        instruction(0x6b, 10, 1, -8, 0),
        // skb_store_bytes(context, SOURCE_PORT, stack - 8, 2, 0)
        instruction(0xbf, 1, 6, 0, 0),
        mov(2, SOURCE_PORT),
        instruction(0xbf, 3, 10, 0, 0),
        instruction(0x07, 3, 0, 0, -8),
        mov(4, 2),
        mov(5, 0),
        instruction(0x85, 0, 0, 0, SKB_STORE_BYTES),
    ]
}

fn pair_of_halves(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// `struct bpf_insn` (include/uapi/linux/bpf.h).
fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let registers = if cfg!(target_endian = "little") {
        source << 4 | destination
    } else {
        destination << 4 | source
    };
    let [o0, o1] = offset.to_ne_bytes();
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, registers, o0, o1, i0, i1, i2, i3])
}

fn mov(register: u8, value: i32) -> u64 {
    instruction(0xb7, register, 0, 0, value)
}

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;

/// Two words of 32 bits as they lie in memory.
fn pair(first: u32, second: u32) -> u64 {
    let (a, b) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]])
}

fn program_array() -> Result<OwnedFd> {
    const PROG_ARRAY: u32 = 3;
    // Type and key size, value size and number of entries.
    let mut attributes = [pair(PROG_ARRAY, 4), pair(4, 1)];
    let fd = bpf(MAP_CREATE, &mut attributes).context("making a program array")?;
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn load(code: &[u64]) -> Result<OwnedFd> {
    const SCHED_CLS: u32 = 3;
    let license = c"GPL";
    let mut attributes = [
        pair(SCHED_CLS, code.len() as u32),
        code.as_ptr() as u64,
        license.as_ptr() as u64,
    ];
    let fd = bpf(PROG_LOAD, &mut attributes).context("loading the driver")?;
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs a program for a packet that was forwarded to the pod; mean time, ns.
fn test_run(program: &OwnedFd, packet: &[u8], repeat: u32) -> Result<f64> {
    let context = Hook::TO_POD.context();
    // Descriptor and result, lengths of data in and out, both pointers, repetitions and time, lengths of context
    // in and out, both pointers.
    let mut attributes = [
        pair(program.as_raw_fd() as u32, 0),
        pair(packet.len() as u32, 0),
        packet.as_ptr() as u64,
        0,
        pair(repeat, 0),
        pair(context.len() as u32, 0),
        context.as_ptr() as u64,
        0,
        0,
        0,
    ];
    bpf(PROG_TEST_RUN, &mut attributes).context("running the driver")?;
    let [.., a, b, c, d] = attributes[4].to_ne_bytes();
    Ok(f64::from(u32::from_ne_bytes([a, b, c, d])))
}
