//! How CNI plugins link pods to their node: what they configure on either side.

use std::net::IpAddr;

use super::{
    address::{Addresses, Family, host_bits},
    ip::Batch,
};

/// The link between pods and their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Calico, AWS VPC CNI: a host route per pod; the pod's gateway is a link-local address that the node answers for.
    Routed,
    /// The `ptp` plugin (kind): a host route per pod; the pod's gateway is an address of the node's end of the link.
    PointToPoint,
    /// The `bridge` plugin: the node's ends are ports of a bridge that holds the gateway address. Pods of one node are
    /// one segment.
    Bridge,
    /// EKS branch interfaces (security groups for pods): as `Routed`, but the host routes stand in a table of their own,
    /// which only `ip rule`s by incoming interface lead to.
    Branch,
}

/// The table of `Branch`.
const BRANCH_TABLE: u32 = 101;

/// Name of the bridge of `Bridge`.
pub const BRIDGE: &str = "cni0";

/// The node's end of every pod link has this MAC, and so this link-local address, as Calico's have.
const HOST_MAC: &str = "ee:ee:ee:ee:ee:ee";
const HOST_LINK_LOCAL: &str = "fe80::ecee:eeff:feee:eeee";

/// What a pod's link is made from.
pub struct Link<'a> {
    /// The node's end.
    pub interface: &'a str,
    /// Path of the pod's namespace.
    pub netns: &'a str,
    pub addresses: Addresses,
    /// The node's addresses in the pod network, for layouts that have any.
    pub gateway: Addresses,
}

impl Layout {
    /// Prefix of the names of the node's ends.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Routed => "cali",
            Self::PointToPoint | Self::Bridge => "veth",
            Self::Branch => "vlan",
        }
    }

    /// What a node needs before its first pod. `uplink` is its interface to the fabric.
    pub fn node(self, batch: &mut Batch, gateway: Addresses, uplink: &str) {
        match self {
            Self::Routed | Self::PointToPoint => {}
            Self::Bridge => {
                batch.add(format!("link add {BRIDGE} type bridge"));
                batch.add(format!("link set {BRIDGE} up"));
                for address in gateway.iter() {
                    let bits = segment_bits(address);
                    batch.add(format!("addr add {address}/{bits} dev {BRIDGE}{}", nodad(address)));
                }
            }
            Self::Branch => {
                rule(batch, "add", uplink);
                rule(batch, "add", "lo");
            }
        }
    }

    /// The node's side of a new pod's link.
    pub fn host_side(self, batch: &mut Batch, link: &Link<'_>) {
        let Link { interface, netns, .. } = link;
        batch.add(format!(
            "link add {interface} address {HOST_MAC} type veth peer name eth0 netns {netns}"
        ));
        if self == Self::Bridge {
            // A bridge port keeps a MAC of its own.
            let mac = port_mac(link.addresses);
            batch.add(format!("link set {interface} address {mac}"));
            batch.add(format!("link set {interface} master {BRIDGE} up"));
            return;
        }
        batch.add(format!("link set {interface} up"));
        if self == Self::PointToPoint {
            for address in link.gateway.iter() {
                let bits = host_bits(address);
                batch.add(format!("addr add {address}/{bits} dev {interface}{}", nodad(address)));
            }
        }
        let table = if self == Self::Branch { BRANCH_TABLE } else { 254 };
        for address in link.addresses.iter() {
            let bits = host_bits(address);
            batch.add(format!("route add {address}/{bits} dev {interface} table {table}"));
        }
        if self == Self::Branch {
            rule(batch, "add", interface);
        }
    }

    /// The pod's side of its link.
    pub fn pod_side(self, batch: &mut Batch, link: &Link<'_>) {
        batch.add("link set lo up");
        batch.add("link set eth0 up");
        for address in link.addresses.iter() {
            let bits = match self {
                Self::Bridge => segment_bits(address),
                Self::Routed | Self::PointToPoint | Self::Branch => host_bits(address),
            };
            batch.add(format!("addr add {address}/{bits} dev eth0{}", nodad(address)));
            let gateway = match self {
                Self::Routed | Self::Branch if address.is_ipv4() => Some("169.254.1.1".to_owned()),
                Self::Routed | Self::Branch => {
                    batch.add(format!("route add ::/0 via {HOST_LINK_LOCAL} dev eth0"));
                    None
                }
                Self::PointToPoint | Self::Bridge => {
                    let family = Family::of(address);
                    link.gateway.of(family).map(|gateway| gateway.to_string())
                }
            };
            if let Some(gateway) = gateway {
                if self != Self::Bridge {
                    batch.add(format!("route add {gateway} dev eth0"));
                }
                let all = Family::of(address).everything();
                batch.add(format!("route add {all} via {gateway} dev eth0"));
            }
        }
    }

    /// Takes back what [`Self::host_side`] put outside of the link itself (routes go with it).
    pub fn remove(self, batch: &mut Batch, interface: &str) {
        if self == Self::Branch {
            rule(batch, "del", interface);
        }
        batch.add(format!("link del {interface}"));
    }
}

/// What comes in through an interface asks the table of `Branch`, in both families.
fn rule(batch: &mut Batch, verb: &str, interface: &str) {
    let command = format!("rule {verb} pref 10 iif {interface} lookup {BRANCH_TABLE}");
    batch.add(&command);
    batch.add_v6(&command);
}

/// Prefix length of the segment that pods behind a bridge share.
const fn segment_bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 24,
        IpAddr::V6(_) => 120,
    }
}

/// IPv6 addresses are usable at once.
const fn nodad(address: IpAddr) -> &'static str {
    match address {
        IpAddr::V4(_) => "",
        IpAddr::V6(_) => " nodad",
    }
}

/// A MAC of its own for a bridge port, from the last 32 bits of the pod's address.
fn port_mac(addresses: Addresses) -> String {
    let [a, b, c, d] = match (addresses.v4, addresses.v6) {
        (Some(v4), _) => v4.octets(),
        (None, Some(v6)) => {
            let [.., a, b, c, d] = v6.octets();
            [a, b, c, d]
        }
        (None, None) => [0; 4],
    };
    format!("02:fe:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}
