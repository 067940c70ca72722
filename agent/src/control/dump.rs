//! The answers to `weir dump`: what is in the kernel, in words.

use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Map, Value, json};
use weir_common::{
    conntrack::{CtEntry, State},
    policy::{Decision, IPPROTO_ICMP, IPPROTO_ICMPV6, Slot},
};

use super::{
    agent::Agent,
    explain::protocol_name,
    query::{Dump, DumpKind, QueryError},
};
use crate::{
    datapath,
    policy::compile::{DecisionDump, PolicyRef, PortDecisionDump, RowDump},
};

/// Rows of one answer. More would not be read, and must fit into memory twice.
const MAX_ROWS: usize = 100_000;

impl Agent {
    /// # Errors
    /// The kernel does not let its maps be read.
    pub fn dump(&self, what: DumpKind) -> Result<Dump, QueryError> {
        Ok(match what {
            DumpKind::Endpoints => self.dump_endpoints(),
            DumpKind::Identities => self.dump_identities(),
            DumpKind::Tables => self.dump_tables(),
            DumpKind::Conntrack => self.dump_conntrack()?,
            DumpKind::Rules => self.dump_rules()?,
        })
    }

    fn dump_endpoints(&self) -> Dump {
        let columns = [
            "id",
            "pod",
            "interface",
            "ifindex",
            "addresses",
            "epoch",
            "egress_table",
            "egress_isolated",
            "egress_policies",
            "ingress_table",
            "ingress_isolated",
            "ingress_policies",
        ];
        let rows = self.endpoints.iter().filter_map(|(pod, endpoint)| {
            let id = endpoint.id?;
            let dump = self.compiler.endpoint(id)?;
            Some(object(json!({
                "id": id,
                "pod": pod.to_string(),
                "interface": endpoint.interface.as_ref().map(|interface| &interface.name),
                "ifindex": endpoint.interface.as_ref().map(|interface| interface.ifindex),
                "addresses": endpoint.pod.addresses,
                "epoch": self.datapath.epoch(id),
                "egress_table": dump.egress.table,
                "egress_isolated": dump.egress.isolated,
                "egress_policies": names(&dump.egress.policies),
                "ingress_table": dump.ingress.table,
                "ingress_isolated": dump.ingress.isolated,
                "ingress_policies": names(&dump.ingress.policies),
            })))
        });
        table(&columns, rows)
    }

    fn dump_identities(&self) -> Dump {
        let columns = ["identity", "class", "cidr", "local_node", "labels", "addresses"];
        table(
            &columns,
            self.compiler
                .identities()
                .iter()
                .map(|identity| object(value(identity))),
        )
    }

    fn dump_tables(&self) -> Dump {
        let columns = [
            "table",
            "direction",
            "endpoints",
            "policies",
            "class",
            "row",
            "base",
            "decisions",
        ];
        let tables = self.compiler.tables();
        let rows = tables.iter().flat_map(|table| {
            let default = std::iter::once((Value::from("default"), &table.default_row));
            let classes = table.rows.iter().map(|(class, row)| (Value::from(*class), row));
            default.chain(classes).map(|(class, row)| {
                object(json!({
                    "table": table.table,
                    "direction": table.direction,
                    "endpoints": table.endpoints,
                    "policies": names(&table.policies),
                    "class": class,
                    "row": row.row,
                    "base": base(row),
                    "decisions": row.decisions.iter().map(port_decision).collect::<Vec<_>>(),
                }))
            })
        });
        self::table(&columns, rows)
    }

    fn dump_conntrack(&self) -> Result<Dump, QueryError> {
        let columns = [
            "endpoint",
            "pod",
            "protocol",
            "local",
            "local_port",
            "peer",
            "peer_port",
            "state",
            "opened_by",
            "confirmed",
            "epoch",
            "trace",
            "node",
            "adopted",
            "age_s",
            "idle_s",
            "packets_out",
            "bytes_out",
            "packets_in",
            "bytes_in",
        ];
        let now = datapath::clock();
        let names = self.directory.read();
        let mut rows = Vec::new();
        let mut omitted = 0;
        self.datapath
            .connections(|key, entry, confirmed| {
                if entry.expired(key.protocol(), now) {
                    return;
                }
                if rows.len() == MAX_ROWS {
                    omitted += 1;
                    return;
                }
                let pod = names.endpoint(key.endpoint());
                let seconds = |since: u64| now.saturating_sub(since) as f64 / 1e9;
                rows.push(object(json!({
                    "endpoint": key.endpoint(),
                    "pod": pod.map(|pod| format!("{}/{}", pod.namespace, pod.name)),
                    "protocol": protocol_name(key.protocol()),
                    "local": IpAddr::from(key.local),
                    "local_port": key.local_port,
                    "peer": IpAddr::from(key.peer),
                    "peer_port": key.peer_port,
                    "state": state_name(entry.state(key.protocol())),
                    "opened_by": if entry.flags & CtEntry::OPENED_BY_PEER != 0 { "peer" } else { "pod" },
                    "confirmed": confirmed,
                    "epoch": entry.epoch,
                    "trace": Decision::trace(entry.decision),
                    "node": entry.flags & CtEntry::NODE != 0,
                    "adopted": entry.flags & CtEntry::ADOPTED != 0,
                    "age_s": seconds(entry.created),
                    "idle_s": seconds(entry.last_seen()),
                    "packets_out": entry.sides[0].packets,
                    "bytes_out": entry.sides[0].bytes,
                    "packets_in": entry.sides[1].packets,
                    "bytes_in": entry.sides[1].bytes,
                })));
            })
            .map_err(|error| QueryError::new(error.to_string()))?;
        drop(names);
        let mut dump = table(&columns, rows.into_iter());
        dump.omitted = omitted;
        Ok(dump)
    }
}

/// `tier/Kind namespace/name` of each policy, in the order in which they are walked.
fn names(policies: &[PolicyRef]) -> Vec<String> {
    let name = |policy: &PolicyRef| {
        let namespace = policy
            .namespace
            .iter()
            .map(|namespace| format!("{namespace}/"))
            .collect::<String>();
        format!("{}: {} {namespace}{}", policy.tier, policy.kind, policy.name)
    };
    policies.iter().map(name).collect()
}

/// `allow`, `deny`, `allow+log`, and the trace that names the rules.
fn decision(decision: &DecisionDump) -> String {
    let verdict = if decision.allow { "allow" } else { "deny" };
    let log = if decision.log { "+log" } else { "" };
    format!("{verdict}{log} #{}", decision.trace)
}

/// The decisions where no port matches: one for all protocols, or one for each.
fn base(row: &RowDump) -> Vec<String> {
    const SLOTS: [&str; Slot::COUNT] = ["tcp", "udp", "sctp", "icmp", "other"];
    match row.base.split_first() {
        Some((first, rest)) if rest.iter().all(|other| other == first) => vec![decision(first)],
        _ => SLOTS
            .iter()
            .zip(&row.base)
            .map(|(slot, base)| format!("{slot} {}", decision(base)))
            .collect(),
    }
}

/// `TCP 80 allow #3`, `TCP 1024-2047 deny #2`, for ICMP `type/code`.
fn port_decision(entry: &PortDecisionDump) -> String {
    let last = entry.port | 0xffff_u16.checked_shr(u32::from(entry.prefix)).unwrap_or(0);
    let ports = match (entry.protocol, entry.prefix) {
        (_, 0) => String::new(),
        (IPPROTO_ICMP | IPPROTO_ICMPV6, 8) => format!(" {}", entry.port >> 8),
        (IPPROTO_ICMP | IPPROTO_ICMPV6, _) => format!(" {}/{}", entry.port >> 8, entry.port & 0xff),
        (_, 16) => format!(" {}", entry.port),
        (_, _) => format!(" {}-{last}", entry.port),
    };
    let source = match entry.source_class {
        0 => String::new(),
        class => format!(" from source ports {class}"),
    };
    format!(
        "{}{ports}{source} {}",
        protocol_name(entry.protocol),
        decision(&entry.decision)
    )
}

const fn state_name(state: State) -> &'static str {
    match state {
        State::Opening => "opening",
        State::Open => "open",
        State::Closing => "closing",
        State::Closed => "closed",
    }
}

fn table(columns: &[&str], rows: impl Iterator<Item = Map<String, Value>>) -> Dump {
    let mut rows: Vec<_> = rows.collect();
    let omitted = rows.len().saturating_sub(MAX_ROWS);
    rows.truncate(MAX_ROWS);
    Dump {
        columns: columns.iter().map(|column| (*column).to_owned()).collect(),
        rows,
        omitted: omitted as u64,
    }
}

/// Plain structs always become JSON.
fn value(from: &impl Serialize) -> Value {
    serde_json::to_value(from).unwrap_or(Value::Null)
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}

#[cfg(test)]
mod tests {
    use weir_common::policy::IPPROTO_TCP;

    use super::*;

    fn entry(protocol: u8, port: u16, prefix: u8) -> String {
        port_decision(&PortDecisionDump {
            protocol,
            port,
            prefix,
            source_class: 0,
            decision: DecisionDump {
                allow: true,
                log: false,
                trace: 3,
            },
        })
    }

    #[test]
    fn ports_are_named_as_people_write_them() {
        assert_eq!(entry(IPPROTO_TCP, 80, 16), "TCP 80 allow #3");
        assert_eq!(entry(IPPROTO_TCP, 1024, 6), "TCP 1024-2047 allow #3");
        assert_eq!(entry(IPPROTO_ICMP, 8 << 8, 8), "ICMPv4 8 allow #3");
        assert_eq!(entry(IPPROTO_ICMPV6, 1 << 8 | 4, 16), "ICMPv6 1/4 allow #3");
        assert_eq!(entry(47, 0, 0), "47 allow #3");
    }
}
