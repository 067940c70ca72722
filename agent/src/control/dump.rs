//! The answers to `weir dump`: what is in the kernel, in words.

use std::net::IpAddr;

use serde::Serialize;
use serde_json::{Map, Value, json};
use weir_common::{
    conntrack::{CtEntry, State},
    policy::Decision,
};

use super::{
    agent::Agent,
    explain::protocol_name,
    query::{Dump, DumpKind, QueryError},
};
use crate::{datapath, policy::compile::RowDump};

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
                "egress_policies": value(&dump.egress.policies),
                "ingress_table": dump.ingress.table,
                "ingress_isolated": dump.ingress.isolated,
                "ingress_policies": value(&dump.ingress.policies),
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
                    "policies": value(&table.policies),
                    "class": class,
                    "row": row.row,
                    "base": self.decisions(row),
                    "decisions": value(&row.decisions),
                }))
            })
        });
        self::table(&columns, rows)
    }

    /// The base decisions by protocol, with the rule that decides.
    fn decisions(&self, row: &RowDump) -> Value {
        let names = ["tcp", "udp", "sctp", "icmp", "other"];
        let by_protocol = names.iter().zip(&row.base).map(|(name, decision)| {
            let verdict = if decision.allow { "allow" } else { "deny" };
            (
                (*name).to_owned(),
                json!({ "verdict": verdict, "log": decision.log, "trace": decision.trace }),
            )
        });
        Value::Object(by_protocol.collect())
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
