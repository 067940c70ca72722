//! Where addresses lead, from hand-made tables.

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAttribute, RouteMessage, RouteType},
};

use super::{
    locate::{Place, locate},
    tables::{Kind, Tables},
};

const MAIN: u32 = 254;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

#[derive(Default)]
struct World(Tables);

impl World {
    fn link(mut self, index: u32, name: &str, kind: Option<InfoKind>) -> Self {
        self.0.apply(&link(index, name, kind), false);
        self
    }

    fn route(mut self, prefix: &str, table: u32, oif: u32, gateway: Option<&str>) -> Self {
        self.0.apply(
            &RouteNetlinkMessage::NewRoute(route(prefix, table, oif, gateway)),
            false,
        );
        self
    }

    fn neighbour(mut self, index: u32, address: &str, mac: u8) -> Self {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = index;
        message.header.state = NeighbourState::Reachable;
        message.attributes = vec![
            NeighbourAttribute::Destination(match ip(address) {
                IpAddr::V4(v4) => v4.into(),
                IpAddr::V6(v6) => v6.into(),
            }),
            NeighbourAttribute::LinkLayerAddress(vec![mac; 6]),
        ];
        self.0.apply(&RouteNetlinkMessage::NewNeighbour(message), false);
        self
    }

    fn forwarding(mut self, bridge: u32, port: u32, mac: u8, state: NeighbourState) -> Self {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = port;
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::LinkLayerAddress(vec![mac; 6]),
            NeighbourAttribute::Controller(bridge),
        ];
        self.0.apply(&RouteNetlinkMessage::NewNeighbour(message), false);
        self
    }

    /// What is found without asking the kernel.
    fn find(&self, address: &str) -> Place {
        locate(&self.0, ip(address), None)
    }

    /// What is found when the kernel answers so.
    fn ask(&self, address: &str, oif: u32, gateway: Option<&str>) -> Place {
        locate(&self.0, ip(address), Some(&Ok(Some((oif, gateway.map(ip))))))
    }
}

fn link(index: u32, name: &str, kind: Option<InfoKind>) -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.attributes.push(LinkAttribute::IfName(name.into()));
    if let Some(kind) = kind {
        message
            .attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
    }
    RouteNetlinkMessage::NewLink(message)
}

fn route(prefix: &str, table: u32, oif: u32, gateway: Option<&str>) -> RouteMessage {
    let net: ipnet::IpNet = prefix.parse().expect("a literal prefix");
    let mut message = RouteMessage::default();
    message.header.address_family = match net {
        ipnet::IpNet::V4(_) => AddressFamily::Inet,
        ipnet::IpNet::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = net.prefix_len();
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Destination(net.addr().into()),
        RouteAttribute::Table(table),
        RouteAttribute::Oif(oif),
    ];
    message
        .attributes
        .extend(gateway.map(|gateway| RouteAttribute::Gateway(ip(gateway).into())));
    message
}

fn node() -> World {
    World::default()
        .link(2, "eth0", None)
        .route("0.0.0.0/0", MAIN, 2, Some("192.0.2.1"))
        .route("192.0.2.0/24", MAIN, 2, None)
}

#[test]
fn a_host_route_leads_to_the_veth() {
    let world = node()
        .link(5, "cali1", Some(InfoKind::Veth))
        .route("10.0.0.5/32", MAIN, 5, None);
    assert_eq!(world.find("10.0.0.5"), Place::Interface(5));
    let world = world.route("2001:db8::5/128", MAIN, 5, Some("fe80::1"));
    assert_eq!(world.find("2001:db8::5"), Place::Interface(5));
}

#[test]
fn a_host_route_counts_in_whatever_table() {
    let world = node()
        .link(6, "vlan1", Some(InfoKind::Veth))
        .route("10.0.0.6/32", 101, 6, None);
    assert_eq!(world.find("10.0.0.6"), Place::Interface(6));
}

#[test]
fn of_several_host_routes_the_kernel_chooses() {
    let world = node()
        .link(5, "veth5", Some(InfoKind::Veth))
        .link(6, "veth6", Some(InfoKind::Veth))
        .route("10.0.0.5/32", MAIN, 5, None)
        .route("10.0.0.5/32", 101, 6, None);
    assert_eq!(world.find("10.0.0.5"), Place::AskKernel);
    assert_eq!(world.ask("10.0.0.5", 6, None), Place::Interface(6));
    assert!(matches!(world.ask("10.0.0.5", 2, None), Place::Nowhere(reason) if reason.contains("several")));
}

#[test]
fn the_uplink_is_never_taken_for_a_pods_interface() {
    let world = node().route("10.0.0.9/32", MAIN, 2, Some("192.0.2.7"));
    assert_eq!(world.find("10.0.0.9"), Place::AskKernel);
    let place = world.ask("10.0.0.9", 2, Some("192.0.2.7"));
    assert!(
        matches!(&place, Place::Nowhere(reason) if reason.contains("eth0") && reason.contains("192.0.2.7")),
        "{place:?}"
    );
}

#[test]
fn an_uplink_that_is_a_veth_is_no_pods_either() {
    // A node of kind is a container: its eth0 is a veth.
    let world = World::default()
        .link(2, "eth0", Some(InfoKind::Veth))
        .route("172.18.0.0/16", MAIN, 2, None);
    assert_eq!(world.find("172.18.0.9"), Place::AskKernel);
    assert!(matches!(world.ask("172.18.0.9", 2, None), Place::Nowhere(reason) if reason.contains("alone")));
    let world = world
        .route("0.0.0.0/0", MAIN, 2, Some("172.18.0.1"))
        .route("10.0.0.9/32", MAIN, 2, Some("172.18.0.7"));
    let place = world.ask("10.0.0.9", 2, Some("172.18.0.7"));
    assert!(
        matches!(&place, Place::Nowhere(reason) if reason.contains("default route")),
        "{place:?}"
    );
}

#[test]
fn a_bridge_is_followed_to_its_port() {
    let world = node()
        .link(7, "cni0", Some(InfoKind::Bridge))
        .link(8, "veth8", Some(InfoKind::Veth))
        .route("10.1.0.0/24", MAIN, 7, None);
    let unresolved = |place: Place| matches!(place, Place::Unresolved { bridge: 7, .. });
    assert_eq!(world.find("10.1.0.8"), Place::AskKernel);
    assert!(unresolved(world.ask("10.1.0.8", 7, None)));
    let world = world.neighbour(7, "10.1.0.8", 0xaa);
    assert!(unresolved(world.ask("10.1.0.8", 7, None)));
    // The port's own address is not the pod's.
    let world = world.forwarding(7, 8, 0xaa, NeighbourState::Permanent);
    assert!(unresolved(world.ask("10.1.0.8", 7, None)));
    let world = world.forwarding(7, 8, 0xaa, NeighbourState::Reachable);
    assert_eq!(world.ask("10.1.0.8", 7, None), Place::Port(8));
}

#[test]
fn a_bridge_behind_a_rule_is_found_where_the_kernel_answers_with_the_uplink() {
    let world = node()
        .link(7, "br7", Some(InfoKind::Bridge))
        .link(8, "veth8", Some(InfoKind::Veth))
        .route("10.1.0.0/24", 300, 7, None)
        .neighbour(7, "10.1.0.8", 0xaa)
        .forwarding(7, 8, 0xaa, NeighbourState::Reachable);
    assert_eq!(world.ask("10.1.0.8", 2, Some("192.0.2.1")), Place::Port(8));
}

#[test]
fn a_link_that_goes_takes_its_routes_along() {
    let mut world = node()
        .link(5, "veth5", Some(InfoKind::Veth))
        .route("10.0.0.5/32", MAIN, 5, None);
    let mut gone = LinkMessage::default();
    gone.header.index = 5;
    let touched = world.0.apply(&RouteNetlinkMessage::DelLink(gone), false);
    assert_eq!(touched.gone, Some(5));
    let world = world.link(5, "other", Some(InfoKind::Veth));
    assert_eq!(world.find("10.0.0.5"), Place::AskKernel);
}

#[test]
fn a_replaced_route_is_forgotten_although_nobody_says_so() {
    let mut world = node()
        .link(5, "veth5", Some(InfoKind::Veth))
        .link(6, "veth6", Some(InfoKind::Veth))
        .route("10.0.0.5/32", MAIN, 5, None);
    let replacing = RouteNetlinkMessage::NewRoute(route("10.0.0.5/32", MAIN, 6, None));
    let touched = world.0.apply(&replacing, true);
    assert_eq!(touched.host_route, Some(ip("10.0.0.5")));
    assert_eq!(world.find("10.0.0.5"), Place::Interface(6));
    world.0.apply(
        &RouteNetlinkMessage::DelRoute(route("10.0.0.5/32", MAIN, 6, None)),
        false,
    );
    assert_eq!(world.find("10.0.0.5"), Place::AskKernel);
}

#[test]
fn kinds_of_links() {
    let world = node()
        .link(9, "lo9", Some(InfoKind::Vxlan))
        .link(10, "nk", Some(InfoKind::Netkit));
    assert_eq!(world.0.links[&9].kind, Kind::Other("vxlan".into()));
    assert_eq!(world.0.links[&10].kind, Kind::Pod);
    assert_eq!(world.0.links[&2].kind, Kind::Other("physical".into()));
}
