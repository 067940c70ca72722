//! networking.k8s.io/v1 NetworkPolicy -> the policy model.
//!
//! Meaning: <https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/>; validity as in
//! kubernetes/pkg/apis/networking/validation. All its rules allow, so one that is not understood becomes one that
//! matches nothing.

use std::sync::Arc;

use ipnet::IpNet;

use super::{
    at::{At, Report, Reported, described, quoted},
    labels,
    object::Object,
    parse::{Context, Outcome},
};
use crate::policy::{
    model::{Action, Order, PeerMatch, Policy, PolicyKey, PolicyKind, PortMatch, Rule, Tier, TrafficMatch},
    selector::{EntityKind, Field, Selector},
};

/// Where NetworkPolicies stand among the others of their tier, as in Calico.
const ORDER: Order = Order(1_000.0);

pub(super) fn parse(cx: &mut Context<'_>) -> Outcome {
    parse_as(cx, PolicyKind::KubernetesNetworkPolicy)
}

/// The same text as an object of another kind: Calico's StagedKubernetesNetworkPolicy is never enforced.
pub(super) fn parse_as(cx: &mut Context<'_>, kind: PolicyKind) -> Outcome {
    let root = cx.root;
    let report = &mut *cx.report;
    let remedy = "say spec.podSelector and policyTypes";
    let Ok(spec) = spec(&root, "every pod of its namespace", remedy, report) else {
        return Outcome::Invalid;
    };
    // Both are wanted before giving up, so that all that is wrong is told at once.
    let subject = subject(&spec, &cx.namespace, report);
    let directions = directions(&spec, report);
    let mut partial = false;
    let ingress = rules(&spec, &INGRESS, &cx.namespace, &mut partial, report);
    let egress = rules(&spec, &EGRESS, &cx.namespace, &mut partial, report);
    let (Ok(subject), Ok((for_ingress, for_egress))) = (subject, directions) else {
        return Outcome::Invalid;
    };
    for (listed, rules, language) in [(for_ingress, &ingress, &INGRESS), (for_egress, &egress, &EGRESS)] {
        if !listed && !rules.is_empty() {
            report.warn(
                format!("spec.{}", language.list),
                "these rules are ignored: policyTypes does not list their direction",
                format!("add {} to spec.policyTypes, or remove the rules", language.policy_type),
            );
        }
    }
    let object = Object::Policy(Arc::new(Policy {
        key: PolicyKey {
            kind,
            namespace: Some(cx.namespace.clone()),
            name: cx.name.clone(),
        },
        tier: cx.interner.string(Tier::DEFAULT),
        order: ORDER,
        subject,
        ingress: for_ingress.then_some(ingress),
        egress: for_egress.then_some(egress),
        staged: kind == PolicyKind::StagedKubernetesNetworkPolicy,
    }));
    if partial {
        Outcome::Partial(object)
    } else {
        Outcome::Valid(object)
    }
}

/// The spec of a policy of any kind. One that is missing is an empty one: valid, but hardly meant so.
pub(super) fn spec<'a>(
    root: &'a At<'a>,
    isolated: &str,
    remedy: &str,
    report: &mut Report,
) -> Result<At<'a>, Reported> {
    if root.get("spec").is_none() {
        let message = format!("is missing: the policy isolates {isolated} for ingress");
        report.warn("spec", message, remedy);
    }
    let spec = root.get_or_empty("spec");
    spec.map(report)?;
    Ok(spec)
}

struct Direction {
    list: &'static str,
    peers: &'static str,
    policy_type: &'static str,
}

const INGRESS: Direction = Direction {
    list: "ingress",
    peers: "from",
    policy_type: "Ingress",
};
const EGRESS: Direction = Direction {
    list: "egress",
    peers: "to",
    policy_type: "Egress",
};

fn subject(spec: &At<'_>, namespace: &str, report: &mut Report) -> Result<Selector, Reported> {
    let mut parts = vec![is_pod(), Selector::equals(Field::Namespace, namespace)];
    if let Some(selector) = spec.get("podSelector") {
        parts.extend(labels::selector(&selector, Field::Label, report)?);
    }
    parts.shrink_to_fit();
    Ok(Selector::And(parts))
}

fn is_pod() -> Selector {
    Selector::equals(Field::Kind, EntityKind::Pod.name())
}

/// Whether the policy speaks about ingress, and about egress.
fn directions(spec: &At<'_>, report: &mut Report) -> Result<(bool, bool), Reported> {
    let mut listed = (false, false);
    if let Some(types) = spec.get("policyTypes") {
        for policy_type in types.elements(report)? {
            match policy_type.string(report)? {
                "Ingress" => listed.0 = true,
                "Egress" => listed.1 = true,
                other => {
                    return Err(report.error(
                        policy_type.path(),
                        format!("{} is no policy type", quoted(other)),
                        "use Ingress or Egress (as written here)",
                    ));
                }
            }
        }
    }
    if listed == (false, false) {
        // An empty list of egress rules does not make it an egress policy. A value that is no list might.
        let egress = spec
            .get("egress")
            .is_some_and(|egress| egress.value().as_array().is_none_or(|rules| !rules.is_empty()));
        listed = (true, egress);
    }
    Ok(listed)
}

fn rules(spec: &At<'_>, direction: &Direction, namespace: &str, partial: &mut bool, report: &mut Report) -> Vec<Rule> {
    let Some(list) = spec.get(direction.list) else {
        return Vec::new();
    };
    let Ok(elements) = list.elements(report) else {
        *partial = true;
        return Vec::new();
    };
    (0..)
        .zip(elements)
        .map(|(index, at)| match rule(&at, direction, namespace, report) {
            Ok((peers, traffic)) => Rule {
                action: Action::Allow,
                index,
                name: None,
                peers,
                local: None,
                traffic,
            },
            Err(Reported) => {
                *partial = true;
                Rule {
                    action: Action::Allow,
                    index,
                    name: None,
                    peers: Some(Vec::new()),
                    local: None,
                    traffic: Vec::new(),
                }
            }
        })
        .collect()
}

type Matches = (Option<Vec<PeerMatch>>, Vec<TrafficMatch>);

fn rule(at: &At<'_>, direction: &Direction, namespace: &str, report: &mut Report) -> Result<Matches, Reported> {
    at.map(report)?;
    let peers = match at.get(direction.peers) {
        Some(list) => all(&list, report, |element, report| peer(element, namespace, report)),
        None => Ok(Vec::new()),
    };
    let ports = match at.get("ports") {
        Some(list) => all(&list, report, port),
        None => Ok(Vec::new()),
    };
    let peers = peers?;
    // An empty list is no condition.
    Ok(((!peers.is_empty()).then_some(peers), traffic(ports?)))
}

/// Every element, or what is wrong with each that is not understood.
fn all<T>(
    list: &At<'_>,
    report: &mut Report,
    mut parse: impl FnMut(&At<'_>, &mut Report) -> Result<T, Reported>,
) -> Result<Vec<T>, Reported> {
    let mut out = Vec::new();
    let mut broken = false;
    for element in list.elements(report)? {
        match parse(&element, report) {
            Ok(value) => out.push(value),
            Err(Reported) => broken = true,
        }
    }
    out.shrink_to_fit();
    if broken { Err(Reported) } else { Ok(out) }
}

fn peer(at: &At<'_>, namespace: &str, report: &mut Report) -> Result<PeerMatch, Reported> {
    at.map(report)?;
    let (pods, namespaces) = (at.get("podSelector"), at.get("namespaceSelector"));
    if let Some(block) = at.get("ipBlock") {
        if pods.is_some() || namespaces.is_some() {
            return Err(report.error(
                at.path(),
                "ipBlock cannot stand together with podSelector or namespaceSelector",
                "make two list items of them, if either may match",
            ));
        }
        return ip_block(&block, report);
    }
    if pods.is_none() && namespaces.is_none() {
        return Err(report.error(
            at.path(),
            "names no peer",
            "say podSelector, namespaceSelector or ipBlock; for everybody leave out the whole list",
        ));
    }
    let mut parts = vec![is_pod()];
    match namespaces {
        Some(selector) => parts.extend(labels::selector(&selector, Field::NamespaceLabel, report)?),
        None => parts.push(Selector::equals(Field::Namespace, namespace)),
    }
    if let Some(selector) = pods {
        parts.extend(labels::selector(&selector, Field::Label, report)?);
    }
    let selector = if let [_] = parts[..] {
        is_pod()
    } else {
        parts.shrink_to_fit();
        Selector::And(parts)
    };
    Ok(PeerMatch {
        selector: Some(selector),
        ..PeerMatch::default()
    })
}

fn ip_block(at: &At<'_>, report: &mut Report) -> Result<PeerMatch, Reported> {
    at.map(report)?;
    let Some(cidr) = at.get("cidr") else {
        return Err(report.error(at.path_of("cidr"), "is missing", "say which network, as in 10.0.0.0/8"));
    };
    let net = network(&cidr, report)?;
    let mut not_nets = Vec::new();
    if let Some(list) = at.get("except") {
        not_nets = all(&list, report, |element, report| {
            let except = network(element, report)?;
            if net.contains(&except) && except.prefix_len() > net.prefix_len() {
                return Ok(except);
            }
            Err(report.error(
                element.path(),
                format!("{except} is no part of {net}"),
                "except may only take smaller networks out of ipBlock.cidr",
            ))
        })?;
    }
    Ok(PeerMatch {
        nets: Some(vec![net]),
        not_nets,
        ..PeerMatch::default()
    })
}

/// A CIDR. Host bits are cleared, with a warning.
pub(super) fn network(at: &At<'_>, report: &mut Report) -> Result<IpNet, Reported> {
    let text = at.string(report)?;
    let Ok(net) = text.parse::<IpNet>() else {
        let remedy = match text.parse::<std::net::IpAddr>() {
            Ok(address) if address.is_ipv4() => format!("write {address}/32 for one address"),
            Ok(address) => format!("write {address}/128 for one address"),
            Err(_) => "write address/prefix length, as in 10.0.0.0/8 or fd00::/8".to_owned(),
        };
        return Err(report.error(at.path(), format!("{} is no valid CIDR", quoted(text)), remedy));
    };
    if let IpNet::V6(v6) = net
        && v6.network().to_ipv4_mapped().is_some()
    {
        return Err(report.error(
            at.path(),
            format!("{} is an IPv4 network written as IPv6", quoted(text)),
            "write it as IPv4",
        ));
    }
    if net.trunc() != net {
        report.warn(
            at.path(),
            format!("{net} has host bits set; it means {}", net.trunc()),
            format!("write {}", net.trunc()),
        );
    }
    Ok(net.trunc())
}

/// One entry of `ports`; None: all ports of the protocol.
fn port(at: &At<'_>, report: &mut Report) -> Result<(u8, Option<PortMatch>), Reported> {
    at.map(report)?;
    let protocol = match at.get("protocol") {
        None => libc::IPPROTO_TCP,
        Some(protocol) => match protocol.string(report)? {
            "TCP" => libc::IPPROTO_TCP,
            "UDP" => libc::IPPROTO_UDP,
            "SCTP" => libc::IPPROTO_SCTP,
            other => {
                return Err(report.error(
                    protocol.path(),
                    format!("{} is no protocol of a NetworkPolicy", quoted(other)),
                    "use TCP, UDP or SCTP (upper case)",
                ));
            }
        },
    };
    let first = at.get("port");
    let end = at.get("endPort");
    let ports = match (first, end) {
        (None, None) => None,
        (None, Some(end)) => {
            return Err(report.error(end.path(), "needs a port to begin at", "add port, or remove endPort"));
        }
        (Some(first), end) if first.value().is_string() => {
            let name = first.string(report)?;
            if let Some(fault) = port_name_fault(name) {
                return Err(report.error(
                    first.path(),
                    format!("{} {fault}", quoted(name)),
                    "write a number without quotes, or the name of a container port",
                ));
            }
            if let Some(end) = end {
                return Err(report.error(
                    end.path(),
                    "cannot stand together with a named port",
                    "give port as a number, or remove endPort",
                ));
            }
            Some(PortMatch::Named(name.into()))
        }
        (Some(first), end) => {
            let number = port_number(&first, report)?;
            let last = match end {
                Some(end) => port_number(&end, report)?,
                None => number,
            };
            if last < number {
                return Err(report.error(
                    at.path_of("endPort"),
                    format!("{last} is below port {number}"),
                    "endPort is the last port of the range",
                ));
            }
            Some(PortMatch::Range(number..=last))
        }
    };
    // Protocol numbers are below 256.
    Ok((u8::try_from(protocol).unwrap_or(u8::MAX), ports))
}

fn port_number(at: &At<'_>, report: &mut Report) -> Result<u16, Reported> {
    let number = at.value().as_u64().and_then(|number| u16::try_from(number).ok());
    number.filter(|number| *number != 0).ok_or_else(|| {
        report.error(
            at.path(),
            format!("must be a port, is {}", described(at.value())),
            "ports are 1 to 65535",
        )
    })
}

/// Why a name cannot be that of a port (IANA service name, RFC 6335 section 5.1).
pub(super) fn port_name_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > 15 {
        Some("is no port name: 1 to 15 characters")
    } else if !name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        Some("is no port name: it needs a lower-case letter")
    } else if !name
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
    {
        Some("is no port name: lower-case letters, digits and '-' only")
    } else if name.starts_with('-') || name.ends_with('-') || name.contains("--") {
        Some("is no port name: '-' only between letters and digits")
    } else {
        None
    }
}

/// Any of the entries, those of one protocol together. No entries: everything, other protocols too.
fn traffic(entries: Vec<(u8, Option<PortMatch>)>) -> Vec<TrafficMatch> {
    if entries.is_empty() {
        return vec![TrafficMatch::ANY];
    }
    let mut out: Vec<TrafficMatch> = Vec::new();
    for (protocol, port) in entries {
        match out.iter_mut().find(|known| known.protocol == Some(protocol)) {
            Some(known) => match (&mut known.ports, port) {
                (Some(ports), Some(port)) => ports.push(port),
                (ports, None) => *ports = None,
                (None, Some(_)) => {}
            },
            None => out.push(TrafficMatch {
                protocol: Some(protocol),
                ports: port.map(|port| vec![port]),
                ..TrafficMatch::ANY
            }),
        }
    }
    for ports in out.iter_mut().filter_map(|known| known.ports.as_mut()) {
        ports.shrink_to_fit();
    }
    out.shrink_to_fit();
    out
}
