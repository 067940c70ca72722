//! One rule, and what becomes of one that is not understood.

use weir_common::Direction;

use super::{
    entity::{End, Ends, ServiceName},
    value::{bounded, integer, protocol},
};
use crate::{
    api::{
        at::{At, Report, Reported, described, quoted},
        object::ServiceRule,
    },
    policy::model::{Action, Family, IcmpMatch, PeerMatch, PortMatch, Rule, TrafficMatch},
};

const TCP: u8 = weir_common::policy::IPPROTO_TCP;
const UDP: u8 = weir_common::policy::IPPROTO_UDP;
const SCTP: u8 = weir_common::policy::IPPROTO_SCTP;
const ICMP: u8 = weir_common::policy::IPPROTO_ICMP;
const ICMPV6: u8 = weir_common::policy::IPPROTO_ICMPV6;

/// Rules of one direction that Calico's API server allows.
pub(super) const MOST_RULES: usize = 1024;

/// The rules of a policy, as far as they are understood.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) rules: Vec<Rule>,
    /// Those that name a Service. In `rules` they match nothing.
    pub(super) services: Vec<ServiceRule>,
    /// Some of them were not understood.
    pub(super) partial: bool,
}

/// Reads the rules of one direction; none if they are absent.
pub(super) fn rules(spec: &At<'_>, direction: Direction, namespace: Option<&str>, report: &mut Report) -> Rules {
    let mut out = Rules::default();
    let Some(list) = spec.get(list_name(direction)) else {
        return out;
    };
    let Ok(elements) = list.elements(report) else {
        out.partial = true;
        out.rules.push(everything_denied(0));
        return out;
    };
    for (index, at) in (0..).zip(elements) {
        let action = action(&at, report);
        let read = rule(&at, action.as_ref().ok().copied(), index, direction, namespace, report);
        let (Ok(action), Ok((mut rule, service))) = (action, read) else {
            out.partial = true;
            out.rules.push(not_understood(action.ok(), index));
            continue;
        };
        rule.action = action;
        match service {
            Some((namespace, name)) => {
                out.rules.push(nothing(action, index));
                out.services.push(ServiceRule {
                    direction,
                    position: out.rules.len() - 1,
                    namespace,
                    name,
                    rule,
                });
            }
            None => out.rules.push(rule),
        }
    }
    if out.rules.len() > MOST_RULES {
        report.error(
            list.path(),
            format!("has {} rules; Calico refuses more than {MOST_RULES}", out.rules.len()),
            "spread them over several policies",
        );
    }
    out
}

pub(super) const fn list_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "ingress",
        Direction::Egress => "egress",
    }
}

/// A rule that matches nothing.
fn nothing(action: Action, index: u32) -> Rule {
    Rule {
        action,
        index,
        name: None,
        peers: Some(Vec::new()),
        local: None,
        traffic: Vec::new(),
    }
}

fn everything_denied(index: u32) -> Rule {
    Rule {
        action: Action::Deny,
        index,
        name: None,
        peers: None,
        local: None,
        traffic: vec![TrafficMatch::ANY],
    }
}

/// Fails closed: what might allow matches nothing, all else denies everything.
fn not_understood(action: Option<Action>, index: u32) -> Rule {
    match action {
        Some(action @ (Action::Allow | Action::Log)) => nothing(action, index),
        Some(Action::Deny | Action::Pass) | None => everything_denied(index),
    }
}

fn action(at: &At<'_>, report: &mut Report) -> Result<Action, Reported> {
    at.map(report)?;
    let remedy = "use Allow, Deny, Pass or Log; until then the rule denies everything in its direction";
    let Some(action) = at.get("action") else {
        return Err(report.error(at.path_of("action"), "is missing", remedy));
    };
    let text = action.string(report)?;
    [
        ("Allow", Action::Allow),
        ("Deny", Action::Deny),
        ("Pass", Action::Pass),
        ("Log", Action::Log),
    ]
    .into_iter()
    .find(|(name, _)| name.eq_ignore_ascii_case(text))
    .map(|(_, action)| action)
    .ok_or_else(|| report.error(action.path(), format!("{} is no action", quoted(text)), remedy))
}

/// A rule without its action's meaning.
fn rule(
    at: &At<'_>,
    action: Option<Action>,
    index: u32,
    direction: Direction,
    namespace: Option<&str>,
    report: &mut Report,
) -> Result<(Rule, Option<ServiceName>), Reported> {
    let ingress = direction == Direction::Ingress;
    let mut ends = Ends {
        namespace,
        family: None,
    };
    // All of it is looked at before giving up, so that all that is wrong is told at once.
    let source = ends.end(at.get("source"), ingress, report);
    let destination = ends.end(at.get("destination"), !ingress, report);
    let protocols = protocols(at, report);
    let version = ip_version(at, report);
    let icmp = icmp(at, "icmp", report);
    let not_icmp = icmp_negated(at, report);
    let http = http(at, action, direction, report);
    let (source, destination, version) = (source?, destination?, version?);
    let (protocol, not_protocol) = protocols?;
    let family = family(at, version, ends.family, protocol, report)?;
    check_icmp(at, protocol, report)?;
    check_ports(at, "source", &source, protocol, report)?;
    check_ports(at, "destination", &destination, protocol, report)?;
    if destination.service.is_some() && destination.all_ports().next().is_some() {
        return Err(report.error(
            at.path_of("destination"),
            "ports cannot stand together with services, which have their own",
            "remove ports and notPorts",
        ));
    }
    if http? {
        return Ok((nothing(Action::Allow, index), None));
    }
    let (mut peer, local) = if ingress {
        (source.condition(), destination.condition())
    } else {
        (destination.condition(), source.condition())
    };
    if let Some(family) = family {
        peer.get_or_insert_with(PeerMatch::default).family = Some(family);
    }
    let service = if ingress { source.service } else { destination.service };
    let rule = Rule {
        action: Action::Deny,
        index,
        name: None,
        peers: peer.map(|peer| vec![peer]),
        local,
        traffic: vec![TrafficMatch {
            protocol,
            not_protocol,
            ports: destination.ports,
            not_ports: destination.not_ports,
            source_ports: source.ports,
            not_source_ports: source.not_ports,
            icmp: icmp?,
            not_icmp: not_icmp?,
        }],
    };
    Ok((rule, service))
}

fn protocols(at: &At<'_>, report: &mut Report) -> Result<(Option<u8>, Option<u8>), Reported> {
    let read = |key, report: &mut Report| at.get(key).map(|at| protocol(&at, report)).transpose();
    let (yes, no) = (read("protocol", report), read("notProtocol", report));
    Ok((yes?, no?))
}

fn ip_version(at: &At<'_>, report: &mut Report) -> Result<Option<Family>, Reported> {
    let Some(version) = at.get("ipVersion") else {
        return Ok(None);
    };
    match integer(&version) {
        Some(4) => Ok(Some(Family::V4)),
        Some(6) => Ok(Some(Family::V6)),
        _ => Err(report.error(
            version.path(),
            format!("must be 4 or 6, is {}", described(version.value())),
            "leave it out for both",
        )),
    }
}

/// The family that the rule is for, if not for both. A list of networks of the other one would be empty, and an empty
/// list must not mean everybody.
fn family(
    at: &At<'_>,
    version: Option<Family>,
    nets: Option<Family>,
    protocol: Option<u8>,
    report: &mut Report,
) -> Result<Option<Family>, Reported> {
    let icmp = match protocol {
        Some(ICMP) => Some(Family::V4),
        Some(ICMPV6) => Some(Family::V6),
        _ => None,
    };
    let said = [version, nets, icmp];
    let first = said.into_iter().flatten().next();
    if said.into_iter().flatten().any(|family| Some(family) != first) {
        return Err(report.error(
            at.path(),
            "ipVersion, networks and protocol are of different address families",
            "write one rule for IPv4 and one for IPv6",
        ));
    }
    Ok(first)
}

fn icmp(at: &At<'_>, key: &str, report: &mut Report) -> Result<Option<IcmpMatch>, Reported> {
    let Some(icmp) = at.get(key) else {
        return Ok(None);
    };
    icmp.map(report)?;
    let code = match icmp.get("code") {
        Some(code) => Some(bounded(&code, 0..=255, report)?),
        None => None,
    };
    match icmp.get("type") {
        Some(kind) => Ok(Some(IcmpMatch {
            kind: bounded(&kind, 0..=254, report)?,
            code,
        })),
        None if code.is_some() => Err(report.error(
            icmp.path_of("type"),
            "is missing: a code alone means nothing",
            "say the type, or remove the code",
        )),
        None => Ok(None),
    }
}

fn icmp_negated(at: &At<'_>, report: &mut Report) -> Result<Option<IcmpMatch>, Reported> {
    icmp(at, "notICMP", report)
}

fn check_icmp(at: &At<'_>, protocol: Option<u8>, report: &mut Report) -> Result<(), Reported> {
    for key in ["icmp", "notICMP"] {
        if at.get(key).is_some() && !matches!(protocol, Some(ICMP | ICMPV6)) {
            return Err(report.error(
                at.path_of(key),
                "needs protocol ICMP or ICMPv6",
                "add the protocol to the rule",
            ));
        }
    }
    Ok(())
}

/// Numbers mean nothing without a protocol that has ports; names bring their own.
fn check_ports(at: &At<'_>, end: &str, ports: &End, protocol: Option<u8>, report: &mut Report) -> Result<(), Reported> {
    let mut all = ports.all_ports().peekable();
    if all.peek().is_none() {
        return Ok(());
    }
    let named_only = all.all(|port| matches!(port, PortMatch::Named(_)));
    match protocol {
        Some(TCP | UDP | SCTP) => Ok(()),
        None if named_only => Ok(()),
        _ => Err(report.error(
            format!("{}.ports", at.path_of(end)),
            "ports need protocol TCP, UDP or SCTP",
            "add the protocol to the rule, or remove the ports",
        )),
    }
}

/// Whether the rule looks into HTTP.
fn http(at: &At<'_>, action: Option<Action>, direction: Direction, report: &mut Report) -> Result<bool, Reported> {
    let Some(http) = at.get("http") else {
        return Ok(false);
    };
    http.map(report)?;
    if direction == Direction::Egress || action.is_some_and(|action| action != Action::Allow) {
        return Err(report.error(
            http.path(),
            "can only be part of ingress rules that allow",
            "remove it, or the rule",
        ));
    }
    report.error(
        http.path(),
        "HTTP is not looked into: the rule matches nothing",
        "remove the match to allow the connections whatever they carry, or leave it to a proxy",
    );
    Ok(true)
}
