//! Which interface is the host's side of the pod with this address?

use std::net::IpAddr;

use super::tables::{Kind, Route, Tables};

/// Where an address leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// To this interface.
    Interface(u32),
    /// To this port of a bridge, as far as the bridge knows: neighbours can lie about their addresses.
    Port(u32),
    /// To this bridge, which does not know (yet) behind which port: ask the neighbour.
    Unresolved { bridge: u32, reason: String },
    /// No table says it: ask the kernel which route it would take.
    AskKernel,
    /// To no interface that can be a pod's.
    Nowhere(String),
}

/// What the kernel answered to "which route would you take?".
pub(super) type Asked = Result<Option<(u32, Option<IpAddr>)>, String>;

/// Finds the interface of an address. `asked` is the kernel's answer, once it was asked.
///
/// A route to exactly this address counts most, in whatever table it lies: rules (`ip rule`) choose tables by where
/// a packet comes from, which cannot be asked for beforehand. Several of them: the one that the kernel would take.
/// Then, as far as they lead to a bridge: the kernel's own answer, and any route, the longest prefix first. A veth
/// is a pod's only by a route to exactly this address, or else the uplink of a node that is itself a container (kind) would be one.
pub(super) fn locate(tables: &Tables, address: IpAddr, asked: Option<&Asked>) -> Place {
    let mut refused = None;
    let mut candidates: Vec<Place> = Vec::new();
    for route in tables.host_routes(address) {
        match through(tables, address, Some(route), route.oif, route.gateway) {
            Place::Nowhere(reason) => refused = Some(reason),
            place if !candidates.contains(&place) => candidates.push(place),
            _ => {}
        }
    }
    if candidates.len() == 1 {
        return candidates.remove(0);
    }
    let Some(asked) = asked else { return Place::AskKernel };
    match asked {
        Ok(Some((oif, gateway))) => {
            let host_route = tables.host_routes(address).iter().find(|route| route.oif == *oif);
            match through(tables, address, host_route, *oif, *gateway) {
                Place::Nowhere(reason) => refused = refused.or(Some(reason)),
                place if candidates.is_empty() || candidates.contains(&place) => return place,
                _ => {}
            }
        }
        Ok(None) => {}
        Err(reason) => refused = refused.or_else(|| Some(format!("no route: {reason}"))),
    }
    if candidates.len() > 1 {
        return Place::Nowhere("several routes in different tables lead to different interfaces".into());
    }
    let covering = |route: &Route| match through(tables, address, None, route.oif, route.gateway) {
        Place::Nowhere(_) => None,
        place => Some(place),
    };
    tables
        .covering_routes(address)
        .find_map(covering)
        .unwrap_or_else(|| Place::Nowhere(refused.unwrap_or_else(|| "no route leads to it".into())))
}

/// Follows a route to its device, and through a bridge to the port. `host_route`: it leads to this address alone.
fn through(tables: &Tables, address: IpAddr, host_route: Option<&Route>, oif: u32, gateway: Option<IpAddr>) -> Place {
    let Some(link) = tables.links.get(&oif) else {
        return Place::Nowhere(format!("its route leads to interface {oif}, which is gone"));
    };
    match &link.kind {
        Kind::Pod if tables.is_uplink(oif) => Place::Nowhere(format!(
            "its route leads to {}, which carries a default route",
            link.name
        )),
        // A gateway here is the pod's own side (an onlink route).
        Kind::Pod if host_route.is_some() => Place::Interface(oif),
        Kind::Bridge if gateway.is_none() => behind(tables, address, oif, &link.name),
        Kind::Pod => Place::Nowhere(format!(
            "no route leads to it alone; the one that covers it leads to {}",
            link.name
        )),
        Kind::Bridge | Kind::Other(_) => {
            let name = &link.name;
            let via = gateway.map_or_else(String::new, |gateway| format!(" through gateway {gateway}"));
            let kind = match &link.kind {
                Kind::Other(kind) => kind.as_str(),
                _ => "bridge",
            };
            Place::Nowhere(format!(
                "its route leads{via} to {name} ({kind}), which is no pod's interface"
            ))
        }
    }
}

fn behind(tables: &Tables, address: IpAddr, bridge: u32, name: &str) -> Place {
    let unresolved = |reason| Place::Unresolved { bridge, reason };
    let Some(mac) = tables.neighbour(bridge, address) else {
        return unresolved(format!("bridge {name} has not resolved its link-layer address"));
    };
    let Some(port) = tables.port(bridge, mac) else {
        return unresolved(format!(
            "bridge {name} has no forwarding entry for its link-layer address"
        ));
    };
    match tables.links.get(&port) {
        Some(link) if link.kind == Kind::Pod => Place::Port(port),
        Some(link) => Place::Nowhere(format!(
            "it is behind port {} of bridge {name}, which is no pod's interface",
            link.name
        )),
        None => unresolved(format!("the port of bridge {name} is gone")),
    }
}
