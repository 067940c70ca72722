//! A record as one line for people.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use jiff::{Timestamp, Unit, tz::TimeZone};

use super::json::{Endpoint, Flow, FlowEvent, Layer4, Line, Lost, TrafficDirection, Verdict, Weir};
use crate::control::query::PolicyName;

const GREEN: Style = AnsiColor::Green.on_default();
const RED: Style = AnsiColor::Red.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const CYAN: Style = AnsiColor::Cyan.on_default();
const DIM: Style = Style::new().dimmed();

/// The line without its newline, with colours (the stream strips them where they do not belong).
#[must_use]
pub fn line(line: &Line<'_>) -> String {
    match line {
        Line::Flow(record) => flow(record),
        Line::Lost(record) => lost(record),
    }
}

fn lost(record: &Lost<'_>) -> String {
    format!(
        "{DIM}{}{DIM:#}  {YELLOW}{} events lost{YELLOW:#} ({:?})",
        time(record.time),
        record.lost_events.num_events_lost,
        record.lost_events.source
    )
}

fn flow(record: &Flow<'_>) -> String {
    let ports = record.l4.and_then(|l4| l4.ports());
    let point = match record.traffic_direction {
        TrafficDirection::Ingress => "to-endpoint",
        TrafficDirection::Egress => "from-endpoint",
    };
    let colour = match record.verdict {
        Verdict::Forwarded => GREEN,
        Verdict::Dropped => RED,
        Verdict::Audit => YELLOW,
    };
    let mut text = format!(
        "{DIM}{}{DIM:#}  {} -> {}  {point} {colour}{}{colour:#}",
        time(record.time),
        party(&record.source, record.ip.source, ports.map(|(source, _)| source)),
        party(&record.destination, record.ip.destination, ports.map(|(_, port)| port)),
        record.verdict.name(),
    );
    let weir = &record.weir;
    if let Some(reason) = record
        .drop_reason_desc
        .as_deref()
        .filter(|reason| *reason != "POLICY_DENIED")
    {
        text.push(' ');
        text.push_str(reason);
    }
    // Writing to a String cannot fail.
    let _ = write!(text, " ({})", traffic(record));
    let before = text.len();
    match weir.event {
        FlowEvent::Started => {}
        FlowEvent::Ongoing | FlowEvent::Ended => {
            let word = if weir.event == FlowEvent::Ended {
                "ended"
            } else {
                "open"
            };
            let _ = write!(text, " {word} after {}, {}", duration(weir, record.time), volume(weir));
        }
        FlowEvent::Denied => {
            if let Some(count) = weir.count.filter(|count| *count > 1) {
                let _ = write!(text, " {count} packets in {}", duration(weir, record.time));
            }
        }
    }
    let decided_by = decided_by(record);
    if text.len() > before && !decided_by.is_empty() {
        text.push(',');
    }
    text.push_str(&decided_by);
    if let Some(staged) = weir.staged.as_ref().filter(|staged| staged.verdict != record.verdict) {
        let _ = write!(text, "; staged: {YELLOW}{}{YELLOW:#}", staged.verdict.name());
        if let Some(policy) = staged.hits.last().and_then(|hit| hit.policy.as_ref()) {
            let _ = write!(text, " by {}", policy.name);
        }
    }
    text
}

/// `Nov 22 17:01:02.123`, UTC.
fn time(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%b %d %H:%M:%S%.3f").to_string()
}

fn party(endpoint: &Endpoint<'_>, address: std::net::IpAddr, port: Option<u16>) -> String {
    let name = match (&endpoint.namespace, &endpoint.pod_name, &endpoint.node_name) {
        (Some(namespace), Some(pod), _) => format!("{CYAN}{namespace}/{pod}{CYAN:#}"),
        (_, _, Some(node)) => format!("node/{node}"),
        _ if address.is_ipv6() && port.is_some() => format!("[{address}]"),
        _ => address.to_string(),
    };
    match port {
        Some(port) => format!("{name}:{port}"),
        None => name,
    }
}

/// `TCP SYN`, `UDP`, `ICMPv4 8/0`, `protocol 47`
fn traffic(record: &Flow<'_>) -> String {
    match record.l4 {
        Some(Layer4::Tcp { flags, .. }) => {
            let mut text = "TCP".to_owned();
            if matches!(record.weir.event, FlowEvent::Started | FlowEvent::Denied) {
                for (index, name) in flags.names().enumerate() {
                    text.push(if index == 0 { ' ' } else { ',' });
                    text.push_str(name);
                }
            }
            text
        }
        Some(Layer4::Udp { .. }) => "UDP".to_owned(),
        Some(Layer4::Sctp { .. }) => "SCTP".to_owned(),
        Some(Layer4::IcmpV4 { .. } | Layer4::IcmpV6 { .. }) => record.summary.to_string(),
        None => format!("protocol {}", record.weir.protocol.unwrap_or_default()),
    }
}

fn duration(weir: &Weir<'_>, now: Timestamp) -> String {
    let span = weir.end.unwrap_or(now).duration_since(weir.start);
    let rounded = if span.as_secs() >= 10 {
        span.round(Unit::Second)
    } else {
        span.round(Unit::Millisecond)
    };
    format!("{:#}", rounded.unwrap_or(span))
}

/// `12 packets 3.4 kB forward, 10 packets 1.2 MB reply`
fn volume(weir: &Weir<'_>) -> String {
    let one = |packets: u64, bytes: u64| {
        let plural = if packets == 1 { "" } else { "s" };
        format!("{packets} packet{plural} {}", bytes_text(bytes))
    };
    format!(
        "{} out, {} back",
        one(weir.packets.forward, weir.bytes.forward),
        one(weir.packets.reply, weir.bytes.reply)
    )
}

/// Decimal units, one digit after the point.
#[must_use]
pub fn bytes_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A policy as a reader knows it: the kind of its object, namespace and name.
#[must_use]
pub fn policy_text(policy: &PolicyName) -> String {
    let kind = match policy.kind.as_str() {
        "KubernetesNetworkPolicy" => "NetworkPolicy",
        "NetworkPolicy" => "Calico NetworkPolicy",
        other => other,
    };
    match &policy.namespace {
        Some(namespace) => format!("{kind} {namespace}/{}", policy.name),
        None => format!("{kind} {}", policy.name),
    }
}

fn decided_by(record: &Flow<'_>) -> String {
    let weir = &record.weir;
    let log = if weir.log { " [log]" } else { "" };
    let word = match record.verdict {
        Verdict::Forwarded => "allowed",
        Verdict::Dropped => "denied",
        Verdict::Audit => "would be denied",
    };
    match (&weir.policy, weir.rule) {
        (Some(policy), Some(rule)) => format!(" {word} by {} #{rule}{log}", policy_text(policy)),
        (Some(policy), None) => format!(
            " {word} at the end of tier {} (last: {}){log}",
            weir.tier.as_deref().unwrap_or("?"),
            policy_text(policy)
        ),
        (None, _) if weir.reason.as_deref() == Some("NODE") => " from the pod's own node".to_owned(),
        (None, _) => log.to_owned(),
    }
}
