//! What the compiler makes of random worlds, in real maps, asked through the programs: every verdict, and the rules
//! that it is counted under, are the naive evaluator's, after every one of a sequence of changes.

use std::net::IpAddr;

use weir::policy::{
    change::Change,
    compile::Compiler,
    evaluate::{Flow, World},
    plan::{Capacity, EndpointPolicy},
    random::{self, LOCAL_PODS, Random},
    simulate::Simulation,
};
use weir_common::{
    Addr, Direction,
    endpoint::EndpointEntry,
    policy::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
};
use weir_tests::{
    packet, plan,
    testrun::{DROP, Hook, IFINDEX, PASS, Programs, Sizes},
};

const ENTRIES: u32 = 65_536;

/// Of one sequence.
const CHANGES: usize = 150;
const FLOWS_AFTER_EACH: usize = 12;

const SCTP_INIT: u8 = 1;

fn capacity() -> Capacity {
    let size = ENTRIES as usize;
    Capacity {
        addresses: size,
        cidrs: size,
        identities: size,
        rows: size,
        decisions: size,
        source_ports: size,
        traces: size,
    }
}

/// The packet that opens a flow. None: the programs let it pass by themselves, as links need it.
fn opening_packet(flow: &Flow) -> Option<Vec<u8>> {
    let (source, destination) = match flow.direction {
        Direction::Egress => (flow.local_addr, flow.peer_addr),
        Direction::Ingress => (flow.peer_addr, flow.local_addr),
    };
    let ports = (flow.source_port, flow.destination_port);
    Some(match (flow.protocol, flow.icmp) {
        (IPPROTO_TCP, _) => packet::tcp(source, destination, ports, packet::SYN),
        (IPPROTO_UDP, _) => packet::udp(source, destination, ports),
        (IPPROTO_SCTP, _) => packet::sctp(source, destination, ports, SCTP_INIT),
        (IPPROTO_ICMPV6, Some((130..=143, _))) => return None,
        (IPPROTO_ICMP | IPPROTO_ICMPV6, Some((kind, code))) => {
            packet::icmp(source, destination, kind, code, 7, &[0; 8])
        }
        (protocol, _) => packet::ip(source, destination, protocol, &[0; 16]),
    })
}

/// Puts an endpoint on the interface, as nobody that any entry of the connection table knows.
fn put_endpoint(programs: &mut Programs, id: u32, policy: &EndpointPolicy, addresses: &[IpAddr]) {
    let address = |v4: bool| {
        let own = addresses.iter().find(|address| address.is_ipv4() == v4);
        own.map_or(Addr::UNSPECIFIED, |address| (*address).into())
    };
    let stamp = EndpointEntry::make_stamp(id, 1);
    programs
        .set_endpoint(&EndpointEntry {
            stamp,
            adopt_until: 0,
            ifindex: IFINDEX,
            flags: 0,
            addr4: address(true),
            addr6: address(false),
            egress: policy.egress,
            ingress: policy.ingress,
            stamp_end: stamp,
        })
        .expect("the endpoint map takes a value");
}

/// One sequence of changes; says how many verdicts were compared.
fn sequence(seed: u64) -> usize {
    let mut programs = Programs::load(Sizes {
        connections: 1024,
        unconfirmed: 1024,
        policy: ENTRIES,
    })
    .expect("loading the programs (as root)");
    let mut random = Random::new(seed);
    let (mut world, mut simulation) = (World::new(), Simulation::new());
    let mut compiler = Compiler::new(capacity(), 1);
    let mut asked = 0;
    let mut endpoint_id = 0;
    for number in 0..CHANGES {
        let change = if number < LOCAL_PODS {
            Change::Endpoint(number as u32, Some(random::pod(number)))
        } else {
            random::change(&mut random, number as u64)
        };
        // Interfaces stay.
        if matches!(change, Change::Endpoint(_, None)) {
            continue;
        }
        world.apply(change.clone());
        let told = compiler.apply(vec![change]);
        for op in told.add.iter().chain(&told.flip).chain(&told.remove) {
            plan::execute(&mut programs, op).unwrap_or_else(|error| panic!("{error:#}"));
            simulation.execute(op);
        }
        compiler.executed(told.serial);
        for _ in 0..FLOWS_AFTER_EACH {
            let flow = random::flow(&mut random);
            let Some(flow) = random::aim(&world, &flow).filter(|flow| flow.local_addr != flow.peer_addr) else {
                continue;
            };
            let Some(endpoint) = (0..LOCAL_PODS).find(|local| random::pod(*local) == flow.endpoint) else {
                continue;
            };
            let (Some(policy), Some(peer)) = (simulation.policy(endpoint as u32), world.peer(&flow.endpoint)) else {
                continue;
            };
            let Some(frame) = opening_packet(&flow) else { continue };
            endpoint_id += 1;
            // Of several addresses of a family the flow's own comes first.
            let mut addresses = vec![flow.local_addr];
            addresses.extend(&peer.addresses);
            put_endpoint(&mut programs, endpoint_id, policy, &addresses);

            let expected = world.judge(&flow);
            let decision = simulation.decide(endpoint as u32, &flow).expect("nothing is closed");
            let before = programs.trace(decision.trace()).expect("the trace has a counter");
            let hook = match flow.direction {
                Direction::Egress => Hook::FROM_POD,
                Direction::Ingress => Hook::TO_POD,
            };
            let action = programs.run(hook, &frame).expect("the program runs");
            let told = format!("seed {seed}, change {number}, {flow:?}, {decision:?}");
            assert_eq!(action, if expected.allow { PASS } else { DROP }, "{told}: {expected:?}");
            let after = programs.trace(decision.trace()).expect("the trace has a counter");
            assert_eq!(after, before + 1, "{told}: counted under its rules");
            let named = compiler.trace(decision.trace()).expect("a trace in force has a name");
            assert_eq!(named.hits, expected.hits, "{told}: the rules it is counted under");
            asked += 1;
        }
    }
    asked
}

#[test]
fn compiled_tables_decide_in_the_kernel_as_the_naive_evaluator_does() {
    let sequences = if std::env::var_os("WEIR_THOROUGH").is_some() {
        40
    } else {
        4
    };
    let asked: usize = (1..=sequences).map(sequence).sum();
    assert!(
        asked > sequences as usize * CHANGES * FLOWS_AFTER_EACH / 4,
        "only {asked} verdicts were compared"
    );
}
