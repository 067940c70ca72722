//! The kernel's side of a plan, without a kernel: maps that take operations one by one, and the lookups that the eBPF
//! program makes in them.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use ipnet::IpNet;
use weir_common::{
    Direction,
    identity::CLASS_UNKNOWN,
    policy::{Decision, DecisionKey, DirectionPolicy, PREFIX_LENGTHS, PrefixMask, Row, RowKey, Slot, SourceClass},
};

use super::{
    compile::MapUse,
    evaluate::Flow,
    plan::{EndpointPolicy, Op, Plan},
};

/// Maps and endpoints.
#[derive(Clone, Debug, Default)]
pub struct Simulation {
    addresses: HashMap<IpAddr, u32>,
    cidrs: HashMap<IpNet, u32>,
    identities: HashMap<u32, u32>,
    rows: HashMap<RowKey, Row>,
    decisions: HashMap<DecisionKey, Decision>,
    /// (Row, protocol, prefix, port) -> class.
    source_ports: HashMap<(u32, u8, u8, u16), SourceClass>,
    traces: HashSet<u32>,
    endpoints: HashMap<u32, (EndpointPolicy, u64)>,
    /// Operations that a real map would refuse, or that show that something was lost.
    faults: Vec<String>,
}

impl Simulation {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Executes all of a plan.
    pub fn run(&mut self, plan: &Plan) {
        for op in plan.add.iter().chain(&plan.flip).chain(&plan.remove) {
            self.execute(op);
        }
    }

    /// Executes one operation.
    pub fn execute(&mut self, op: &Op) {
        let ok = match op {
            Op::PutTrace(trace) => self.traces.insert(*trace),
            Op::PutDecision(key, decision) => self.decisions.insert(*key, *decision).is_none(),
            Op::PutSourcePort {
                row,
                protocol,
                prefix,
                port,
                class,
            } => self
                .source_ports
                .insert((*row, *protocol, *prefix, *port), *class)
                .is_none(),
            Op::PutRow(key, row) => self.rows.insert(*key, *row).is_none(),
            Op::PutIdentity { identity, class, .. } => {
                self.identities.insert(*identity, *class);
                true
            }
            Op::PutAddress(address, identity) => {
                self.addresses.insert(*address, *identity);
                self.identities.contains_key(identity)
            }
            Op::PutCidr(cidr, identity) => {
                self.cidrs.insert(*cidr, *identity);
                self.identities.contains_key(identity)
            }
            Op::SetPolicy(policy) => {
                let entry = self.endpoints.entry(policy.endpoint).or_default();
                *entry = (*policy, entry.1 + 1);
                true
            }
            Op::BumpEpoch { endpoint } => self.endpoints.get_mut(endpoint).map(|(_, epoch)| *epoch += 1).is_some(),
            Op::DeleteTrace(trace) => self.traces.remove(trace),
            Op::DeleteDecision(key) => self.decisions.remove(key).is_some(),
            Op::DeleteSourcePort {
                row,
                protocol,
                prefix,
                port,
            } => self.source_ports.remove(&(*row, *protocol, *prefix, *port)).is_some(),
            Op::DeleteRow(key) => self.rows.remove(key).is_some(),
            Op::DeleteAddress(address) => self.addresses.remove(address).is_some(),
            Op::DeleteCidr(cidr) => self.cidrs.remove(cidr).is_some(),
        };
        if !ok {
            self.faults.push(format!("{op:?}"));
        }
    }

    /// Operations that put what was there, removed what was not, or pointed nowhere.
    #[must_use]
    pub fn faults(&self) -> &[String] {
        &self.faults
    }

    /// The interface is gone.
    pub fn remove_endpoint(&mut self, endpoint: u32) {
        self.endpoints.remove(&endpoint);
    }

    /// How often the endpoint's known flows had to be judged again.
    #[must_use]
    pub fn epoch(&self, endpoint: u32) -> u64 {
        self.endpoints.get(&endpoint).map_or(0, |(_, epoch)| *epoch)
    }

    /// What the endpoint has been told.
    #[must_use]
    pub fn policy(&self, endpoint: u32) -> Option<&EndpointPolicy> {
        self.endpoints.get(&endpoint).map(|(policy, _)| policy)
    }

    /// Entries by map. (Of identities those ever put: the kernel has an array.)
    #[must_use]
    pub fn map_use(&self) -> MapUse {
        MapUse {
            addresses: self.addresses.len(),
            cidrs: self.cidrs.len(),
            identities: self.identities.len(),
            rows: self.rows.len(),
            decisions: self.decisions.len(),
            source_ports: self.source_ports.len(),
            traces: self.traces.len(),
        }
    }

    /// Counters of traces that there are.
    #[must_use]
    pub fn has_trace(&self, trace: u32) -> bool {
        self.traces.contains(&trace)
    }

    /// The class of an address.
    #[must_use]
    pub fn class(&self, address: IpAddr) -> u32 {
        let identity = self.addresses.get(&address).or_else(|| {
            let holding = self.cidrs.iter().filter(|(cidr, _)| cidr.contains(&address));
            holding
                .max_by_key(|(cidr, _)| cidr.prefix_len())
                .map(|(_, identity)| identity)
        });
        identity
            .and_then(|identity| self.identities.get(identity))
            .copied()
            .unwrap_or(CLASS_UNKNOWN)
    }

    /// What the endpoint's program decides. None: the direction is closed, or there is no such endpoint.
    #[must_use]
    pub fn decide(&self, endpoint: u32, flow: &Flow) -> Option<Decision> {
        let (policy, _) = self.endpoints.get(&endpoint)?;
        let (direction, closed) = match flow.direction {
            Direction::Egress => (&policy.egress, policy.egress_closed),
            Direction::Ingress => (&policy.ingress, policy.ingress_closed),
        };
        if closed {
            return None;
        }
        Some(self.decide_in(&self.row(direction, flow.peer_addr), flow))
    }

    fn row(&self, direction: &DirectionPolicy, peer: IpAddr) -> Row {
        if direction.table == 0 {
            return direction.default_row;
        }
        let key = RowKey {
            table: direction.table,
            class: self.class(peer),
            local_class: 0,
        };
        self.rows.get(&key).copied().unwrap_or(direction.default_row)
    }

    fn decide_in(&self, row: &Row, flow: &Flow) -> Decision {
        let slot = Slot::of(flow.protocol, flow.peer_addr.is_ipv4());
        let base = row.base[slot as usize];
        let key = |prefix: u8, source_class: u16, port: u16| DecisionKey {
            row: row.id,
            protocol: flow.protocol,
            prefix,
            source_class,
            port: DecisionKey::cut(port, prefix),
            pad: 0,
        };
        if slot == Slot::Other {
            let by_number = row.prefixes.0 & PrefixMask::OTHER_BY_NUMBER != 0;
            let decision = by_number.then(|| self.decisions.get(&key(0, 0, 0))).flatten();
            return decision.copied().unwrap_or(base);
        }
        let port = match slot {
            Slot::Icmp => flow
                .icmp
                .map_or(0, |(kind, code)| u16::from(kind) << 8 | u16::from(code)),
            _ => flow.destination_port,
        };
        let by_source = row.prefixes.0 & PrefixMask::SOURCE_PORTS != 0 && slot != Slot::Icmp;
        let named = by_source.then(|| self.source_class(row.id, flow.protocol, flow.source_port));
        let (class, base) = named
            .flatten()
            .map_or((0, base), |named| (named.class as u16, named.base));
        for (k, &length) in PREFIX_LENGTHS.iter().enumerate() {
            if row.prefixes.of(slot) & 1 << k != 0
                && let Some(decision) = self.decisions.get(&key(length, class, port))
            {
                return *decision;
            }
        }
        base
    }

    fn source_class(&self, row: u32, protocol: u8, port: u16) -> Option<SourceClass> {
        (0..=16_u8)
            .rev()
            .find_map(|prefix| {
                self.source_ports
                    .get(&(row, protocol, prefix, DecisionKey::cut(port, prefix)))
            })
            .copied()
    }
}
