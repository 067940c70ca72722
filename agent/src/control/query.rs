//! What can be asked of a running agent, and the shapes of the answers.
//!
//! The answers cross the Unix socket as JSON and are printed as such by `-o json`: names here are interface.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use super::explain::{ExplainRequest, Explanation};
use crate::{
    api::Problem,
    cni::{
        attachment::{CniAnswer, CniRequest},
        install::PluginReport,
    },
    metrics::Observation,
    policy::change::PeerKey,
    source::kubernetes::KindHealth,
};

/// Where the answer to a query goes. A closed channel means that nobody waits any more.
pub type Reply<T> = oneshot::Sender<T>;

/// One question to the control loop.
#[derive(Debug)]
pub enum Query {
    /// Is the loop alive, and is all that it knows enforced?
    Readiness(Reply<Readiness>),
    Status(Reply<StatusReport>),
    /// Which local pods are not enforced, and why.
    Troubles(Reply<BTreeMap<PeerKey, String>>),
    /// What metrics are made of.
    Observe(Reply<Result<Observation, QueryError>>),
    /// Answer when everything that is in the source now, read from the source itself, is enforced; at once if an
    /// object there is invalid; and in any case by the deadline.
    Wait {
        deadline: Instant,
        reply: Reply<WaitReport>,
    },
    Explain {
        request: ExplainRequest,
        reply: Reply<Result<Explanation, QueryError>>,
    },
    Dump {
        what: DumpKind,
        reply: Reply<Result<Dump, QueryError>>,
    },
    /// From the CNI plugin. Answered by the deadline.
    Cni {
        request: CniRequest,
        deadline: Instant,
        reply: Reply<CniAnswer>,
    },
    /// Detach from every interface, remove every pin, answer, and end the agent.
    Detach(Reply<Result<DetachReport, QueryError>>),
}

/// How everybody but the loop itself asks it.
pub type QuerySender = mpsc::Sender<Query>;

/// Why there is no answer, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct QueryError {
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl QueryError {
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            remedy: None,
        }
    }

    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// Answer of `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// The source has been read once, whole, and everything it holds is enforced.
    pub ready: bool,
    /// Why not, if not.
    pub reason: Option<String>,
}

/// What a local pod's interface obeys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EndpointState {
    /// Every policy that is known applies.
    Enforced,
    /// Its policy cannot be enforced (or not yet): nothing passes, in the directions concerned.
    Closed,
    /// Its interface is not there yet, or not found.
    Waiting,
}

/// One direction of an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectionReport {
    /// Some policy selects the pod in this direction.
    pub isolated: bool,
    /// Everything is dropped.
    pub closed: bool,
    /// Policies that apply, in the order in which they are asked.
    pub policies: Vec<PolicyName>,
    pub table: u32,
}

/// A policy by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PolicyName {
    /// As in [`crate::policy::model::PolicyKind::name`].
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
}

impl From<&crate::policy::model::PolicyKey> for PolicyName {
    fn from(key: &crate::policy::model::PolicyKey) -> Self {
        Self {
            kind: key.kind.name().to_owned(),
            namespace: key.namespace.as_deref().map(str::to_owned),
            name: key.name.to_string(),
        }
    }
}

/// One local pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    pub namespace: String,
    pub pod: String,
    /// None while it waits for its interface.
    pub id: Option<u32>,
    pub interface: Option<String>,
    pub ifindex: Option<u32>,
    pub addresses: Vec<IpAddr>,
    pub state: EndpointState,
    /// Why it is not enforced, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub epoch: u32,
    pub ingress: DirectionReport,
    pub egress: DirectionReport,
    /// Why the kernel forwards its packets, where those of other pods are handed over directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forwarding: Option<String>,
    /// Programs of others on the same interface.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign_programs: Vec<String>,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapReport {
    pub name: String,
    /// Of maps that programs fill: at the last sweep. None: there is nothing to count.
    pub entries: Option<u64>,
    /// Entries; of the ring buffer bytes.
    pub capacity: u64,
    /// Kernel memory, bytes, where the kernel tells.
    pub memory: Option<u64>,
}

/// A change that did not fit ([`crate::policy::plan::Shortage`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShortageReport {
    pub map: String,
    pub needed: u64,
    pub capacity: u64,
    pub consequence: String,
}

/// Packets by reason and direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterReport {
    /// [`weir_common::reason::Reason::name`]
    pub reason: String,
    pub dropped: bool,
    /// `ingress` or `egress`, as the pod sees it.
    pub direction: String,
    pub packets: u64,
    pub bytes: u64,
}

/// Connections that the kernel forgot before their time, to make room.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictionReport {
    /// Of flows that only one side had spoken in.
    pub unconfirmed: u64,
    pub confirmed: u64,
}

/// Flow records that somebody should have seen and nobody did, since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowReport {
    /// Somebody reads events.
    pub enabled: bool,
    /// Readers at the socket.
    pub readers: u64,
    pub records: u64,
    /// Did not fit into the kernel's ring buffer.
    pub lost_events: u64,
    /// The flow log could not keep up, or could not be written.
    pub lost_log: u64,
    /// Readers at the socket could not keep up.
    pub lost_readers: u64,
    /// Why the flow log cannot be written, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_error: Option<String>,
}

/// Who carries packets between local pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardingReport {
    /// Weir hands them over; else the kernel forwards them.
    pub direct: bool,
    /// Why the kernel does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Answer of `weir status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    pub node: String,
    pub version: String,
    pub layout: u32,
    pub pid: u32,
    pub ready: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `tcx` or `tc`.
    pub attach: String,
    #[serde(default)]
    pub forwarding: ForwardingReport,
    /// Verdicts are reported, nothing is dropped.
    pub audit: bool,
    /// What the source is and how it does, for people.
    pub source: String,
    /// Of the Kubernetes API: how the watch of each kind does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watches: Vec<KindHealth>,
    pub endpoints: Vec<EndpointReport>,
    pub policies: u64,
    /// Evaluated for flow records and explanations, not enforced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub staged: Vec<PolicyName>,
    pub maps: Vec<MapReport>,
    pub problems: Vec<Problem>,
    pub shortages: Vec<ShortageReport>,
    /// The CNI plugin, where the agent installs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni: Option<PluginReport>,
    pub evictions: EvictionReport,
    pub counters: Vec<CounterReport>,
    pub flows: FlowReport,
}

/// Answer of `weir status --wait`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitReport {
    pub enforced: bool,
    /// Why not, if not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Objects that are invalid, endpoints that are not enforced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// What `weir dump` can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum DumpKind {
    /// The endpoint map: interfaces and what they obey.
    Endpoints,
    /// Addresses, their identities and classes.
    Identities,
    /// Decision tables, with the rules behind each decision.
    Tables,
    /// The connection table.
    Conntrack,
    /// Rules that apply to pods of this node, and how often each was hit.
    Rules,
}

/// Answer of `weir dump`: a table, since that is what a map is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dump {
    /// Keys of every row, in the order in which people want to see them.
    pub columns: Vec<String>,
    pub rows: Vec<serde_json::Map<String, serde_json::Value>>,
    /// Rows left out because there were too many.
    pub omitted: u64,
}

/// Answer of [`Query::Detach`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetachReport {
    /// Interfaces that were detached.
    pub interfaces: Vec<String>,
    /// Directories of pins that were removed.
    pub removed: Vec<PathBuf>,
    /// What is not Weir's and was left alone.
    pub left: Vec<PathBuf>,
    /// Network configurations that the CNI plugin was taken out of.
    #[serde(default)]
    pub configurations: usize,
    /// The CNI plugin was removed.
    #[serde(default)]
    pub plugin: bool,
}

impl From<crate::datapath::Report> for DetachReport {
    fn from(report: crate::datapath::Report) -> Self {
        let crate::datapath::Report {
            interfaces,
            removed,
            left,
        } = report;
        Self {
            interfaces,
            removed,
            left,
            ..Self::default()
        }
    }
}
