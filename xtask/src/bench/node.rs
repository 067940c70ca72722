//! One node with pods on routed veth pairs, as Calico and the AWS VPC CNI lay them out.

use std::net::Ipv4Addr;

use anyhow::Result;

use super::netns::{Namespace, ip, sysctl};

/// The name of the node that runs the agent.
pub const NAME: &str = "bench-node";

/// Its own address.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);

/// What every pod's default route points to; it is on no interface.
const GATEWAY: &str = "169.254.1.1";

pub struct Node {
    pub namespace: Namespace,
    pub pods: Vec<Pod>,
}

pub struct Pod {
    pub name: String,
    pub address: Ipv4Addr,
    /// The interface's end on the node.
    pub interface: String,
    pub namespace: Namespace,
}

impl Node {
    pub fn new(pods: &[&str]) -> Result<Self> {
        let namespace = Namespace::new()?;
        {
            let _inside = namespace.enter()?;
            ip(&format!("address add {ADDRESS}/32 dev lo"))?;
            sysctl("net/ipv4/ip_forward", "1")?;
            for scope in ["all", "default"] {
                sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
            }
        }
        let mut node = Self {
            namespace,
            pods: Vec::new(),
        };
        for name in pods {
            node.add(name)?;
        }
        Ok(node)
    }

    fn add(&mut self, name: &str) -> Result<()> {
        let number = u8::try_from(self.pods.len() + 10)?;
        let pod = Pod {
            name: name.to_owned(),
            address: Ipv4Addr::new(10, 77, 0, number),
            interface: format!("cali{name}"),
            namespace: Namespace::new()?,
        };
        let (host_mac, pod_mac) = (
            format!("02:00:00:00:01:{number:02x}"),
            format!("02:00:00:00:02:{number:02x}"),
        );
        let Pod { address, interface, .. } = &pod;
        {
            let _inside = self.namespace.enter()?;
            ip(&format!(
                "link add {interface} address {host_mac} type veth peer name eth0 address {pod_mac} netns {peer}\n\
                 link set {interface} up\n\
                 route add {address}/32 dev {interface}\n\
                 neighbour add {address} lladdr {pod_mac} dev {interface} nud permanent\n",
                peer = pod.namespace.path(),
            ))?;
        }
        {
            let _inside = pod.namespace.enter()?;
            ip(&format!(
                "link set eth0 up\n\
                 address add {address}/32 dev eth0\n\
                 route add {GATEWAY} dev eth0 scope link\n\
                 route add default via {GATEWAY}\n\
                 neighbour add {GATEWAY} lladdr {host_mac} dev eth0 nud permanent\n"
            ))?;
        }
        self.pods.push(pod);
        Ok(())
    }
}
