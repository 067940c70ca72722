//! Node, Namespace, Pod, ServiceAccount.
//!
//! Labels and addresses decide what policies mean, so an object whose labels or addresses cannot be read is invalid. A
//! broken part that can only make less reachable (a named port, allowed source prefixes) is left out and reported.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use serde_json::Value;

use super::{
    at::{At, Report, Reported, quoted},
    labels,
    network_policy::port_name_fault,
    object::{Namespace, Node, Object, Pod, PodPhase, PodUid, ServiceAccount, Workload},
    parse::{Context, Outcome},
};
use crate::{
    index::NAMESPACE_NAME_LABEL,
    policy::{model::NamedPort, selector::Labels},
};

/// Calico's annotation: what a pod may send from besides its addresses, a JSON list of CIDRs.
pub(super) const ALLOWED_SOURCES: &str = "cni.projectcalico.org/allowedSourcePrefixes";

fn outcome(object: Result<Object, Reported>) -> Outcome {
    object.map_or(Outcome::Invalid, Outcome::Valid)
}

impl Context<'_> {
    pub(super) fn own_labels(&mut self) -> Result<BTreeMap<String, String>, Reported> {
        let root = self.root;
        match root.get("metadata") {
            Some(metadata) => labels::of_metadata(&metadata, self.report),
            None => Ok(BTreeMap::new()),
        }
    }

    fn interned_labels(&mut self) -> Result<Labels, Reported> {
        let labels = self.own_labels()?;
        Ok(self.interner.labels(labels))
    }
}

pub(super) fn namespace(cx: &mut Context<'_>) -> Outcome {
    outcome(cx.own_labels().map(|mut labels| {
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), cx.name.to_string());
        Object::Namespace(Arc::new(Namespace {
            name: cx.name.clone(),
            labels: cx.interner.labels(labels),
        }))
    }))
}

pub(super) fn service_account(cx: &mut Context<'_>) -> Outcome {
    outcome(cx.interned_labels().map(|labels| {
        Object::ServiceAccount(Arc::new(ServiceAccount {
            namespace: cx.namespace.clone(),
            name: cx.name.clone(),
            labels,
        }))
    }))
}

pub(super) fn node(cx: &mut Context<'_>) -> Outcome {
    let labels = cx.interned_labels();
    let addresses = node_addresses(&cx.root, cx.report);
    outcome(labels.and_then(|labels| {
        Ok(Object::Node(Arc::new(Node {
            name: cx.name.clone(),
            labels,
            addresses: addresses?,
        })))
    }))
}

fn node_addresses(root: &At<'_>, report: &mut Report) -> Result<Vec<IpAddr>, Reported> {
    let mut out = Vec::new();
    let Some(status) = root.get("status") else {
        return Ok(out);
    };
    let Some(list) = status.get("addresses") else {
        return Ok(out);
    };
    for entry in list.elements(report)? {
        let (Some(kind), Some(at)) = (entry.get("type"), entry.get("address")) else {
            continue;
        };
        if matches!(kind.string(report)?, "InternalIP" | "ExternalIP") {
            out.push(address(&at, report)?);
        }
    }
    Ok(tidy(out))
}

pub(super) fn address(at: &At<'_>, report: &mut Report) -> Result<IpAddr, Reported> {
    let text = at.string(report)?;
    text.parse::<IpAddr>()
        .map(|address| address.to_canonical())
        .map_err(|_| {
            report.error(
                at.path(),
                format!("{} is no IP address", quoted(text)),
                "write one IPv4 or IPv6 address, without a prefix length",
            )
        })
}

fn tidy<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list.dedup();
    list.shrink_to_fit();
    list
}

pub(super) fn pod(cx: &mut Context<'_>) -> Outcome {
    outcome(pod_object(cx))
}

fn pod_object(cx: &mut Context<'_>) -> Result<Object, Reported> {
    let root = cx.root;
    let labels = cx.interned_labels()?;
    let spec = root.get_or_empty("spec");
    let status = root.get_or_empty("status");
    let metadata = root.get_or_empty("metadata");
    spec.map(cx.report)?;
    status.map(cx.report)?;

    let node_name = match spec.get("nodeName") {
        Some(at) => Some(at.string(cx.report)?).filter(|name| !name.is_empty()),
        None => None,
    };
    let host_network = match spec.get("hostNetwork") {
        Some(at) => at.bool(cx.report)?,
        None => false,
    };
    let account = match spec.get("serviceAccountName").or_else(|| spec.get("serviceAccount")) {
        Some(at) => Some(at.string(cx.report)?).filter(|name| !name.is_empty()),
        None => None,
    };
    let addresses = pod_addresses(&status, cx.report)?;
    let ports = named_ports(&spec, cx);
    Ok(Object::Pod(Arc::new(Pod {
        namespace: cx.namespace.clone(),
        name: cx.name.clone(),
        labels,
        node_name: node_name.map(|name| cx.interner.string(name)),
        host_network,
        service_account: cx.interner.string(account.unwrap_or("default")),
        named_ports: cx.interner.ports(ports),
        addresses: addresses.into(),
        phase: phase(&status, cx.report)?,
        created: created(&metadata, cx.report),
        uid: uid(&metadata),
        allowed_sources: allowed_sources(&metadata, cx.report).into(),
        workload: workload(&metadata, cx),
    })))
}

fn pod_addresses(status: &At<'_>, report: &mut Report) -> Result<Vec<IpAddr>, Reported> {
    let mut out = Vec::new();
    if let Some(list) = status.get("podIPs") {
        for entry in list.elements(report)? {
            match entry.get("ip") {
                Some(ip) => out.push(address(&ip, report)?),
                None => {
                    return Err(report.error(
                        entry.path_of("ip"),
                        "is missing",
                        "say the pod's address, or remove the entry",
                    ));
                }
            }
        }
    }
    if out.is_empty()
        && let Some(ip) = status.get("podIP")
        && ip.value().as_str() != Some("")
    {
        out.push(address(&ip, report)?);
    }
    Ok(tidy(out))
}

fn phase(status: &At<'_>, report: &mut Report) -> Result<PodPhase, Reported> {
    let Some(at) = status.get("phase") else {
        return Ok(PodPhase::Pending);
    };
    Ok(match at.string(report)? {
        "Pending" | "" => PodPhase::Pending,
        "Running" => PodPhase::Running,
        "Succeeded" => PodPhase::Succeeded,
        "Failed" => PodPhase::Failed,
        "Unknown" => PodPhase::Unknown,
        other => {
            report.warn(
                at.path(),
                format!("{} is no phase of a pod; taken as Unknown", quoted(other)),
                "use Pending, Running, Succeeded, Failed or Unknown",
            );
            PodPhase::Unknown
        }
    })
}

fn named_ports(spec: &At<'_>, cx: &mut Context<'_>) -> Vec<NamedPort> {
    let mut out = Vec::new();
    for list in ["containers", "initContainers"] {
        let Some(containers) = spec.get(list) else { continue };
        let Ok(containers) = containers.elements(cx.report) else {
            continue;
        };
        for container in containers {
            let Some(ports) = container.get("ports") else { continue };
            let Ok(ports) = ports.elements(cx.report) else { continue };
            for port in ports {
                if let Ok(Some((name, protocol, port))) = named_port(&port, cx.report) {
                    out.push(NamedPort {
                        name: cx.interner.string(name),
                        protocol,
                        port,
                    });
                }
            }
        }
    }
    tidy(out)
}

/// Name, protocol and number; None for a port without a name, which no policy can ask for.
fn named_port<'a>(at: &'a At<'a>, report: &mut Report) -> Result<Option<(&'a str, u8, u16)>, Reported> {
    let Some(name_at) = at.get("name") else {
        return Ok(None);
    };
    let name = name_at.string(report)?;
    if name.is_empty() {
        return Ok(None);
    }
    if let Some(fault) = port_name_fault(name) {
        report.warn(name_at.path(), format!("{} {fault}", quoted(name)), "rename the port");
    }
    let protocol = match at.get("protocol") {
        None => 6,
        Some(protocol) => match protocol.string(report)? {
            "TCP" | "" => 6,
            "UDP" => 17,
            "SCTP" => 132,
            other => {
                return Err(report.error(
                    protocol.path(),
                    format!("{} is no protocol of a container port", quoted(other)),
                    "use TCP, UDP or SCTP (upper case); until then no policy finds the port by its name",
                ));
            }
        },
    };
    let number = at
        .get("containerPort")
        .and_then(|port| port.value().as_u64())
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port != 0);
    match number {
        Some(number) => Ok(Some((name, protocol, number))),
        None => Err(report.error(
            at.path_of("containerPort"),
            "must be a port, 1 to 65535",
            "correct it; until then no policy finds the port by its name",
        )),
    }
}

fn created(metadata: &At<'_>, report: &mut Report) -> Option<i64> {
    let at = metadata.get("creationTimestamp")?;
    let text = at.string(report).ok()?;
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => Some(time.as_second()),
        Err(_) => {
            report.warn(
                at.path(),
                format!("{} is no time", quoted(text)),
                "write it as 2006-01-02T15:04:05Z, or leave it out",
            );
            None
        }
    }
}

/// A static pod's sandbox carries the hash of its manifest; the API server's copy of it has another uid and names the
/// hash in an annotation.
fn uid(metadata: &At<'_>) -> Option<PodUid> {
    let text = |pointer| metadata.value().pointer(pointer).and_then(Value::as_str);
    PodUid::parse(text("/annotations/kubernetes.io~1config.hash").or_else(|| text("/uid"))?)
}

fn allowed_sources(metadata: &At<'_>, report: &mut Report) -> Vec<IpNet> {
    let Some(annotations) = metadata.get("annotations") else {
        return Vec::new();
    };
    let Some(at) = annotations.get(ALLOWED_SOURCES) else {
        return Vec::new();
    };
    let Ok(text) = at.string(report) else {
        return Vec::new();
    };
    let path = format!("metadata.annotations[{ALLOWED_SOURCES}]");
    let Ok(entries) = serde_json::from_str::<Vec<String>>(text) else {
        report.error(
            path,
            format!("{} is no JSON list of CIDRs", quoted(text)),
            r#"write ["10.8.0.0/16", "fd00:8::/64"]; until then the pod may only send from its own addresses"#,
        );
        return Vec::new();
    };
    let mut out = Vec::new();
    for entry in entries {
        match entry
            .parse::<IpNet>()
            .or_else(|_| entry.parse::<IpAddr>().map(IpNet::from))
        {
            Ok(net) => out.push(net.trunc()),
            Err(_) => {
                report.error(
                    path.clone(),
                    format!("{} is no CIDR", quoted(&entry)),
                    "correct it; until then the pod may not send from there",
                );
            }
        }
    }
    tidy(out)
}

/// What made the pod: the owner that controls it, else its first owner.
fn workload(metadata: &At<'_>, cx: &mut Context<'_>) -> Option<Arc<Workload>> {
    let owners = metadata.value().get("ownerReferences")?.as_array()?;
    let owner = owners
        .iter()
        .find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true))
        .or_else(|| owners.first())?;
    let kind = owner.get("kind")?.as_str()?;
    let name = owner.get("name")?.as_str()?;
    // A Deployment names its ReplicaSets after itself and the hash of the pod template, and labels their pods with it.
    let deployment = metadata
        .value()
        .pointer("/labels/pod-template-hash")
        .and_then(Value::as_str)
        .filter(|_| kind == "ReplicaSet")
        .and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'));
    let (kind, name) = deployment.map_or((kind, name), |deployment| ("Deployment", deployment));
    let workload = Workload {
        kind: cx.interner.string(kind),
        name: cx.interner.string(name),
    };
    Some(cx.interner.workload(workload))
}
