//! The compiler's state for people and for empty maps.

use std::{collections::BTreeMap, net::IpAddr};

use rustc_hash::FxHashSet;
use weir_common::{
    Direction,
    policy::{Decision, Row},
};

use super::{
    Compiler, DecisionDump, DirectionDump, EndpointDump, IdentityDump, MapUse, PolicyRef, PortDecisionDump, RowDump,
    Sizes, Stats, TableDump, endpoint::Endpoint, rows::Entries, table::Table, tables::Tables,
};
use crate::policy::plan::{Op, Plan};

impl Compiler {
    /// Everything in force, for maps that are empty: what a new generation is filled with. The same ids as before.
    /// Its serial is that of the last plan, which it stands for.
    #[must_use]
    pub fn full(&self) -> Plan {
        let mut plan = Plan {
            serial: self.serial,
            ..Plan::default()
        };
        let mut traces: Vec<u32> = self.traces.ids().collect();
        traces.sort_unstable();
        plan.add.extend(traces.into_iter().map(Op::PutTrace));
        let mut named: Vec<(u32, _)> = self.rows.named().collect();
        named.sort_unstable_by_key(|&(id, _)| id);
        for (id, entries) in named {
            entries.put(id, &mut plan.add);
        }
        for table in self.sorted_tables() {
            for (class, row) in sorted_rows(table) {
                let key = Tables::row_key(table.number, class);
                plan.add.push(Op::PutRow(key, self.rows.row(row)));
            }
        }
        for (identity, class, local_node, ..) in self.identities.iter() {
            plan.add.push(Op::PutIdentity {
                identity,
                class,
                local_node,
            });
        }
        let cidrs = self.identities.cidrs();
        plan.add
            .extend(cidrs.map(|(cidr, identity)| Op::PutCidr(cidr.net(), identity)));
        let addresses = self.identities.addresses();
        plan.add
            .extend(addresses.map(|(address, identity)| Op::PutAddress(address, identity)));
        let told = self.endpoints.sorted().into_iter();
        plan.flip
            .extend(told.filter_map(|(_, endpoint)| endpoint.told.map(Op::SetPolicy)));
        plan
    }

    fn sorted_tables(&self) -> Vec<&Table> {
        let mut tables: Vec<&Table> = self.tables.tables.values().collect();
        tables.sort_unstable_by_key(|table| table.number);
        tables
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut live: FxHashSet<&crate::policy::model::PolicyKey> = FxHashSet::default();
        for table in self.tables.tables.values().filter(|table| table.users > 0) {
            live.extend(table.policies(&self.tables.lists).map(|(_, policy)| policy));
        }
        let (peers, network_sets) = self.identities.entities().counts();
        let closed = self.endpoints.iter().filter_map(|(_, endpoint)| endpoint.told);
        Stats {
            endpoints: self.endpoints.len(),
            policies: self.store.len(),
            live_policies: live.len(),
            peers,
            network_sets,
            maps: self.map_use(),
            classes: self.identities.classes().len(),
            tables: self.tables.tables.len(),
            closed: closed
                .map(|told| usize::from(told.egress_closed) + usize::from(told.ingress_closed))
                .sum(),
        }
    }

    /// How much there is, without a walk over it.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes {
            peers: self.identities.entities().counts().0,
            identities: self.identities.identity_count(),
            classes: self.identities.classes().len(),
            tables: self.tables.tables.len(),
        }
    }

    /// Whether nothing passes in one of an endpoint's directions, for want of room.
    #[must_use]
    pub fn is_closed(&self, id: u32) -> bool {
        let told = self.endpoints.get(id).map(|endpoint| endpoint.told);
        told.is_some_and(|told| told.is_none_or(|told| told.egress_closed || told.ingress_closed))
    }

    /// Entries of what is in force (what awaits removal not counted).
    pub(super) fn map_use(&self) -> MapUse {
        MapUse {
            addresses: self.identities.address_count(),
            cidrs: self.identities.cidr_count(),
            identities: self.identities.identity_count(),
            rows: self.tables.row_count,
            decisions: self.rows.decisions,
            source_ports: self.rows.source_ports,
            traces: self.traces.len(),
        }
    }

    /// Local pods, by endpoint id.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointDump> {
        let endpoints = self.endpoints.sorted().into_iter();
        endpoints
            .map(|(id, endpoint)| self.dump_endpoint(id, endpoint))
            .collect()
    }

    /// One endpoint.
    #[must_use]
    pub fn endpoint(&self, id: u32) -> Option<EndpointDump> {
        Some(self.dump_endpoint(id, self.endpoints.get(id)?))
    }

    fn dump_endpoint(&self, id: u32, endpoint: &Endpoint) -> EndpointDump {
        let direction = |direction: Direction| {
            let table = endpoint.told_tables[direction as usize].and_then(|id| self.tables.tables.get(&id));
            let told = endpoint.told.as_ref();
            let (kernel, isolated, closed) = match direction {
                Direction::Egress => (
                    told.map(|told| told.egress),
                    told.is_some_and(|told| told.egress_isolated),
                    told.is_none_or(|told| told.egress_closed),
                ),
                Direction::Ingress => (
                    told.map(|told| told.ingress),
                    told.is_some_and(|told| told.ingress_isolated),
                    told.is_none_or(|told| told.ingress_closed),
                ),
            };
            DirectionDump {
                table: kernel.map_or(0, |kernel| kernel.table),
                isolated,
                closed,
                policies: table.map_or_else(Vec::new, |table| self.policies(table)),
            }
        };
        EndpointDump {
            id,
            namespace: endpoint.key.namespace.as_deref().map(str::to_owned),
            name: endpoint.key.name.to_string(),
            egress: direction(Direction::Egress),
            ingress: direction(Direction::Ingress),
        }
    }

    /// Identities in use, by id.
    #[must_use]
    pub fn identities(&self) -> Vec<IdentityDump> {
        let mut addresses: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
        for (address, identity) in self.identities.addresses() {
            addresses.entry(identity).or_default().push(address);
        }
        let identities = self.identities.iter();
        identities
            .map(|(identity, class, local_node, cidr, view)| IdentityDump {
                identity,
                class,
                local_node,
                cidr: cidr.net(),
                labels: view.map(|view| {
                    let fields = view.fields.iter();
                    fields
                        .map(|(field, value)| format!("{}={value}", field_name(field)))
                        .collect()
                }),
                addresses: addresses.remove(&identity).unwrap_or_default(),
            })
            .collect()
    }

    /// Tables in use, by id.
    #[must_use]
    pub fn tables(&self) -> Vec<TableDump> {
        let dump = |table: &Table| TableDump {
            table: table.number,
            direction: match table.key.direction {
                Direction::Egress => "egress",
                Direction::Ingress => "ingress",
            },
            policies: self.policies(table),
            endpoints: table.users,
            default_row: self.dump_row(table.default_row),
            rows: sorted_rows(table)
                .into_iter()
                .map(|(class, row)| (class, self.dump_row(row)))
                .collect(),
        };
        self.sorted_tables().into_iter().map(dump).collect()
    }

    fn policies(&self, table: &Table) -> Vec<PolicyRef> {
        let policies = table.policies(&self.tables.lists);
        policies.map(|(tier, policy)| PolicyRef::new(tier, policy)).collect()
    }

    fn dump_row(&self, number: u32) -> RowDump {
        let row: Row = self.rows.row(number);
        let entries: &Entries = self.rows.entries(number);
        // A class has an entry for each of its prefixes of source ports, which all say the same.
        let mut classes = entries.source_ports.clone();
        classes.sort_unstable_by_key(|entry| (entry.protocol, entry.class));
        classes.dedup_by_key(|entry| (entry.protocol, entry.class));
        RowDump {
            row: row.id,
            base: row.base.iter().copied().map(dump_decision).collect(),
            decisions: entries
                .decisions
                .iter()
                .map(|entry| PortDecisionDump {
                    protocol: entry.protocol,
                    port: entry.port,
                    prefix: entry.prefix,
                    source_class: entry.source_class,
                    decision: dump_decision(entry.decision),
                })
                .chain(classes.iter().map(|entry| PortDecisionDump {
                    protocol: entry.protocol,
                    port: 0,
                    prefix: 0,
                    source_class: entry.class,
                    decision: dump_decision(entry.base),
                }))
                .collect(),
            source_ports: entries.source_ports.len(),
        }
    }
}

fn dump_decision(decision: Decision) -> DecisionDump {
    DecisionDump {
        allow: decision.allows(),
        log: decision.logs(),
        trace: decision.trace(),
    }
}

fn sorted_rows(table: &Table) -> Vec<(u32, u32)> {
    let mut rows: Vec<(u32, u32)> = table.rows.iter().map(|(&class, &row)| (class, row)).collect();
    rows.sort_unstable();
    rows
}

fn field_name(field: &crate::policy::selector::Field) -> String {
    use crate::policy::selector::Field;
    match field {
        Field::Label(key) => key.clone(),
        Field::NamespaceLabel(key) => format!("namespace:{key}"),
        Field::ServiceAccountLabel(key) => format!("serviceaccount:{key}"),
        Field::Namespace => "namespace".into(),
        Field::ServiceAccount => "serviceaccount".into(),
        Field::Kind => "kind".into(),
    }
}
