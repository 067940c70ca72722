//! The answers to `weir status` and to the probes.

use std::collections::BTreeMap;

use weir_common::{Direction, layout::LAYOUT};

use super::{
    agent::Agent,
    departed::Gone,
    endpoints::LocalEndpoint,
    query::{
        CounterReport, DirectionReport, EndpointReport, EndpointState, EvictionReport, ForwardingReport, MapReport,
        PolicyName, Readiness, ShortageReport, StatusReport,
    },
};
use crate::{
    api::Problem,
    cni::install::PluginReport,
    datapath::{self, Mode},
    policy::{
        change::PeerKey,
        compile::{DirectionDump, PolicyRef},
        plan::Shortage,
    },
};

impl Agent {
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        let reason = self.unready();
        Readiness {
            ready: reason.is_none(),
            reason,
        }
    }

    /// Everything about this node in one answer. What cannot be read is a problem of the report, not its end.
    #[must_use]
    pub fn status(&self) -> StatusReport {
        let mut problems: Vec<Problem> = self.all_problems().cloned().collect();
        let mut unreadable = |what: &str, error: &datapath::Error| {
            problems.push(Problem::warning(
                format!("cannot read {what}: {error}"),
                "try again; see the agent's log",
            ));
        };
        let counters = self.datapath.counters().unwrap_or_else(|error| {
            unreadable("the counters", &error);
            datapath::Counters::default()
        });
        let maps = self.datapath.map_usage().unwrap_or_else(|error| {
            unreadable("the maps", &error);
            Vec::new()
        });
        let endpoints = self
            .endpoints
            .iter()
            .map(|(pod, endpoint)| self.endpoint_report(pod, endpoint))
            .chain(self.departed.iter().map(|gone| self.gone_report(gone)))
            .collect();
        let sweep = self.flows.last_sweep().unwrap_or_default();
        let Readiness { ready, reason } = self.readiness();
        StatusReport {
            node: self.options.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            layout: LAYOUT,
            pid: std::process::id(),
            ready,
            reason,
            attach: match self.datapath.mode() {
                Mode::Tcx => "tcx",
                Mode::Tc => "tc",
            }
            .to_owned(),
            forwarding: ForwardingReport {
                direct: self.datapath.forwarding_obstacle().is_none(),
                reason: self.datapath.forwarding_obstacle().map(str::to_owned),
            },
            audit: self.options.audit,
            source: self.options.source.to_string(),
            watches: Vec::new(),
            endpoints,
            policies: self.compiler.stats().policies as u64,
            staged: {
                let mut staged: Vec<_> = self.staged_policies().map(|policy| &policy.key).collect();
                staged.sort();
                staged.into_iter().map(PolicyName::from).collect()
            },
            maps: maps.iter().map(map_report).collect(),
            problems,
            cni: self.options.cni.as_ref().map(|options| {
                let starting = || PluginReport::starting(options);
                self.plugin.clone().unwrap_or_else(starting)
            }),
            shortages: self.shortages.iter().map(ShortageReport::from).collect(),
            evictions: EvictionReport {
                unconfirmed: sweep.evicted_unconfirmed,
                confirmed: sweep.evicted_connections,
            },
            counters: counters
                .packets
                .iter()
                .map(|(reason, direction, counter)| CounterReport {
                    reason: reason.name().to_owned(),
                    dropped: reason.is_drop(),
                    direction: match direction {
                        Direction::Ingress => "ingress",
                        Direction::Egress => "egress",
                    }
                    .to_owned(),
                    packets: counter.packets,
                    bytes: counter.bytes,
                })
                .collect(),
            flows: self.hub.report(),
        }
    }

    pub(super) fn endpoint_state(&self, endpoint: &LocalEndpoint) -> EndpointState {
        if !endpoint.is_attached() {
            EndpointState::Waiting
        } else if endpoint.id.is_some_and(|id| self.compiler.is_closed(id)) {
            EndpointState::Closed
        } else {
            EndpointState::Enforced
        }
    }

    /// Which local pods are not enforced, and why.
    #[must_use]
    pub fn troubles(&self) -> BTreeMap<PeerKey, String> {
        let endpoints = self.endpoints.iter();
        let troubles = endpoints.filter_map(|(pod, endpoint)| match self.endpoint_state(endpoint) {
            EndpointState::Enforced => None,
            state => Some((pod.clone(), why(state, endpoint))),
        });
        troubles.collect()
    }

    fn gone_report(&self, gone: &Gone) -> EndpointReport {
        let mut report = self.endpoint_report(&gone.pod, &gone.endpoint);
        if gone.endpoint.is_attached() {
            report.state = EndpointState::Closed;
            report.reason = Some("the pod is gone or has ended, but its interface is still there".to_owned());
        }
        report
    }

    fn endpoint_report(&self, pod: &PeerKey, endpoint: &LocalEndpoint) -> EndpointReport {
        let compiled = endpoint.id.and_then(|id| self.compiler.endpoint(id));
        let (ingress, egress) = compiled.map_or_else(Default::default, |dump| {
            (direction_report(&dump.ingress), direction_report(&dump.egress))
        });
        let state = self.endpoint_state(endpoint);
        let reason = match state {
            EndpointState::Enforced => endpoint.remark.clone(),
            EndpointState::Closed | EndpointState::Waiting => Some(why(state, endpoint)),
        };
        let foreign_programs = endpoint
            .interface
            .as_ref()
            .and_then(|interface| self.datapath.foreign_programs(interface.ifindex).ok())
            .unwrap_or_default();
        EndpointReport {
            namespace: pod.namespace.as_deref().unwrap_or_default().to_owned(),
            pod: pod.name.to_string(),
            id: endpoint.id,
            interface: endpoint.interface.as_ref().map(|interface| interface.name.clone()),
            ifindex: endpoint.interface.as_ref().map(|interface| interface.ifindex),
            addresses: endpoint.pod.addresses.clone(),
            state,
            reason,
            epoch: endpoint.id.and_then(|id| self.datapath.epoch(id)).unwrap_or_default(),
            ingress,
            egress,
            forwarding: endpoint
                .id
                .and_then(|id| self.datapath.endpoint_obstacle(id))
                .map(str::to_owned),
            foreign_programs: foreign_programs.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Why a pod is not enforced.
fn why(state: EndpointState, endpoint: &LocalEndpoint) -> String {
    if state == EndpointState::Closed {
        return "its decisions do not fit into the maps: see shortages".to_owned();
    }
    let unknown = match endpoint.interface {
        None => "its interface has not been found yet",
        Some(_) => "programs are not attached yet",
    };
    endpoint.trouble.clone().unwrap_or_else(|| unknown.to_owned())
}

fn direction_report(dump: &DirectionDump) -> DirectionReport {
    DirectionReport {
        isolated: dump.isolated,
        closed: dump.closed,
        policies: dump.policies.iter().map(PolicyName::from).collect(),
        table: dump.table,
    }
}

fn map_report(usage: &datapath::MapUsage) -> MapReport {
    MapReport {
        name: usage.name.to_owned(),
        entries: usage.entries.map(u64::from),
        capacity: u64::from(usage.capacity),
        memory: usage.memory,
    }
}

impl From<&PolicyRef> for PolicyName {
    fn from(policy: &PolicyRef) -> Self {
        Self {
            kind: policy.kind.to_owned(),
            namespace: policy.namespace.as_deref().map(str::to_owned),
            name: policy.name.to_string(),
        }
    }
}

impl From<&Shortage> for ShortageReport {
    fn from(shortage: &Shortage) -> Self {
        Self {
            map: shortage.map.to_owned(),
            needed: shortage.needed as u64,
            capacity: shortage.capacity as u64,
            consequence: shortage.consequence.clone(),
        }
    }
}
