//! Which packets between local pods may be handed over without the node's own forwarding (`direct` in ebpf/).
//!
//! Handed over, a packet misses all that the node does with what it forwards: netfilter, routes, queueing disciplines
//! and programs of the receiver's interface. So whatever could do something there turns it off. And an agent must be
//! there to look: what it has found holds for [`LEASE`].

use std::{io, time::Duration};

use netlink_sys::protocols::NETLINK_ROUTE;
use tracing::info;

use super::{
    Datapath,
    error::Result,
    links::Links,
    netfilter,
    netlink::{self, attribute, text, word},
    sys,
};

/// Who carries packets from one local pod to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forward {
    /// Weir, where nothing on the node needs the kernel's forwarding.
    #[default]
    Auto,
    /// The kernel, always.
    Kernel,
    /// Weir, also where netfilter has rules for forwarded packets.
    Direct,
}

/// For how long the programs believe what was found out, should nobody look again.
const LEASE: Duration = Duration::from_secs(60);

const RTM_GETLINK: u16 = 18;
const RTM_GETTFILTER: u16 = 46;
/// Length of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
const IFLA_QDISC: u16 = 6;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;
/// Length of `struct tcmsg`.
const TC_HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const RTM_GETRULE: u16 = 34;
/// Length of `struct fib_rule_hdr`.
const RULE_HEADER: usize = 12;
const FRA_PRIORITY: u16 = 6;
/// Priorities of the rules for the tables local, main and default.
const FIRST_RULES: [u32; 3] = [0, 32_766, 32_767];
/// What an interface has that queues nothing.
const NO_QUEUE: &str = "noqueue";

/// The clsact hooks, as parents of filters.
const HOOKS: [u32; 2] = [0xffff_fff2, 0xffff_fff3];

impl Datapath {
    /// Looks again at what decides whether packets between local pods are handed over directly, and lets the programs
    /// know; of interfaces at those that have not been looked at, or with `all` at every one.
    pub fn review_forwarding(&mut self, all: bool) -> Result<()> {
        let obstacle = match self.options.forward {
            Forward::Kernel => Some("--forward kernel".to_owned()),
            Forward::Direct => None,
            Forward::Auto => netfilter::rules(),
        };
        if self.kernel_forwards != Some(obstacle.clone()) {
            match &obstacle {
                Some(why) => info!("the kernel forwards between local pods: {why}"),
                None => info!("packets between local pods are handed over directly"),
            }
        }
        let until = match obstacle {
            Some(_) => 0,
            None => sys::clock().saturating_add(u64::try_from(LEASE.as_nanos()).unwrap_or(u64::MAX)),
        };
        self.kernel_forwards = Some(obstacle);
        self.generation.set_direct_until(until)?;
        if until == 0 {
            return Ok(());
        }
        let symmetric = !routes_by_policy().unwrap_or(true);
        let mut changed = Vec::new();
        for (id, endpoint) in &mut self.endpoints {
            let (Some(binding), true) = (&endpoint.binding, endpoint.attached) else {
                continue;
            };
            if all || endpoint.forwarding.is_none() {
                let before = (endpoint.is_direct(), endpoint.symmetric);
                endpoint.forwarding = Some(obstacle_on(binding.ifindex, &self.links));
                endpoint.symmetric = symmetric;
                if (endpoint.is_direct(), endpoint.symmetric) != before {
                    changed.push(*id);
                }
            }
        }
        changed.into_iter().try_for_each(|id| self.write(id))
    }

    /// Why the kernel forwards all packets between local pods, if it does.
    #[must_use]
    pub fn forwarding_obstacle(&self) -> Option<&str> {
        match &self.kernel_forwards {
            Some(obstacle) => obstacle.as_deref(),
            None => Some("nobody has looked yet"),
        }
    }

    /// Why the kernel forwards the packets of one endpoint, where it need not those of all.
    #[must_use]
    pub fn endpoint_obstacle(&self, id: u32) -> Option<&str> {
        self.endpoints.get(&id)?.forwarding.as_ref()?.as_deref()
    }
}

/// True where there are routing rules besides those that every network namespace begins with (local, main, default).
fn routes_by_policy() -> io::Result<bool> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut header = [0; RULE_HEADER];
        header[0] = family as u8;
        let rules = netlink::ask(NETLINK_ROUTE, RTM_GETRULE, netlink::NLM_F_DUMP, &header)?;
        let mut priorities = rules.iter().map(|rule| {
            let priority = attribute(rule.body.get(RULE_HEADER..).unwrap_or_default(), FRA_PRIORITY);
            priority.and_then(|priority| word(priority, 0)).unwrap_or(0)
        });
        if priorities.any(|priority| !FIRST_RULES.contains(&priority)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What on an interface, or about it, needs the kernel's forwarding.
fn obstacle_on(ifindex: u32, links: &Links) -> Option<String> {
    let found = look_at(ifindex).and_then(|found| match found {
        Some(found) => Ok(Some(found)),
        None => filter(ifindex),
    });
    match found {
        Ok(Some(found)) => return Some(found),
        Ok(None) => {}
        Err(error) => return Some(format!("cannot look at the interface: {error}")),
    }
    match links.foreign(ifindex) {
        Ok(programs) => programs
            .first()
            .map(|program| format!("another program runs on its interface: {program}")),
        Err(error) => Some(format!("cannot look at the interface: {error}")),
    }
}

/// What an interface is, and what stands before it.
fn look_at(ifindex: u32) -> io::Result<Option<String>> {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    let answers = netlink::ask(NETLINK_ROUTE, RTM_GETLINK, 0, &header)?;
    let link = answers.first().and_then(|answer| answer.body.get(LINK_HEADER..));
    let link = link.ok_or_else(|| io::Error::other("the kernel says nothing of it"))?;
    let info = attribute(link, IFLA_LINKINFO).unwrap_or_default();
    let kind = attribute(info, IFLA_INFO_KIND).map(text).unwrap_or_default();
    let queue = attribute(link, IFLA_QDISC).map(text).unwrap_or_default();
    Ok(if kind != "veth" {
        Some("its interface is no veth".to_owned())
    } else if attribute(link, IFLA_LINK_NETNSID).is_none() {
        Some("both ends of its interface lie in one network namespace".to_owned())
    } else if attribute(link, IFLA_MASTER).is_some_and(|master| word(master, 0) != Some(0)) {
        Some("its interface is a port of a bridge or part of a VRF".to_owned())
    } else if queue != NO_QUEUE {
        Some(format!("what it receives goes through a queueing discipline ({queue})"))
    } else {
        None
    })
}

/// A filter on the interface's hooks that is no program (programs: [`Links::foreign`]).
fn filter(ifindex: u32) -> io::Result<Option<String>> {
    for hook in HOOKS {
        let mut header = [0; TC_HEADER];
        header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        header[12..16].copy_from_slice(&hook.to_ne_bytes());
        let filters = match netlink::ask(NETLINK_ROUTE, RTM_GETTFILTER, netlink::NLM_F_DUMP, &header) {
            Ok(filters) => filters,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => continue,
            Err(error) => return Err(error),
        };
        let kinds = filters
            .iter()
            .filter_map(|filter| attribute(filter.body.get(TC_HEADER..)?, TCA_KIND));
        if let Some(kind) = kinds.map(text).find(|kind| kind != "bpf") {
            return Ok(Some(format!("its interface has another filter ({kind})")));
        }
    }
    Ok(None)
}
