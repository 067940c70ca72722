//! Records of every kind against their JSON (`golden/*.json`, written anew with `WEIR_BLESS=1`) and their line for people.

use std::{path::PathBuf, sync::Arc};

use weir_common::{
    Direction,
    conntrack::{CtEntry, CtKey, CtSide, TCP_ACK, TCP_FIN, TCP_SYN},
    event::{DenialEntry, Event, EventKind},
    policy::{Decision, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP},
    reason::Reason,
};

use super::{
    clock::Clock,
    directory::Names,
    encode::Encoder,
    json::{Line, LossSource, LostEvent},
    record::{Context, FlowRecord},
    testing::{ip, names, pod},
    text,
};
use crate::flow::hub::Item;

const SECOND: u64 = 1_000_000_000;
/// 2026-11-22T17:00:00Z at monotonic 0.
const CLOCK: Clock = Clock::with_offset(1_795_366_800_000_000_000);

fn record<T>(names: &Names, make: impl FnOnce(&Context<'_>) -> T) -> T {
    make(&Context {
        names,
        clock: CLOCK,
        node: &Arc::from("n1"),
        audit: false,
    })
}

/// The record of an event.
fn told(names: &Names, event: &Event) -> FlowRecord {
    record(names, |context| context.event(event, None).expect("a record"))
}

fn key(protocol: u8, (local, local_port): (&str, u16), (peer, peer_port): (&str, u16)) -> CtKey {
    CtKey {
        endpoint_protocol: 7 << 8 | u32::from(protocol),
        local_port,
        peer_port,
        local: ip(local).into(),
        peer: ip(peer).into(),
    }
}

/// The pod `prod/api-0` (endpoint 7) is asked by `prod/web-1`.
fn asked() -> CtKey {
    key(IPPROTO_TCP, ("10.0.0.10", 8080), ("10.0.0.21", 34512))
}

/// That flow is allowed.
fn started() -> Event {
    Event {
        time: 62_123_456_789,
        key: asked(),
        decision: Decision::new(true, false, 1),
        kind: EventKind::Started as u8,
        reason: Reason::Allowed as u8,
        direction: Direction::Ingress as u8,
        tcp_flags: TCP_SYN as u8,
        flags: CtEntry::OPENED_BY_PEER,
        ifindex: 12,
        packets: [0, 1],
        bytes: [0, 60],
        ..Event::default()
    }
}

/// A packet of that flow, or another one of `prod/api-0`, is denied.
fn denied(reason: Reason, direction: Direction) -> Event {
    Event {
        time: SECOND,
        key: asked(),
        decision: Decision::new(false, false, 2),
        kind: EventKind::Denied as u8,
        reason: reason as u8,
        direction: direction as u8,
        packets: [1, 0],
        ..Event::default()
    }
}

/// Compares, or writes the file.
fn golden(name: &str, item: &Item, line: &str) {
    let mut bytes = Vec::new();
    item.write_line("n1", &mut bytes);
    let written: Line<'_> = serde_json::from_slice(&bytes).expect("what was written can be read");
    if let Item::Record(record) = item {
        // The log's way, twice: what is kept from the first time must be right the second time.
        let mut encoder = Encoder::default();
        for _ in 0..2 {
            let mut fast = Vec::new();
            encoder.line(record, &mut fast);
            assert_eq!(
                String::from_utf8_lossy(&fast),
                String::from_utf8_lossy(&bytes),
                "{name}"
            );
        }
        assert_eq!(
            written,
            Line::Flow(Box::new(record.json())),
            "the round trip loses nothing"
        );
    }
    let stripped = anstream::adapter::strip_str(&text::line(&written)).to_string();
    assert_eq!(stripped, line, "{name}");

    let value: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    let json = serde_json::to_string_pretty(&value).expect("JSON") + "\n";
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("src/flow/golden/{name}.json"));
    if std::env::var_os("WEIR_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("makes the directory");
        std::fs::write(&path, &json).expect("writes the golden file");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(json, expected, "{name}: WEIR_BLESS=1 writes what is right now");
}

fn golden_record(name: &str, record: FlowRecord, line: &str) {
    golden(name, &Item::Record(Arc::new(record)), line);
}

#[test]
fn a_started_flow_says_who_allowed_it() {
    golden_record(
        "started",
        told(&names(), &started()),
        "Nov 22 17:01:02.123  prod/web-1:34512 -> prod/api-0:8080  to-endpoint FORWARDED (TCP SYN) allowed by \
         NetworkPolicy prod/allow-web #0",
    );
}

#[test]
fn a_flow_says_what_staged_policies_would_do() {
    let event = Event {
        ifindex: 0,
        ..started()
    };
    let names = names();
    let mut record = told(&names, &event);
    assert_eq!(record.staged, None, "nothing is staged");
    record.staged = names.trace(2).cloned();
    golden_record(
        "staged",
        record,
        "Nov 22 17:01:02.123  prod/web-1:34512 -> prod/api-0:8080  to-endpoint FORWARDED (TCP SYN) allowed by \
         NetworkPolicy prod/allow-web #0; staged: DROPPED by deny-all",
    );
}

#[test]
fn a_denied_flow_says_who_denied_it() {
    let event = Event {
        key: key(IPPROTO_UDP, ("10.0.0.10", 40000), ("192.0.2.1", 53)),
        decision: Decision::new(false, true, 2),
        bytes: [70, 0],
        ..denied(Reason::PolicyDenied, Direction::Egress)
    };
    golden_record(
        "denied",
        told(&names(), &event),
        "Nov 22 17:00:01.000  prod/api-0:40000 -> 192.0.2.1:53  from-endpoint DROPPED (UDP) denied at the end of tier \
         default (last: NetworkPolicy prod/deny-all) [log]",
    );
}

#[test]
fn a_spoofed_source_is_no_doing_of_a_policy() {
    let event = Event {
        key: key(IPPROTO_TCP, ("2001:db8::bad", 1), ("2001:db8::21", 80)),
        decision: Decision::default(),
        tcp_flags: (TCP_SYN | TCP_ACK) as u8,
        bytes: [80, 0],
        ..denied(Reason::SpoofedSource, Direction::Egress)
    };
    golden_record(
        "spoofed",
        told(&names(), &event),
        "Nov 22 17:00:01.000  prod/api-0:1 -> prod/web-1:80  from-endpoint DROPPED INVALID_SOURCE_IP (TCP SYN,ACK)",
    );
}

#[test]
fn an_ended_flow_says_how_much_went_both_ways() {
    let event = Event {
        time: 75 * SECOND,
        created: 62 * SECOND,
        key: asked(),
        decision: Decision::new(true, false, 1),
        kind: EventKind::Ended as u8,
        reason: Reason::Established as u8,
        direction: Direction::Egress as u8,
        tcp_flags: (TCP_FIN | TCP_ACK) as u8,
        flags: CtEntry::OPENED_BY_PEER,
        packets: [10, 12],
        bytes: [1_234_567, 890],
        ..Event::default()
    };
    golden_record(
        "ended",
        told(&names(), &event),
        "Nov 22 17:01:15.000  prod/web-1:34512 -> prod/api-0:8080  to-endpoint FORWARDED (TCP) ended after 13s, \
         12 packets 890 B out, 10 packets 1.2 MB back, allowed by NetworkPolicy prod/allow-web #0",
    );
}

#[test]
fn a_cut_flow_is_denied_as_it_was_opened() {
    // The packet that was stopped is an answer of the pod.
    let event = Event {
        tcp_flags: TCP_ACK as u8,
        bytes: [52, 0],
        ..denied(Reason::PolicyCut, Direction::Egress)
    };
    let record = record(&names(), |context| {
        context.event(&event, Some(Direction::Ingress)).expect("a record")
    });
    assert_eq!(record.direction, Direction::Ingress);
    assert_eq!((record.source.port, record.destination.port), (34512, 8080));
    assert_eq!(record.packets, [0, 1], "an answer");
}

fn connection(protocol: u8) -> CtEntry {
    CtEntry {
        decision: Decision::new(true, false, 3),
        created: 10 * SECOND,
        opener_icmp: if protocol == IPPROTO_ICMP { 8 << 8 } else { 128 << 8 },
        sides: [
            CtSide {
                last_seen: 69 * SECOND,
                packets: 60,
                bytes: 5040,
                ..CtSide::default()
            },
            CtSide {
                last_seen: 68 * SECOND,
                packets: 59,
                bytes: 4956,
                ..CtSide::default()
            },
        ],
        ..CtEntry::default()
    }
}

#[test]
fn a_flow_that_lasts_says_how_much_so_far() {
    let key = key(IPPROTO_ICMP, ("10.0.0.10", 4711), ("10.0.1.1", 8));
    golden_record(
        "ongoing",
        record(&names(), |context| {
            context.connection(&key, &connection(IPPROTO_ICMP), false, 70 * SECOND)
        }),
        "Nov 22 17:01:10.000  prod/api-0 -> node/n2  from-endpoint FORWARDED (ICMPv4 EchoRequest) open after 59s, \
         60 packets 5.0 kB out, 59 packets 5.0 kB back",
    );
}

#[test]
fn a_flow_that_timed_out_has_ended_with_its_last_packet() {
    let key = key(IPPROTO_ICMPV6, ("2001:db8::10", 4711), ("2001:db8::ffff", 128));
    golden_record(
        "timed-out",
        record(&names(), |context| {
            context.connection(&key, &connection(IPPROTO_ICMPV6), true, 100 * SECOND)
        }),
        "Nov 22 17:01:40.000  prod/api-0 -> 2001:db8::ffff  from-endpoint FORWARDED (ICMPv6 EchoRequest) ended after 59s, \
         60 packets 5.0 kB out, 59 packets 5.0 kB back",
    );
}

#[test]
fn a_probe_of_the_node_is_no_doing_of_a_policy() {
    let event = Event {
        time: SECOND,
        key: key(IPPROTO_TCP, ("10.0.0.10", 8080), ("10.0.0.1", 50000)),
        decision: Decision::new(true, false, 0),
        reason: Reason::Node as u8,
        flags: CtEntry::OPENED_BY_PEER | CtEntry::NODE,
        ifindex: 0,
        ..started()
    };
    golden_record(
        "node",
        told(&names(), &event),
        "Nov 22 17:00:01.000  node/n1:50000 -> prod/api-0:8080  to-endpoint FORWARDED (TCP SYN) from the pod's own node",
    );
}

#[test]
fn repeated_denials_are_one_record_with_a_count() {
    let denial = DenialEntry {
        first: 2 * SECOND,
        last: 44 * SECOND,
        packets: 17,
        bytes: 1020,
        decision: Decision::new(false, false, 2),
        reason: Reason::PolicyDenied as u8,
        direction: Direction::Ingress as u8,
        ..DenialEntry::default()
    };
    golden_record(
        "denied-again",
        record(&names(), |context| context.denial(&asked(), &denial, 65 * SECOND)),
        "Nov 22 17:01:05.000  prod/web-1:34512 -> prod/api-0:8080  to-endpoint DROPPED (TCP) 17 packets in 42s, denied at \
         the end of tier default (last: NetworkPolicy prod/deny-all)",
    );
}

#[test]
fn lost_events_are_a_line_of_their_own() {
    let lost = Item::Lost {
        time: CLOCK.wall(SECOND),
        lost: LostEvent {
            source: LossSource::PerfEventRingBuffer,
            num_events_lost: 42,
        },
    };
    golden(
        "lost",
        &lost,
        "Nov 22 17:00:01.000  42 events lost (PerfEventRingBuffer)",
    );
}

/// Everything that the golden records leave out: every reason, event, direction, protocol, and names that need escapes.
#[test]
fn both_ways_to_json_agree_on_everything() {
    let names = names();
    let mut encoder = Encoder::default();
    let mut compared = 0;
    for reason in Reason::ALL {
        for (kind, protocol) in [(1, 6), (2, 17), (3, 132), (2, 1), (1, 58), (3, 47)] {
            for direction in [Direction::Egress, Direction::Ingress] {
                let number = (compared % 256) as u8;
                let event = Event {
                    time: compared * 777_777_777,
                    created: compared * 333,
                    key: key(
                        protocol,
                        ("10.0.0.10", 1),
                        (if compared % 2 == 0 { "10.0.0.21" } else { "8.8.8.8" }, 2),
                    ),
                    decision: Decision::new(true, compared % 3 == 0, (compared % 5) as u32),
                    kind,
                    reason: *reason as u8,
                    direction: direction as u8,
                    tcp_flags: number,
                    flags: u16::from(number) & 7,
                    icmp: u16::from_be_bytes([number, 3]),
                    ifindex: number.into(),
                    packets: [compared, u64::MAX],
                    bytes: [0, compared],
                };
                let mut record = told(&names, &event);
                record.node = Arc::from("n\"1\\\u{7}");
                if compared % 4 == 0 {
                    record.verdict = super::json::Verdict::Audit;
                }
                let (mut slow, mut fast) = (Vec::new(), Vec::new());
                Item::Record(Arc::new(record.clone())).write_line("n1", &mut slow);
                encoder.line(&record, &mut fast);
                assert_eq!(String::from_utf8_lossy(&fast), String::from_utf8_lossy(&slow));
                compared += 1;
            }
        }
    }
    assert!(compared > 250);
}

#[test]
fn an_auditing_agent_reports_denials_as_what_they_would_be() {
    let names = names();
    let event = denied(Reason::PolicyDenied, Direction::Ingress);
    let record = Context {
        names: &names,
        clock: CLOCK,
        node: &Arc::from("n1"),
        audit: true,
    }
    .event(&event, None)
    .expect("a record");
    let json = record.json();
    assert_eq!(json.verdict, super::json::Verdict::Audit);
    assert_eq!(json.drop_reason_desc, None);
    assert_eq!(json.ingress_denied_by.len(), 1);
}

#[test]
fn events_of_a_kind_that_is_not_known_are_left_out() {
    let names = names();
    let event = Event {
        kind: 77,
        ..Event::default()
    };
    assert_eq!(record(&names, |context| context.event(&event, None)), None);
}

#[test]
fn a_pod_without_a_name_yet_is_told_by_its_address() {
    let mut names = Names::default();
    let event = Event {
        key: asked(),
        kind: EventKind::Started as u8,
        ..Event::default()
    };
    let address_only = told(&names, &event);
    assert_eq!(address_only.source.name, None);
    names.set_endpoint(7, Some(pod("prod", "api-0", &[])));
    let named = told(&names, &event);
    assert!(named.source.name.is_some());
}
