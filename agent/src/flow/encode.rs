//! The flow log's own way from a record to its line: the same bytes as [`FlowRecord::json`] through serde, in a
//! fraction of the time. What many records share (pods, judgements, the second) is rendered once.
//!
//! The shape is defined in [`super::json`]; the tests compare both ways for every kind of record.

use std::{io::Write, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use rustc_hash::FxHashMap;
use serde::Serialize;
use weir_common::{
    Direction,
    policy::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP},
};

use super::{
    directory::{Name, PodInfo},
    json::{self, EventType, FlowEvent, TcpFlags, Verdict},
    record::{End, FlowRecord},
    render::{self, drop_reason_number},
};
use crate::policy::model::Judgement;

/// Rendered pods and judgements that are kept; more than that are rendered again.
const KEPT: usize = 4096;

/// What serde made of a part, without its outer braces.
type Fragment = Box<[u8]>;

/// The parts of a record that come from its judgement.
struct Ruling {
    /// `"ingress_allowed_by":[…],` and so on; empty where no policy decided.
    by: [Fragment; 2],
    /// `"tier":…,"policy":…,"rule":…,"rule_name":…,"hits":[…],`
    weir: Fragment,
}

/// Renders records of one node. Owned by whoever writes lines.
pub struct Encoder {
    /// By the address of what they were made of, which is kept alive.
    pods: FxHashMap<usize, (Arc<PodInfo>, Fragment)>,
    rulings: FxHashMap<usize, (Arc<Judgement>, Ruling)>,
    seconds: [(i64, [u8; 19]); 2],
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            pods: FxHashMap::default(),
            rulings: FxHashMap::default(),
            seconds: [(i64::MIN, [b'?'; 19]); 2],
        }
    }
}

impl Encoder {
    /// Appends the record as one line, with its newline.
    pub fn line(&mut self, record: &FlowRecord, out: &mut Vec<u8>) {
        let dropped = record.verdict == Verdict::Dropped;
        let drop_reason = record.reason.filter(|_| dropped);
        out.extend_from_slice(b"{\"time\":");
        self.time(record.time, out);
        text(out, ",\"verdict\":\"");
        text(out, record.verdict.name());
        text(out, "\"");
        if let Some(reason) = drop_reason {
            text(out, ",\"drop_reason\":");
            number(out, drop_reason_number(reason).into());
        }
        addresses(record, out);
        layer4(record, out);
        text(out, ",\"source\":");
        self.end(&record.source, out);
        text(out, ",\"destination\":");
        self.end(&record.destination, out);
        text(out, ",\"Type\":\"L3_L4\",\"node_name\":");
        quoted(out, &record.node);
        text(out, ",\"event_type\":{\"type\":");
        let (kind, sub_type) = match (drop_reason, record.direction) {
            (Some(reason), _) => (EventType::DROP, drop_reason_number(reason)),
            (None, Direction::Ingress) => (EventType::TRACE, EventType::TRACE_TO_ENDPOINT),
            (None, Direction::Egress) => (EventType::TRACE, EventType::TRACE_FROM_ENDPOINT),
        };
        number(out, if dropped { EventType::DROP } else { kind }.into());
        text(out, ",\"sub_type\":");
        number(out, sub_type.into());
        text(
            out,
            match (record.direction, dropped) {
                (Direction::Ingress, false) => {
                    "},\"traffic_direction\":\"INGRESS\",\"trace_observation_point\":\"TO_ENDPOINT\""
                }
                (Direction::Egress, false) => {
                    "},\"traffic_direction\":\"EGRESS\",\"trace_observation_point\":\"FROM_ENDPOINT\""
                }
                (Direction::Ingress, true) => "},\"traffic_direction\":\"INGRESS\"",
                (Direction::Egress, true) => "},\"traffic_direction\":\"EGRESS\"",
            },
        );
        if let Some(reason) = drop_reason {
            text(out, ",\"drop_reason_desc\":\"");
            text(out, reason.name());
            text(out, "\"");
        }
        text(out, ",\"is_reply\":false,");
        if record.ifindex != 0 {
            text(out, "\"interface\":{\"index\":");
            number(out, record.ifindex.into());
            text(out, "},");
        }
        if let Some(ruling) = self.ruling(record) {
            out.extend_from_slice(&ruling.by[record.direction as usize]);
        }
        text(out, "\"Summary\":");
        quoted(out, &record.summary());
        self.weir(record, out);
        text(out, "}\n");
    }

    fn weir(&mut self, record: &FlowRecord, out: &mut Vec<u8>) {
        text(
            out,
            match record.event {
                FlowEvent::Started => ",\"weir\":{\"event\":\"started\",",
                FlowEvent::Ongoing => ",\"weir\":{\"event\":\"ongoing\",",
                FlowEvent::Ended => ",\"weir\":{\"event\":\"ended\",",
                FlowEvent::Denied => ",\"weir\":{\"event\":\"denied\",",
            },
        );
        if let Some(reason) = record.reason {
            text(out, "\"reason\":\"");
            text(out, reason.name());
            text(out, "\",");
        }
        if let Some(ruling) = self.ruling(record) {
            out.extend_from_slice(&ruling.weir);
        }
        if record.log {
            text(out, "\"log\":true,");
        }
        if let Some(staged) = &record.staged {
            text(out, "\"staged\":");
            render_into(out, &render::staged(staged));
            text(out, ",");
        }
        for (name, [forward, reply]) in [("\"packets\"", record.packets), ("\"bytes\"", record.bytes)] {
            text(out, name);
            text(out, ":{\"forward\":");
            number(out, forward);
            text(out, ",\"reply\":");
            number(out, reply);
            text(out, "},");
        }
        text(out, "\"start\":");
        self.time(record.start, out);
        if let Some(end) = record.end {
            text(out, ",\"end\":");
            self.time(end, out);
        }
        if let Some(count) = record.count {
            text(out, ",\"count\":");
            number(out, count);
        }
        if record.ports().is_none() && !record.is_icmp() {
            text(out, ",\"protocol\":");
            number(out, record.protocol.into());
        }
        if record.adopted {
            text(out, ",\"adopted\":true");
        }
        text(out, ",\"endpoint\":");
        number(out, record.endpoint.into());
        text(out, "}");
    }

    fn end(&mut self, end: &End, out: &mut Vec<u8>) {
        let Some(Name::Pod(pod)) = &end.name else {
            render_into(out, &render::endpoint(end));
            return;
        };
        text(out, "{");
        if let Some(id) = end.endpoint {
            text(out, "\"ID\":");
            number(out, id.into());
            text(out, ",");
        }
        let key = Arc::as_ptr(pod).addr();
        if let Some((_, fragment)) = self.pods.get(&key) {
            out.extend_from_slice(fragment);
        } else {
            let anonymous = End {
                endpoint: None,
                ..end.clone()
            };
            let fragment = inner(&render::endpoint(&anonymous));
            out.extend_from_slice(&fragment);
            if self.pods.len() >= KEPT {
                self.pods.clear();
            }
            self.pods.insert(key, (pod.clone(), fragment));
        }
        text(out, "}");
    }

    fn ruling(&mut self, record: &FlowRecord) -> Option<&Ruling> {
        let judgement = record.judgement.as_ref()?;
        let key = Arc::as_ptr(judgement).addr();
        if !self.rulings.contains_key(&key) {
            if self.rulings.len() >= KEPT {
                self.rulings.clear();
            }
            self.rulings.insert(key, (judgement.clone(), rule(record)));
        }
        self.rulings.get(&key).map(|(_, ruling)| ruling)
    }

    /// RFC 3339 with nine digits. The text of a second is kept: records come in bursts.
    fn time(&mut self, time: Timestamp, out: &mut Vec<u8>) {
        let nanosecond = time.as_nanosecond();
        let (second, fraction) = (
            nanosecond.div_euclid(1_000_000_000) as i64,
            nanosecond.rem_euclid(1_000_000_000) as u64,
        );
        // A flow's start and its record's time are two seconds that take turns.
        if self.seconds[0].0 != second {
            self.seconds.swap(0, 1);
        }
        if self.seconds[0].0 != second {
            let whole = Timestamp::from_second(second)
                .unwrap_or(Timestamp::UNIX_EPOCH)
                .to_string();
            let Ok(digits) = <[u8; 19]>::try_from(&whole.as_bytes()[..whole.len().min(19)]) else {
                // A year of more than four digits: seldom enough.
                render_into(out, &format!("{time:.9}"));
                return;
            };
            self.seconds[0] = (second, digits);
        }
        let mut text = *b"\"0000-00-00T00:00:00.000000000Z\"";
        text[1..20].copy_from_slice(&self.seconds[0].1);
        let mut rest = fraction;
        for digit in text[21..30].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&text);
    }
}

/// The parts of a judgement, as seen from both directions.
fn rule(record: &FlowRecord) -> Ruling {
    /// The first fields of [`json::Weir`] that come from the judgement, in its order.
    #[derive(Serialize)]
    struct Part<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        tier: &'a Option<std::borrow::Cow<'a, str>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        policy: &'a Option<crate::control::query::PolicyName>,
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        rule_name: &'a Option<std::borrow::Cow<'a, str>>,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        hits: &'a [crate::control::explain::HitReport],
    }
    #[derive(Serialize)]
    struct By<'a> {
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        egress_allowed_by: &'a [json::Policy<'a>],
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        ingress_allowed_by: &'a [json::Policy<'a>],
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        egress_denied_by: &'a [json::Policy<'a>],
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        ingress_denied_by: &'a [json::Policy<'a>],
    }
    let mut record = record.clone();
    let mut by = |direction| {
        record.direction = direction;
        let flow = record.json();
        with_comma(inner(&By {
            egress_allowed_by: &flow.egress_allowed_by,
            ingress_allowed_by: &flow.ingress_allowed_by,
            egress_denied_by: &flow.egress_denied_by,
            ingress_denied_by: &flow.ingress_denied_by,
        }))
    };
    let by = [by(Direction::Egress), by(Direction::Ingress)];
    let weir = record.json().weir;
    Ruling {
        by,
        weir: with_comma(inner(&Part {
            tier: &weir.tier,
            policy: &weir.policy,
            rule: weir.rule,
            rule_name: &weir.rule_name,
            hits: &weir.hits,
        })),
    }
}

fn addresses(record: &FlowRecord, out: &mut Vec<u8>) {
    text(out, ",\"IP\":{\"source\":\"");
    address(out, record.source.address);
    text(out, "\",\"destination\":\"");
    address(out, record.destination.address);
    text(
        out,
        if record.source.address.is_ipv4() {
            "\",\"ipVersion\":\"IPv4\"}"
        } else {
            "\",\"ipVersion\":\"IPv6\"}"
        },
    );
}

fn layer4(record: &FlowRecord, out: &mut Vec<u8>) {
    let name = match record.protocol {
        IPPROTO_TCP => ",\"l4\":{\"TCP\":{",
        IPPROTO_UDP => ",\"l4\":{\"UDP\":{",
        IPPROTO_SCTP => ",\"l4\":{\"SCTP\":{",
        IPPROTO_ICMP => ",\"l4\":{\"ICMPv4\":{",
        IPPROTO_ICMPV6 => ",\"l4\":{\"ICMPv6\":{",
        _ => return,
    };
    text(out, name);
    if let Some((source, destination)) = record.ports() {
        text(out, "\"source_port\":");
        number(out, source.into());
        text(out, ",\"destination_port\":");
        number(out, destination.into());
    } else {
        let [kind, code] = record.icmp.to_be_bytes();
        text(out, "\"type\":");
        number(out, kind.into());
        text(out, ",\"code\":");
        number(out, code.into());
    }
    if record.protocol == IPPROTO_TCP {
        text(out, ",\"flags\":");
        render_into(out, &TcpFlags::from_bits(record.tcp_flags));
    }
    text(out, "}}");
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

/// A string, escaped as JSON asks for.
fn quoted(out: &mut Vec<u8>, text: &str) {
    render_into(out, &text);
}

fn number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            for (index, octet) in address.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                number(out, octet.into());
            }
        }
        // Writing to a Vec cannot fail.
        IpAddr::V6(address) => drop(write!(out, "{address}")),
    }
}

/// Through serde. Nothing here has maps with odd keys, and a Vec takes all.
fn render_into<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    let before = out.len();
    if serde_json::to_writer(&mut *out, value).is_err() {
        out.truncate(before);
        out.extend_from_slice(b"null");
    }
}

/// The fields of an object, without its braces.
fn inner<T: Serialize>(value: &T) -> Fragment {
    let mut bytes = Vec::new();
    render_into(&mut bytes, value);
    let end = bytes.len().saturating_sub(1);
    bytes.get(1..end).unwrap_or_default().into()
}

fn with_comma(fragment: Fragment) -> Fragment {
    if fragment.is_empty() {
        return fragment;
    }
    let mut bytes = fragment.into_vec();
    bytes.push(b',');
    bytes.into()
}
