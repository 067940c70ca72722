//! Rules about Services become rules about the addresses and ports of their endpoints, here, so that nobody after the
//! index knows Services.
//!
//! A rule of an ingress list asks for the endpoints' addresses alone, as Calico's do. A rule of an egress list asks for
//! an endpoint's address with a port of its slice, or for an address of the Service itself with one of its ports: that
//! is where the packet goes before anybody translates it, and it must not slip past a rule that denies.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use weir_common::Direction;

use super::{Index, IndexOutput, Scoped};
use crate::{
    api::{EndpointSlice, Service, ServicePolicy, ServiceRule, TransportPort},
    policy::model::{PeerMatch, Policy, PolicyKey, PortMatch, Rule, TrafficMatch},
};

#[derive(Default)]
pub(super) struct Services {
    services: HashMap<Scoped, Arc<Service>>,
    slices: HashMap<Scoped, Arc<EndpointSlice>>,
    /// Slices of each Service, by name, so that rules do not depend on who came first.
    slices_of: HashMap<Scoped, BTreeMap<Arc<str>, Arc<EndpointSlice>>>,
    policies: HashMap<PolicyKey, Arc<ServicePolicy>>,
}

impl Services {
    pub(super) fn services(&self) -> impl Iterator<Item = &Scoped> {
        self.services.keys()
    }

    pub(super) fn slices(&self) -> impl Iterator<Item = &Scoped> {
        self.slices.keys()
    }

    /// The policy is gone, or names no Service any more.
    pub(super) fn forget(&mut self, key: &PolicyKey) {
        self.policies.remove(key);
    }

    /// The policies that name the Service, as they are now.
    fn naming(&self, service: &Scoped) -> Vec<Arc<Policy>> {
        self.policies
            .values()
            .filter(|policy| {
                let named = |rule: &ServiceRule| rule.namespace == service.0 && rule.name == service.1;
                policy.services.iter().any(named)
            })
            .map(|policy| self.resolve(policy))
            .collect()
    }

    fn resolve(&self, object: &ServicePolicy) -> Arc<Policy> {
        let mut policy = object.policy.clone();
        // From the end, so that positions stay right while one rule becomes several.
        for service in object.services.iter().rev() {
            let rules = match service.direction {
                Direction::Ingress => &mut policy.ingress,
                Direction::Egress => &mut policy.egress,
            };
            if let Some(rules) = rules
                && service.position < rules.len()
            {
                let resolved = self.rules(service);
                // Without endpoints the rule that matches nothing stays.
                if !resolved.is_empty() {
                    rules.splice(service.position..=service.position, resolved);
                }
            }
        }
        Arc::new(policy)
    }

    fn rules(&self, service: &ServiceRule) -> Vec<Rule> {
        let key = (service.namespace.clone(), service.name.clone());
        let slices = self.slices_of.get(&key).into_iter().flat_map(BTreeMap::values);
        match service.direction {
            Direction::Ingress => {
                let addresses: Vec<IpAddr> = slices.flat_map(|slice| slice.addresses.iter().copied()).collect();
                if addresses.is_empty() {
                    return Vec::new();
                }
                vec![Rule {
                    peers: Some(with_addresses(&service.rule, addresses)),
                    ..service.rule.clone()
                }]
            }
            Direction::Egress => {
                let mut by_port: BTreeMap<TransportPort, Vec<IpAddr>> = BTreeMap::new();
                let frontends = self
                    .services
                    .get(&key)
                    .map(|service| (&service.addresses, &service.ports));
                for (addresses, ports) in slices.map(|slice| (&slice.addresses, &slice.ports)).chain(frontends) {
                    for port in ports {
                        by_port.entry(*port).or_default().extend(addresses);
                    }
                }
                by_port
                    .into_iter()
                    .filter_map(|(port, addresses)| egress_rule(&service.rule, port, addresses))
                    .collect()
            }
        }
    }
}

/// The rule's own conditions on the peer, and these addresses.
fn with_addresses(rule: &Rule, mut addresses: Vec<IpAddr>) -> Vec<PeerMatch> {
    addresses.sort_unstable();
    addresses.dedup();
    let nets: Vec<IpNet> = addresses.into_iter().map(IpNet::from).collect();
    let own = rule.peers.clone().unwrap_or_else(|| vec![PeerMatch::default()]);
    own.into_iter()
        .map(|peer| PeerMatch {
            nets: Some(nets.clone()),
            ..peer
        })
        .collect()
}

/// None: the rule is about other protocols, or the port has no endpoints.
fn egress_rule(rule: &Rule, port: TransportPort, addresses: Vec<IpAddr>) -> Option<Rule> {
    let traffic: Vec<TrafficMatch> = rule
        .traffic
        .iter()
        .filter(|traffic| traffic.protocol.is_none_or(|protocol| protocol == port.protocol))
        .map(|traffic| TrafficMatch {
            protocol: Some(port.protocol),
            ports: Some(vec![PortMatch::Range(port.port..=port.port)]),
            ..traffic.clone()
        })
        .collect();
    (!traffic.is_empty() && !addresses.is_empty()).then(|| Rule {
        peers: Some(with_addresses(rule, addresses)),
        traffic,
        ..rule.clone()
    })
}

impl Index {
    pub(super) fn put_service_policy(&mut self, policy: Arc<ServicePolicy>, out: &mut IndexOutput) {
        let resolved = self.services.resolve(&policy);
        self.services.policies.insert(policy.policy.key.clone(), policy);
        self.put_policy(resolved, out);
    }

    pub(super) fn put_service(&mut self, service: Arc<Service>, out: &mut IndexOutput) {
        let key = (service.namespace.clone(), service.name.clone());
        if self.services.services.get(&key) != Some(&service) {
            self.services.services.insert(key.clone(), service);
            self.tell_policies(&key, out);
        }
    }

    pub(super) fn remove_service(&mut self, key: &Scoped, out: &mut IndexOutput) {
        if self.services.services.remove(key).is_some() {
            self.tell_policies(key, out);
        }
    }

    pub(super) fn put_slice(&mut self, slice: Arc<EndpointSlice>, out: &mut IndexOutput) {
        let key = (slice.namespace.clone(), slice.name.clone());
        if self.services.slices.get(&key) == Some(&slice) {
            return;
        }
        let service_of = |slice: &EndpointSlice| slice.service.clone().map(|name| (slice.namespace.clone(), name));
        let after = service_of(&slice);
        let before = self
            .services
            .slices
            .insert(key, slice.clone())
            .as_deref()
            .and_then(service_of);
        if let Some(service) = &before
            && before != after
        {
            self.detach(service, &slice.name);
            self.tell_policies(service, out);
        }
        if let Some(service) = after {
            let slices = self.services.slices_of.entry(service.clone()).or_default();
            slices.insert(slice.name.clone(), slice);
            self.tell_policies(&service, out);
        }
    }

    pub(super) fn remove_slice(&mut self, key: &Scoped, out: &mut IndexOutput) {
        if let Some(slice) = self.services.slices.remove(key)
            && let Some(name) = &slice.service
        {
            let service = (slice.namespace.clone(), name.clone());
            self.detach(&service, &slice.name);
            self.tell_policies(&service, out);
        }
    }

    fn detach(&mut self, service: &Scoped, slice: &Arc<str>) {
        if let Some(slices) = self.services.slices_of.get_mut(service) {
            slices.remove(slice);
            if slices.is_empty() {
                self.services.slices_of.remove(service);
            }
        }
    }

    fn tell_policies(&mut self, service: &Scoped, out: &mut IndexOutput) {
        for policy in self.services.naming(service) {
            self.put_policy(policy, out);
        }
    }
}
