//! Service and EndpointSlice, as far as rules ask for them: the addresses and ports that traffic to a Service has.

use std::{net::IpAddr, sync::Arc};

use super::{
    at::{At, Report, Reported, quoted},
    core::address,
    object::{EndpointSlice, Object, Service, TransportPort},
    parse::{Context, Outcome},
};

/// Which Service a slice belongs to.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// A Service: addresses and ports by which clients reach it.
pub(super) fn service(cx: &mut Context<'_>) -> Outcome {
    let root = cx.root;
    let spec = root.get_or_empty("spec");
    let status = root.get_or_empty("status");
    let report = &mut *cx.report;
    let addresses = service_addresses(&spec, &status, report);
    let ports = ports(&spec, "port", report);
    match (addresses, ports) {
        (Ok(addresses), Ok(ports)) => Outcome::Valid(Object::Service(Arc::new(Service {
            namespace: cx.namespace.clone(),
            name: cx.name.clone(),
            addresses,
            ports,
        }))),
        _ => Outcome::Invalid,
    }
}

fn service_addresses(spec: &At<'_>, status: &At<'_>, report: &mut Report) -> Result<Vec<IpAddr>, Reported> {
    spec.map(report)?;
    status.map(report)?;
    let mut out = Vec::new();
    // A headless Service says None, one without an address yet says nothing.
    let mut take = |at: &At<'_>, report: &mut Report| {
        if !matches!(at.value().as_str(), Some("None" | "")) {
            out.push(address(at, report)?);
        }
        Ok(())
    };
    if let Some(at) = spec.get("clusterIP") {
        take(&at, report)?;
    }
    for key in ["clusterIPs", "externalIPs"] {
        let Some(list) = spec.get(key) else { continue };
        for at in list.elements(report)? {
            take(&at, report)?;
        }
    }
    if let Some(balancer) = status.get("loadBalancer")
        && let Some(list) = balancer.get("ingress")
    {
        for entry in list.elements(report)? {
            if let Some(at) = entry.get("ip") {
                take(&at, report)?;
            }
        }
    }
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

/// An EndpointSlice: addresses and ports of a Service's endpoints, also of those that are not ready.
pub(super) fn endpoint_slice(cx: &mut Context<'_>) -> Outcome {
    let root = cx.root;
    let Ok(mut labels) = cx.own_labels() else {
        return Outcome::Invalid;
    };
    let named = root.get("addressType").and_then(|at| at.value().as_str()) == Some("FQDN");
    let addresses = if named {
        Ok(Vec::new())
    } else {
        endpoint_addresses(&root, cx.report)
    };
    let ports = ports(&root, "port", cx.report);
    match (addresses, ports) {
        (Ok(addresses), Ok(ports)) => Outcome::Valid(Object::EndpointSlice(Arc::new(EndpointSlice {
            namespace: cx.namespace.clone(),
            name: cx.name.clone(),
            service: labels.remove(SERVICE_NAME).map(|name| cx.interner.string(&name)),
            addresses,
            ports,
        }))),
        _ => Outcome::Invalid,
    }
}

fn endpoint_addresses(root: &At<'_>, report: &mut Report) -> Result<Vec<IpAddr>, Reported> {
    let mut out = Vec::new();
    let Some(endpoints) = root.get("endpoints") else {
        return Ok(out);
    };
    for endpoint in endpoints.elements(report)? {
        let Some(addresses) = endpoint.get("addresses") else {
            continue;
        };
        for at in addresses.elements(report)? {
            out.push(address(&at, report)?);
        }
    }
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

/// Protocol and number of each port. A port without a number is none (in a slice: any port, which no rule can mean).
fn ports(parent: &At<'_>, key: &str, report: &mut Report) -> Result<Vec<TransportPort>, Reported> {
    let mut out = Vec::new();
    let Some(list) = parent.get("ports") else {
        return Ok(out);
    };
    for entry in list.elements(report)? {
        let Some(at) = entry.get(key) else { continue };
        let port = at
            .value()
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0)
            .ok_or_else(|| report.error(at.path(), "must be a port, 1 to 65535", "correct it"))?;
        let protocol = match entry.get("protocol") {
            None => libc::IPPROTO_TCP,
            Some(protocol) => match protocol.string(report)? {
                "TCP" | "" => libc::IPPROTO_TCP,
                "UDP" => libc::IPPROTO_UDP,
                "SCTP" => libc::IPPROTO_SCTP,
                other => {
                    return Err(report.error(
                        protocol.path(),
                        format!("{} is no protocol of a port", quoted(other)),
                        "use TCP, UDP or SCTP (upper case)",
                    ));
                }
            },
        };
        out.push(TransportPort {
            // Protocol numbers are below 256.
            protocol: u8::try_from(protocol).unwrap_or(u8::MAX),
            port,
        });
    }
    out.sort_unstable();
    out.dedup();
    Ok(out)
}
