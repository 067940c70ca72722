//! The lab: nodes, pods and externals on one fabric.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    address::{Addresses, Families, Family, host_bits},
    cleanup::Scratch,
    hosts::Hosts,
    ip::Batch,
    layout::{Layout, Link},
    netns::NetNs,
};

/// Every host's interface to the fabric.
const UPLINK: &str = "eth0";

/// A namespace that stands for a Kubernetes node.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub netns: Arc<NetNs>,
    pub addresses: Addresses,
    pub layout: Layout,
    /// Its number in the lab, from 1.
    index: u8,
    /// The node's addresses in the pod network, where the layout has any.
    gateway: Addresses,
    /// Pods linked so far, for names and automatic addresses.
    links: u16,
}

/// A pod's namespace and link.
#[derive(Clone, Debug)]
pub struct PodLink {
    pub netns: Arc<NetNs>,
    pub node: String,
    pub addresses: Addresses,
    /// The node's end of the link.
    pub interface: String,
}

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct PodPlan {
    /// `namespace/name`
    pub name: String,
    pub node: String,
    /// None: the next free address of the node's own network.
    pub address: Option<Ipv4Addr>,
}

impl PodPlan {
    /// A pod on a node, with any address.
    #[must_use]
    pub fn new(name: &str, node: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: node.to_owned(),
            address: None,
        }
    }
}

#[derive(Debug)]
struct External {
    netns: Arc<NetNs>,
    addresses: Addresses,
}

/// A cluster of namespaces. Everything goes when it is dropped, agents (which share its directories) included.
#[derive(Debug)]
pub struct Lab {
    families: Families,
    fabric: NetNs,
    nodes: BTreeMap<String, Node>,
    pods: BTreeMap<String, PodLink>,
    externals: BTreeMap<String, External>,
    scratch: Arc<Scratch>,
}

impl Lab {
    /// An empty cluster: a fabric without hosts.
    ///
    /// # Errors
    /// Without root.
    pub fn new(families: Families) -> Result<Self> {
        let scratch = Arc::new(Scratch::new()?);
        let fabric = NetNs::new()?;
        let mut batch = Batch::default();
        batch.add("link add fabric type bridge").add("link set fabric up");
        batch.run(&fabric)?;
        Ok(Self {
            families,
            fabric,
            nodes: BTreeMap::new(),
            pods: BTreeMap::new(),
            externals: BTreeMap::new(),
            scratch,
        })
    }

    #[must_use]
    pub fn families(&self) -> Families {
        self.families
    }

    /// The lab's directories.
    #[must_use]
    pub fn scratch(&self) -> &Arc<Scratch> {
        &self.scratch
    }

    /// A directory of the lab's own, for files of a test.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.scratch.directory()
    }

    /// Adds a node.
    ///
    /// # Errors
    /// If there is one of that name, or what `ip` says.
    pub fn add_node(&mut self, name: &str, layout: Layout) -> Result<()> {
        ensure!(!self.nodes.contains_key(name), "the lab has a node {name} already");
        let index = u8::try_from(self.nodes.len() + 1).context("a lab has at most 255 nodes")?;
        let netns = Arc::new(NetNs::new()?);
        let addresses = Addresses::planned(Ipv4Addr::new(172, 18, 0, index), self.families);
        let gateway = Addresses::planned(Ipv4Addr::new(10, 244, index, 1), self.families);
        let port = format!("node{index}");
        self.plug(&port, &netns)?;
        netns.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/forwarding", "1"),
            // A packet for a pod that has gone turns round on the fabric; nobody shall learn a route from that.
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("ipv4/conf/eth0/send_redirects", "0"),
            // What a pod sends from a foreign address must be the agent's to stop, not the kernel's.
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            // The pods' links, which come later, answer for the gateway that no interface has.
            ("ipv4/conf/default/proxy_arp", "1"),
        ])?;
        let mut batch = Batch::default();
        self.join_fabric(&mut batch, addresses, 24);
        for (pod, remote) in &self.pods {
            let node = self.nodes.get(&remote.node).with_context(|| format!("node of {pod}"))?;
            route_via(&mut batch, "replace", remote.addresses, node.addresses);
        }
        for external in self.externals.values() {
            for address in external.addresses.iter() {
                batch.add(format!("route add {address}/{} dev {UPLINK}", host_bits(address)));
            }
        }
        layout.node(&mut batch, gateway, UPLINK);
        batch.run(&netns)?;
        netns.await_links(&[UPLINK])?;
        self.fabric.await_links(&[&port])?;
        let node = Node {
            name: name.to_owned(),
            netns,
            addresses,
            layout,
            index,
            gateway,
            links: 0,
        };
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    /// Adds a host outside of the cluster, known as `ext/NAME`.
    ///
    /// # Errors
    /// If there is one of that name, or what `ip` says.
    pub fn add_external(&mut self, name: &str, address: Ipv4Addr) -> Result<()> {
        ensure!(
            !self.externals.contains_key(name),
            "the lab has an external {name} already"
        );
        let netns = Arc::new(NetNs::new()?);
        let addresses = Addresses::planned(address, self.families);
        let port = format!("ext{}", self.externals.len());
        self.plug(&port, &netns)?;
        let mut batch = Batch::default();
        self.join_fabric(&mut batch, addresses, 32);
        for pod in self.pods.values() {
            let node = self.node(&pod.node)?;
            route_via(&mut batch, "add", pod.addresses, node.addresses);
        }
        batch.run(&netns)?;
        netns.await_links(&[UPLINK])?;
        self.fabric.await_links(&[&port])?;
        for node in self.nodes.values() {
            let mut batch = Batch::default();
            for address in addresses.iter() {
                batch.add(format!("route add {address}/{} dev {UPLINK}", host_bits(address)));
            }
            batch.run(&node.netns)?;
        }
        self.externals.insert(name.to_owned(), External { netns, addresses });
        Ok(())
    }

    /// Removes every external.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn remove_externals(&mut self) -> Result<()> {
        let gone = std::mem::take(&mut self.externals);
        for node in self.nodes.values() {
            let mut batch = Batch::default();
            for address in gone.values().flat_map(|external| external.addresses.iter()) {
                batch.add(format!("route del {address}/{} dev {UPLINK}", host_bits(address)));
            }
            batch.run(&node.netns)?;
        }
        let mut batch = Batch::default();
        for number in 0..gone.len() {
            batch.add(format!("link del ext{number}"));
        }
        batch.run(&self.fabric)
    }

    /// Adds pods, all in one go.
    ///
    /// # Errors
    /// If one of that name is there, its node is not, or what `ip` says.
    pub fn add_pods(&mut self, plans: &[PodPlan]) -> Result<()> {
        let mut made = Vec::with_capacity(plans.len());
        for plan in plans {
            ensure!(
                !self.pods.contains_key(&plan.name),
                "the lab has a pod {} already",
                plan.name
            );
            let families = self.families;
            let node = self
                .nodes
                .get_mut(&plan.node)
                .with_context(|| format!("no node {}", plan.node))?;
            node.links += 1;
            let planned = plan.address.unwrap_or_else(|| {
                let host = u8::try_from(node.links + 9).unwrap_or(u8::MAX);
                Ipv4Addr::new(10, 244, node.index, host)
            });
            made.push((
                plan.name.clone(),
                PodLink {
                    netns: Arc::new(NetNs::new()?),
                    node: plan.node.clone(),
                    addresses: Addresses::planned(planned, families),
                    interface: format!("{}{:04x}", node.layout.prefix(), node.links),
                },
            ));
        }
        for node in self.nodes.values() {
            let mut batch = Batch::default();
            for (_, pod) in &made {
                if pod.node == node.name {
                    node.layout.host_side(&mut batch, &link(pod, node, &pod.netns.path()));
                } else {
                    route_via(&mut batch, "replace", pod.addresses, self.node(&pod.node)?.addresses);
                }
            }
            batch.run(&node.netns)?;
            let delays: Vec<String> = made
                .iter()
                .filter(|(_, pod)| pod.node == node.name)
                .map(|(_, pod)| format!("ipv4/neigh/{}/proxy_delay", pod.interface))
                .collect();
            // By default the answer for the gateway comes after a random time of up to 0.8 s.
            node.netns
                .sysctl(&delays.iter().map(|name| (name.as_str(), "0")).collect::<Vec<_>>())?;
        }
        for external in self.externals.values() {
            let mut batch = Batch::default();
            for (_, pod) in &made {
                route_via(&mut batch, "replace", pod.addresses, self.node(&pod.node)?.addresses);
            }
            batch.run(&external.netns)?;
        }
        // Starting a process costs more than what it does here, so several at once.
        let chunk = made.len().div_ceil(4).max(1);
        thread::scope(|scope| {
            let workers: Vec<_> = made
                .chunks(chunk)
                .map(|pods| {
                    let lab = &*self;
                    scope.spawn(move || {
                        pods.iter().try_for_each(|(_, pod)| {
                            let node = lab.node(&pod.node)?;
                            let mut batch = Batch::default();
                            node.layout.pod_side(&mut batch, &link(pod, node, ""));
                            batch.run(&pod.netns)
                        })
                    })
                })
                .collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        for node in self.nodes.values() {
            let links: Vec<&str> = made
                .iter()
                .filter(|(_, pod)| pod.node == node.name)
                .map(|(_, pod)| pod.interface.as_str())
                .collect();
            node.netns.await_links(&links)?;
        }
        made.iter().try_for_each(|(_, pod)| pod.netns.await_links(&[UPLINK]))?;
        self.pods.extend(made);
        Ok(())
    }

    /// Removes a pod: link, routes, and its namespace once nobody holds it.
    ///
    /// # Errors
    /// If there is none of that name, or what `ip` says.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let pod = self.pods.remove(name).with_context(|| format!("no pod {name}"))?;
        for node in self.nodes.values() {
            let mut batch = Batch::default();
            if node.name == pod.node {
                node.layout.remove(&mut batch, &pod.interface);
            } else {
                route_via(&mut batch, "del", pod.addresses, self.node(&pod.node)?.addresses);
            }
            batch.run(&node.netns)?;
        }
        for external in self.externals.values() {
            let mut batch = Batch::default();
            route_via(&mut batch, "del", pod.addresses, self.node(&pod.node)?.addresses);
            batch.run(&external.netns)?;
        }
        Ok(())
    }

    /// A node by name.
    ///
    /// # Errors
    /// If there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .get(name)
            .with_context(|| format!("no node {name} in the lab"))
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// A pod by `namespace/name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn pod(&self, name: &str) -> Result<&PodLink> {
        self.pods.get(name).with_context(|| format!("no pod {name} in the lab"))
    }

    pub fn pods(&self) -> impl Iterator<Item = (&str, &PodLink)> {
        self.pods.iter().map(|(name, pod)| (name.as_str(), pod))
    }

    /// The namespace and addresses of `namespace/pod`, `ext/NAME` or `node/NAME`.
    ///
    /// # Errors
    /// If there is no such host.
    pub fn host(&self, name: &str) -> Result<(&Arc<NetNs>, Addresses)> {
        if let Some(pod) = self.pods.get(name) {
            return Ok((&pod.netns, pod.addresses));
        }
        let other = match name.split_once('/') {
            Some(("ext", name)) => self.externals.get(name).map(|host| (&host.netns, host.addresses)),
            Some(("node", name)) => self.nodes.get(name).map(|node| (&node.netns, node.addresses)),
            _ => None,
        };
        match other {
            Some(host) => Ok(host),
            None => bail!("no pod, external or node {name} in the lab"),
        }
    }

    /// A host's address of one family.
    ///
    /// # Errors
    /// If there is no such host, or it has none of that family.
    pub fn address(&self, name: &str, family: Family) -> Result<IpAddr> {
        let (_, addresses) = self.host(name)?;
        addresses
            .of(family)
            .with_context(|| format!("{name} has no {family:?} address"))
    }

    /// Connects a namespace to the fabric.
    fn plug(&self, port: &str, netns: &NetNs) -> Result<()> {
        let mut batch = Batch::default();
        batch.add(format!(
            "link add {port} type veth peer name {UPLINK} netns {}",
            netns.path()
        ));
        batch.add(format!("link set {port} master fabric up"));
        batch.run(&self.fabric)
    }

    /// A host's own side of the fabric: everything that has no better route is looked for on it.
    fn join_fabric(&self, batch: &mut Batch, addresses: Addresses, bits: u8) {
        batch.add("link set lo up").add(format!("link set {UPLINK} up"));
        for address in addresses.iter() {
            let (bits, option) = match address {
                IpAddr::V4(_) => (bits, ""),
                IpAddr::V6(_) => (bits + 96, " nodad"),
            };
            batch.add(format!("addr add {address}/{bits} dev {UPLINK}{option}"));
            batch.add(format!("route add {} dev {UPLINK}", Family::of(address).everything()));
        }
    }
}

impl Hosts for Lab {
    fn host(&self, name: &str) -> Result<(&Arc<NetNs>, Addresses)> {
        Self::host(self, name)
    }
}

fn link<'a>(pod: &'a PodLink, node: &Node, netns: &'a str) -> Link<'a> {
    Link {
        interface: &pod.interface,
        netns,
        addresses: pod.addresses,
        gateway: node.gateway,
    }
}

/// Routes to a pod through its node.
fn route_via(batch: &mut Batch, verb: &str, pod: Addresses, node: Addresses) {
    for (address, via) in pod.iter().zip(node.iter()) {
        let bits = host_bits(address);
        batch.add(format!("route {verb} {address}/{bits} via {via} dev {UPLINK} onlink"));
    }
}
