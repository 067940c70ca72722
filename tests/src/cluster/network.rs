//! The wires of a cluster: a fabric, and on it the control plane and the nodes, each in a namespace.

use anyhow::Result;

use super::place;
use crate::lab::{Addresses, Family, address::host_bits, ip::Batch, netns::NetNs};

/// The namespaces of a cluster that is being made.
#[derive(Debug)]
pub struct Network {
    pub fabric: NetNs,
    pub control: NetNs,
    pub nodes: Vec<NetNs>,
}

impl Network {
    /// Makes and connects them. Nodes forward, and know each other's pod networks.
    ///
    /// # Errors
    /// Without root, or what `ip` says.
    pub fn new(nodes: usize) -> Result<Self> {
        let network = Self {
            fabric: NetNs::new()?,
            control: NetNs::new()?,
            nodes: (0..nodes).map(|_| NetNs::new()).collect::<Result<_>>()?,
        };
        let mut batch = Batch::default();
        batch
            .add("link set lo up")
            .add("link add fabric type bridge")
            .add("link set fabric up");
        let hosts = std::iter::once(&network.control).chain(&network.nodes);
        for (number, host) in hosts.enumerate() {
            wire(&mut batch, number, host);
        }
        batch.run(&network.fabric)?;

        join(&network.control, place::control(), None, nodes)?;
        for (index, netns) in network.nodes.iter().enumerate() {
            configure(netns, index + 1, nodes)?;
        }
        network.control.await_links(&["eth0"])?;
        network.nodes.iter().try_for_each(|node| node.await_links(&["eth0"]))?;
        Ok(network)
    }
}

/// Connects a host to the fabric: the control plane is number 0, nodes count from 1. Its interface has the same address of
/// the link layer each time, as a machine's has, so that others need not learn another one.
fn wire(batch: &mut Batch, number: usize, host: &NetNs) {
    batch
        .add(format!(
            "link add port{number} type veth peer name eth0 address 02:77:00:00:00:{number:02x} netns {}",
            host.path()
        ))
        .add(format!("link set port{number} master fabric up"));
}

/// What makes a node of a namespace that is connected.
fn configure(netns: &NetNs, number: usize, nodes: usize) -> Result<()> {
    netns.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv6/conf/default/forwarding", "1"),
    ])?;
    join(netns, place::node(number), Some(number), nodes)
}

/// Takes a node off the fabric.
pub fn unplug(fabric: &NetNs, number: usize) -> Result<()> {
    let mut batch = Batch::default();
    batch.add(format!("link del port{number}"));
    batch.run(fabric)
}

/// The network of a node that was taken off, made anew.
pub fn plug(fabric: &NetNs, number: usize, nodes: usize) -> Result<NetNs> {
    let netns = NetNs::new()?;
    let mut batch = Batch::default();
    wire(&mut batch, number, &netns);
    batch.run(fabric)?;
    configure(&netns, number, nodes)?;
    netns.await_links(&["eth0"])?;
    Ok(netns)
}

/// Addresses of a host, and its ways to the pods of all (other) nodes.
fn join(netns: &NetNs, own: [std::net::IpAddr; 2], number: Option<usize>, nodes: usize) -> Result<()> {
    let [v4, v6] = own;
    let mut batch = Batch::default();
    batch
        .add("link set lo up")
        .add("link set eth0 up")
        .add(format!("addr add {v4}/{} dev eth0", place::V4_BITS))
        .add(format!("addr add {v6}/{} dev eth0 nodad", place::V6_BITS));
    for other in (1..=nodes).filter(|other| Some(*other) != number) {
        for (pods, via) in place::pods(other).iter().zip(place::node(other)) {
            batch.add(format!("route add {pods} via {via} dev eth0"));
        }
    }
    if number.is_some() {
        // Addresses of Services are translated once a packet has found a way. What takes it for real ends at its gateway.
        for via in place::control() {
            batch.add(format!("route add {} via {via} dev eth0", Family::of(via).everything()));
        }
    }
    batch.run(netns)
}

/// A host on the fabric that is no node; `others` are the namespaces of control plane and nodes, in this order.
pub fn add_external(fabric: &NetNs, others: &[NetNs], number: u32, addresses: Addresses) -> Result<NetNs> {
    let netns = NetNs::new()?;
    let port = format!("external{number}");
    let mut batch = Batch::default();
    batch
        .add(format!(
            "link add {port} type veth peer name eth0 netns {}",
            netns.path()
        ))
        .add(format!("link set {port} master fabric up"));
    batch.run(fabric)?;
    let mut batch = Batch::default();
    batch.add("link set lo up").add("link set eth0 up");
    for address in addresses.iter() {
        let option = if address.is_ipv6() { " nodad" } else { "" };
        batch.add(format!("addr add {address}/{} dev eth0{option}", host_bits(address)));
    }
    let [v4, v6] = place::control();
    batch
        .add(format!("route add {v4}/{} dev eth0", host_bits(v4)))
        .add(format!("route add {v6}/{} dev eth0", host_bits(v6)));
    for node in 1..others.len() {
        for (pods, via) in place::pods(node).iter().zip(place::node(node)) {
            batch
                .add(format!("route add {via}/{} dev eth0", host_bits(via)))
                .add(format!("route add {pods} via {via} dev eth0"));
        }
    }
    batch.run(&netns)?;
    netns.await_links(&["eth0"])?;
    for other in others {
        let mut batch = Batch::default();
        for address in addresses.iter() {
            batch.add(format!("route replace {address}/{} dev eth0", host_bits(address)));
        }
        batch.run(other)?;
    }
    Ok(netns)
}
