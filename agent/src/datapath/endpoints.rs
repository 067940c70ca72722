//! Endpoints as the executor holds them: interface and policy come from different rooms and make one value together.

use std::{net::IpAddr, time::Duration};

use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use weir_common::{
    Addr,
    endpoint::EndpointEntry,
    identity::{SOURCE_KEY_PREFIX, SourceKey},
};

use super::sys;
use crate::policy::plan::EndpointPolicy;

/// The interface of a local pod and what is allowed on it whatever the policies say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceBinding {
    /// Endpoint id, from [`super::Datapath::allocate_id`] or inherited.
    pub id: u32,
    /// Host side of the pod's interface.
    pub ifindex: u32,
    /// For messages only.
    pub name: String,
    /// The pod's addresses: at most one of each family counts.
    pub addresses: Vec<IpAddr>,
    /// Prefixes that the pod may send from besides its addresses.
    pub more_sources: Vec<IpNet>,
    /// The pod may send from any address.
    pub any_source: bool,
    /// Judge and report, but let everything pass.
    pub audit: bool,
    /// Packets start with the network header (no Ethernet header).
    pub layer3: bool,
    /// For how long, from now on, TCP connections that began before the interface was attached are taken over
    /// mid-flow. Zero: no longer than was said before of this interface.
    pub adopt_for: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Endpoint {
    pub binding: Option<InterfaceBinding>,
    pub policy: Option<EndpointPolicy>,
    pub epoch: u32,
    pub adopt_until: u64,
    /// Its value is in the current generation's map, under this ifindex.
    pub written: Option<u32>,
    /// Both hooks run the current generation's programs.
    pub attached: bool,
    /// What about its interface needs the kernel's forwarding; the outer None: nobody has looked yet.
    pub forwarding: Option<Option<String>>,
    /// The node routes by destination alone.
    pub symmetric: bool,
}

impl Endpoint {
    /// Packets may be handed over between this endpoint and others directly.
    pub(super) fn is_direct(&self) -> bool {
        self.attached && self.forwarding == Some(None)
    }

    pub(super) fn bind(&mut self, binding: InterfaceBinding) {
        let stays = self.binding.as_ref().is_some_and(|old| old.ifindex == binding.ifindex);
        if !binding.adopt_for.is_zero() {
            let period = u64::try_from(binding.adopt_for.as_nanos()).unwrap_or(u64::MAX);
            self.adopt_until = sys::clock().saturating_add(period);
        } else if !stays {
            self.adopt_until = 0;
        }
        if !stays {
            self.forwarding = None;
        }
        self.binding = Some(binding);
    }

    /// The next epoch. Zero is skipped: it is what an empty value has.
    pub(super) fn advance(&mut self) {
        self.epoch = self.epoch.wrapping_add(1).max(1);
    }

    /// The value for the endpoint map. None: interface or policy is not known yet.
    pub(super) fn value(&self) -> Option<EndpointEntry> {
        let (binding, policy) = (self.binding.as_ref()?, self.policy.as_ref()?);
        let address = |v4: bool| {
            let address = binding.addresses.iter().find(|address| address.is_ipv4() == v4);
            address.map_or(Addr::UNSPECIFIED, |address| Addr::from(*address))
        };
        let flags = [
            (EndpointEntry::INGRESS_ISOLATED, policy.ingress_isolated),
            (EndpointEntry::EGRESS_ISOLATED, policy.egress_isolated),
            (EndpointEntry::INGRESS_CLOSED, policy.ingress_closed),
            (EndpointEntry::EGRESS_CLOSED, policy.egress_closed),
            (EndpointEntry::ANY_SOURCE, binding.any_source),
            (EndpointEntry::MORE_SOURCES, !binding.more_sources.is_empty()),
            (EndpointEntry::AUDIT, binding.audit),
            (EndpointEntry::LAYER3, binding.layer3),
            (EndpointEntry::DIRECT, self.is_direct() && !binding.layer3),
            (EndpointEntry::SYMMETRIC, self.symmetric),
        ];
        let stamp = EndpointEntry::make_stamp(binding.id, self.epoch);
        Some(EndpointEntry {
            stamp,
            adopt_until: self.adopt_until,
            ifindex: binding.ifindex,
            flags: flags
                .into_iter()
                .filter(|(_, set)| *set)
                .fold(0, |all, (flag, _)| all | flag),
            addr4: address(true),
            addr6: address(false),
            egress: policy.egress,
            ingress: policy.ingress,
            stamp_end: stamp,
        })
    }
}

/// Prefix length of a network in the one address space of both families.
pub(super) fn prefix_length(net: &IpNet) -> u32 {
    match net {
        IpNet::V4(net) => Addr::V4_PREFIX + u32::from(net.prefix_len()),
        IpNet::V6(net) => u32::from(net.prefix_len()),
    }
}

/// Key of a network in the CIDR trie. Host bits are cleared: tries compare only the prefix, but listings show it all.
pub(super) fn cidr_key(net: &IpNet) -> Key<Addr> {
    Key::new(prefix_length(net), Addr::from(net.network()))
}

/// Key of a source prefix of an endpoint.
pub(super) fn source_key(endpoint: u32, net: &IpNet) -> Key<SourceKey> {
    Key::new(
        SOURCE_KEY_PREFIX + prefix_length(net),
        SourceKey {
            endpoint,
            addr: Addr::from(net.network()),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        let mut endpoint = Endpoint::default();
        endpoint.bind(InterfaceBinding {
            id: 9,
            ifindex: 4,
            addresses: vec!["2001:db8::9".parse().expect("v6"), "10.0.0.9".parse().expect("v4")],
            any_source: true,
            adopt_for: Duration::from_secs(60),
            ..InterfaceBinding::default()
        });
        endpoint.policy = Some(EndpointPolicy {
            endpoint: 9,
            egress_closed: true,
            ingress_isolated: true,
            ..EndpointPolicy::default()
        });
        endpoint
    }

    #[test]
    fn interface_and_policy_make_one_value() {
        let mut endpoint = endpoint();
        endpoint.advance();
        let value = endpoint.value().expect("both are known");
        assert_eq!((value.id(), value.epoch(), value.ifindex), (9, 1, 4));
        assert_eq!(value.stamp, value.stamp_end);
        assert_eq!(value.addr4.to_string(), "10.0.0.9");
        assert_eq!(value.addr6.to_string(), "2001:db8::9");
        assert_eq!(
            value.flags,
            EndpointEntry::EGRESS_CLOSED | EndpointEntry::INGRESS_ISOLATED | EndpointEntry::ANY_SOURCE
        );
        assert!(value.adopt_until > sys::clock());
        endpoint.policy = None;
        assert_eq!(endpoint.value(), None);
    }

    #[test]
    fn epochs_grow_and_skip_zero() {
        let mut endpoint = Endpoint {
            epoch: u32::MAX - 1,
            ..Endpoint::default()
        };
        endpoint.advance();
        assert_eq!(endpoint.epoch, u32::MAX);
        endpoint.advance();
        assert_eq!(endpoint.epoch, 1);
    }

    #[test]
    fn both_families_share_one_prefix_space() {
        let net = |text: &str| text.parse::<IpNet>().expect("a network");
        assert_eq!(prefix_length(&net("10.0.0.0/8")), 104);
        assert_eq!(prefix_length(&net("0.0.0.0/0")), 96);
        assert_eq!(prefix_length(&net("2001:db8::/32")), 32);
        assert_eq!(
            cidr_key(&net("10.1.2.3/8")).data(),
            Addr::from("10.0.0.0".parse::<IpAddr>().expect("v4"))
        );
    }
}
