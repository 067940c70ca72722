//! The node's links, routes and neighbours as netlink tells them, indexed for the one question that is asked: which
//! interface leads to this address?
//!
//! Pure: fed with messages, no socket. Where the kernel removes things without saying so (IPv4 routes of a link that
//! goes down), the same is done here.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia},
};

/// What an interface is to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// May be the host's side of a pod's interface.
    Pod,
    Bridge,
    /// Leads elsewhere: physical, VLAN, bond, tunnel, loopback…
    Other(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub name: String,
    pub kind: Kind,
    /// Packets have no Ethernet header.
    pub layer3: bool,
}

/// One next hop of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub table: u32,
    pub priority: u32,
    pub oif: u32,
    pub gateway: Option<IpAddr>,
}

type Mac = Vec<u8>;

#[derive(Debug, Default)]
pub(super) struct Tables {
    pub links: HashMap<u32, Link>,
    /// By network (host bits clear) and prefix length.
    routes: HashMap<(IpAddr, u8), Vec<Route>>,
    /// (interface, address) -> link-layer address, where it is resolved, and whether the kernel has learnt it itself.
    neighbours: HashMap<(u32, IpAddr), (Mac, bool)>,
    /// (bridge, link-layer address) -> port.
    forwarding: HashMap<(u32, Mac), u32>,
    /// (interface, address): the node's own.
    addresses: HashSet<(u32, IpAddr)>,
}

/// What a message has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Touched {
    /// A pod that was not found may be found now.
    pub any: bool,
    /// There is a new interface, or one became another: whoever was asked in vain may answer now.
    pub link: bool,
    /// A host route to this address came or went.
    pub host_route: Option<IpAddr>,
    /// This interface is gone.
    pub gone: Option<u32>,
    /// The node's own addresses changed.
    pub addresses: bool,
}

impl Touched {
    fn any() -> Self {
        Self {
            any: true,
            ..Self::default()
        }
    }
}

impl Tables {
    /// Takes one message in. `replace`: it had `NLM_F_REPLACE`, so what it takes the place of goes without a word.
    pub(super) fn apply(&mut self, message: &RouteNetlinkMessage, replace: bool) -> Touched {
        match message {
            RouteNetlinkMessage::NewLink(link) => self.new_link(link),
            RouteNetlinkMessage::DelLink(link) => self.del_link(link),
            RouteNetlinkMessage::NewRoute(route) => self.new_route(route, replace),
            RouteNetlinkMessage::DelRoute(route) => self.del_route(route),
            RouteNetlinkMessage::NewNeighbour(neighbour) => self.new_neighbour(neighbour),
            RouteNetlinkMessage::DelNeighbour(neighbour) => self.del_neighbour(neighbour),
            RouteNetlinkMessage::NewAddress(address) => self.address(address, true),
            RouteNetlinkMessage::DelAddress(address) => self.address(address, false),
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => Touched::any(),
            _ => Touched::default(),
        }
    }

    /// Routes to exactly this address, in any table: of a routed pod there is one, and which rule leads to its table
    /// does not matter.
    pub(super) fn host_routes(&self, address: IpAddr) -> &[Route] {
        self.routes.get(&(address, width(address))).map_or(&[], Vec::as_slice)
    }

    /// Routes of the longest prefixes that hold the address, in any table, longest first.
    pub(super) fn covering_routes(&self, address: IpAddr) -> impl Iterator<Item = &Route> {
        (0..=width(address))
            .rev()
            .filter_map(move |length| self.routes.get(&(network(address, length), length)))
            .flatten()
    }

    /// A default route leads out through it, so it is no pod's interface.
    pub(super) fn is_uplink(&self, index: u32) -> bool {
        [IpAddr::from([0; 4]), IpAddr::from([0; 16])]
            .into_iter()
            .filter_map(|all| self.routes.get(&(all, 0)))
            .flatten()
            .any(|route| route.oif == index)
    }

    /// The link-layer address of a neighbour.
    pub(super) fn neighbour(&self, ifindex: u32, address: IpAddr) -> Option<&[u8]> {
        self.neighbours.get(&(ifindex, address)).map(|(mac, _)| mac.as_slice())
    }

    /// The kernel holds a link-layer address for it that it has learnt, and so may forget.
    pub(super) fn is_learnt(&self, ifindex: u32, address: IpAddr) -> bool {
        self.neighbours
            .get(&(ifindex, address))
            .is_some_and(|(_, learnt)| *learnt)
    }

    /// The port behind which a bridge knows a link-layer address.
    pub(super) fn port(&self, bridge: u32, mac: &[u8]) -> Option<u32> {
        self.forwarding.get(&(bridge, mac.to_vec())).copied()
    }

    /// The node's own addresses but for those of the loopback network and link-local ones, sorted.
    pub(super) fn own_addresses(&self) -> Vec<IpAddr> {
        let worth = |address: &IpAddr| match address {
            IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
            IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
        };
        let own: HashSet<IpAddr> = self
            .addresses
            .iter()
            .map(|(_, address)| *address)
            .filter(worth)
            .collect();
        let mut own: Vec<IpAddr> = own.into_iter().collect();
        own.sort();
        own
    }

    fn new_link(&mut self, message: &LinkMessage) -> Touched {
        // Bridges repeat the news of their ports in their own family.
        if message.header.interface_family == AddressFamily::Bridge {
            return Touched::default();
        }
        let index = message.header.index;
        let mut name = String::new();
        let mut kind = None;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(text) => name.clone_from(text),
                LinkAttribute::LinkInfo(infos) => {
                    kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.clone()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        if !message.header.flags.contains(LinkFlags::Up) {
            self.forget_routes(index);
        }
        let layer = message.header.link_layer_type;
        let link = Link {
            name,
            kind: classify(kind.as_ref(), layer),
            layer3: layer != LinkLayerType::Ether,
        };
        if self.links.get(&index) == Some(&link) {
            return Touched::default();
        }
        self.links.insert(index, link);
        Touched {
            link: true,
            ..Touched::any()
        }
    }

    fn del_link(&mut self, message: &LinkMessage) -> Touched {
        let index = message.header.index;
        if message.header.interface_family == AddressFamily::Bridge {
            return Touched::default();
        }
        self.links.remove(&index);
        self.forget_routes(index);
        self.neighbours.retain(|(interface, _), _| *interface != index);
        self.forwarding
            .retain(|(bridge, _), port| *bridge != index && *port != index);
        let before = self.addresses.len();
        self.addresses.retain(|(interface, _)| *interface != index);
        Touched {
            gone: Some(index),
            addresses: self.addresses.len() != before,
            ..Touched::any()
        }
    }

    fn forget_routes(&mut self, index: u32) {
        self.routes.retain(|_, routes| {
            routes.retain(|route| route.oif != index);
            !routes.is_empty()
        });
    }

    fn new_route(&mut self, message: &RouteMessage, replace: bool) -> Touched {
        let Some((key, hops)) = parse_route(message) else {
            return Touched::default();
        };
        let routes = self.routes.entry(key).or_default();
        if replace {
            routes.retain(|old| {
                hops.iter()
                    .all(|new| (old.table, old.priority) != (new.table, new.priority))
            });
        }
        for hop in hops {
            if !routes.contains(&hop) {
                routes.push(hop);
            }
        }
        Touched {
            any: true,
            host_route: is_host(key).then_some(key.0),
            ..Touched::default()
        }
    }

    fn del_route(&mut self, message: &RouteMessage) -> Touched {
        let Some((key, hops)) = parse_route(message) else {
            return Touched::default();
        };
        if let Some(routes) = self.routes.get_mut(&key) {
            routes.retain(|route| !hops.contains(route));
            if routes.is_empty() {
                self.routes.remove(&key);
            }
        }
        Touched {
            any: true,
            host_route: is_host(key).then_some(key.0),
            ..Touched::default()
        }
    }

    fn new_neighbour(&mut self, message: &NeighbourMessage) -> Touched {
        let header = &message.header;
        let neighbour = Neighbour::parse(message);
        if header.family == AddressFamily::Bridge {
            // Permanent entries are the ports' own addresses.
            let (Some(mac), Some(bridge)) = (neighbour.mac, neighbour.master) else {
                return Touched::default();
            };
            if header.state == NeighbourState::Permanent {
                return Touched::default();
            }
            let old = self.forwarding.insert((bridge, mac), header.ifindex);
            return Touched {
                any: old != Some(header.ifindex),
                ..Touched::default()
            };
        }
        let Some(address) = neighbour.address else {
            return Touched::default();
        };
        let key = (header.ifindex, address);
        let unresolved = matches!(
            header.state,
            NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None
        );
        match neighbour.mac {
            Some(mac) if !unresolved => {
                let learnt = !matches!(header.state, NeighbourState::Permanent | NeighbourState::Noarp);
                let new = (mac, learnt);
                let old = self.neighbours.insert(key, new.clone());
                Touched {
                    any: old != Some(new),
                    ..Touched::default()
                }
            }
            _ => {
                self.neighbours.remove(&key);
                Touched::default()
            }
        }
    }

    fn del_neighbour(&mut self, message: &NeighbourMessage) -> Touched {
        let neighbour = Neighbour::parse(message);
        let index = message.header.ifindex;
        if message.header.family == AddressFamily::Bridge {
            if let (Some(mac), Some(bridge)) = (neighbour.mac, neighbour.master) {
                let key = (bridge, mac);
                if self.forwarding.get(&key) == Some(&index) {
                    self.forwarding.remove(&key);
                }
            }
        } else if let Some(address) = neighbour.address {
            self.neighbours.remove(&(index, address));
        }
        Touched::default()
    }

    fn address(&mut self, message: &AddressMessage, present: bool) -> Touched {
        // Of a point-to-point interface `Address` is the peer's; `Local` is always ours (IPv6 has it only then).
        let find = |local: bool| {
            message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) if local => Some(*address),
                AddressAttribute::Address(address) if !local => Some(*address),
                _ => None,
            })
        };
        let Some(address) = find(true).or_else(|| find(false)) else {
            return Touched::default();
        };
        let key = (message.header.index, address);
        let changed = if present {
            self.addresses.insert(key)
        } else {
            self.addresses.remove(&key)
        };
        Touched {
            addresses: changed,
            ..Touched::default()
        }
    }
}

/// Which kinds of interfaces can be a pod's. A physical device has no kind.
fn classify(kind: Option<&InfoKind>, layer: LinkLayerType) -> Kind {
    match kind {
        _ if layer == LinkLayerType::Loopback => Kind::Other("loopback".into()),
        Some(InfoKind::Bridge) => Kind::Bridge,
        Some(InfoKind::Veth | InfoKind::Netkit | InfoKind::Tun) => Kind::Pod,
        Some(other) => Kind::Other(other.to_string()),
        None => Kind::Other("physical".into()),
    }
}

/// Network and next hops of a unicast route. None: it is of another type, or has no device.
fn parse_route(message: &RouteMessage) -> Option<((IpAddr, u8), Vec<Route>)> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut table = u32::from(message.header.table);
    let mut priority = 0;
    let mut hops: Vec<(u32, Option<IpAddr>)> = Vec::new();
    let (mut oif, mut via) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = route_address(address)?,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(number) => priority = *number,
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => via = gateway(attribute),
            RouteAttribute::MultiPath(next_hops) => hops.extend(
                next_hops
                    .iter()
                    .map(|hop| (hop.interface_index, hop.attributes.iter().find_map(gateway))),
            ),
            _ => {}
        }
    }
    hops.extend(oif.map(|oif| (oif, via)));
    if hops.is_empty() {
        return None;
    }
    let hop = |(oif, gateway)| Route {
        table,
        priority,
        oif,
        gateway,
    };
    let key = (destination, message.header.destination_prefix_length);
    Some((key, hops.into_iter().map(hop).collect()))
}

fn route_address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

/// The gateway that an attribute names.
pub(super) fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => route_address(address),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some(IpAddr::V4(*v4)),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

#[derive(Default)]
struct Neighbour {
    address: Option<IpAddr>,
    mac: Option<Mac>,
    master: Option<u32>,
}

impl Neighbour {
    fn parse(message: &NeighbourMessage) -> Self {
        let mut neighbour = Self::default();
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    neighbour.address = Some(IpAddr::V4(*v4))
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    neighbour.address = Some(IpAddr::V6(*v6))
                }
                NeighbourAttribute::LinkLayerAddress(mac) => neighbour.mac = Some(mac.clone()),
                NeighbourAttribute::Controller(master) => neighbour.master = Some(*master),
                _ => {}
            }
        }
        neighbour
    }
}

/// Bits of an address.
pub(super) const fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn is_host((address, length): (IpAddr, u8)) -> bool {
    length == width(address)
}

fn network(address: IpAddr, length: u8) -> IpAddr {
    // The length never exceeds the width here; if it did, the address itself is as good an answer.
    ipnet::IpNet::new(address, length).map_or(address, |net| net.network())
}
