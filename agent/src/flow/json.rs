//! A flow record as JSON: Hubble's field names where Hubble has the field (`flow.proto` of Cilium), and what only Weir
//! knows under `weir`. The one shape for writing (agent) and reading (`weir flows`).

use std::{borrow::Cow, net::IpAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use crate::control::{explain::HitReport, query::PolicyName};

/// `flow.Verdict`, as far as Weir gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    Forwarded,
    Dropped,
    /// Would have been dropped; the agent only audits.
    Audit,
}

impl Verdict {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "FORWARDED",
            Self::Dropped => "DROPPED",
            Self::Audit => "AUDIT",
        }
    }
}

/// `flow.TrafficDirection`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TrafficDirection {
    Ingress,
    Egress,
}

/// What a record tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowEvent {
    Started,
    /// Once a period while the flow lasts.
    Ongoing,
    Ended,
    /// A denied flow: its first packet, and once a period while it keeps trying.
    Denied,
}

/// `flow.IP`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    #[serde(rename = "ipVersion")]
    pub version: IpVersion,
}

/// `flow.IPVersion`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpVersion {
    IPv4,
    IPv6,
}

/// `flow.TCPFlags`; false is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE", default)]
pub struct TcpFlags {
    #[serde(skip_serializing_if = "is_false")]
    pub fin: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub syn: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub rst: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub psh: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub ack: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub urg: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub ece: bool,
    #[serde(skip_serializing_if = "is_false")]
    pub cwr: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl TcpFlags {
    /// From byte 13 of the TCP header (RFC 9293, section 3.1).
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self {
            fin: bits & 1 != 0,
            syn: bits & 2 != 0,
            rst: bits & 4 != 0,
            psh: bits & 8 != 0,
            ack: bits & 16 != 0,
            urg: bits & 32 != 0,
            ece: bits & 64 != 0,
            cwr: bits & 128 != 0,
        }
    }

    /// The names of those that are set, as people write them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        [
            (self.syn, "SYN"),
            (self.fin, "FIN"),
            (self.rst, "RST"),
            (self.psh, "PSH"),
            (self.ack, "ACK"),
            (self.urg, "URG"),
            (self.ece, "ECE"),
            (self.cwr, "CWR"),
        ]
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
    }
}

/// `flow.Layer4`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layer4 {
    #[serde(rename = "TCP")]
    Tcp {
        source_port: u16,
        destination_port: u16,
        flags: TcpFlags,
    },
    #[serde(rename = "UDP")]
    Udp { source_port: u16, destination_port: u16 },
    #[serde(rename = "SCTP")]
    Sctp { source_port: u16, destination_port: u16 },
    #[serde(rename = "ICMPv4")]
    IcmpV4 {
        #[serde(rename = "type")]
        kind: u8,
        code: u8,
    },
    #[serde(rename = "ICMPv6")]
    IcmpV6 {
        #[serde(rename = "type")]
        kind: u8,
        code: u8,
    },
}

impl Layer4 {
    /// Source and destination port, where the protocol has ports.
    #[must_use]
    pub const fn ports(&self) -> Option<(u16, u16)> {
        match *self {
            Self::Tcp {
                source_port,
                destination_port,
                ..
            }
            | Self::Udp {
                source_port,
                destination_port,
            }
            | Self::Sctp {
                source_port,
                destination_port,
            } => Some((source_port, destination_port)),
            Self::IcmpV4 { .. } | Self::IcmpV6 { .. } => None,
        }
    }
}

/// `flow.Workload`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload<'a> {
    pub name: Cow<'a, str>,
    pub kind: Cow<'a, str>,
}

/// `flow.Endpoint`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint<'a> {
    /// Id of the local endpoint.
    #[serde(rename = "ID", default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// Only Cilium's reserved identities: 1 host, 2 world, 6 remote node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Cow<'a, str>>,
    /// `k8s:key=value` of pods, `reserved:…` of everybody else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<Workload<'a>>,
    /// The node's name, where the address is a node's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<Cow<'a, str>>,
}

/// `flow.Policy`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy<'a> {
    pub name: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Cow<'a, str>>,
    #[serde(default)]
    pub labels: Vec<Cow<'a, str>>,
    /// Kind of the object as users write it (both Kubernetes and Calico call theirs `NetworkPolicy`;
    /// `weir.policy` tells them apart).
    pub kind: Cow<'a, str>,
}

/// `flow.CiliumEventType`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventType {
    #[serde(rename = "type")]
    pub kind: u32,
    #[serde(default)]
    pub sub_type: u32,
}

impl EventType {
    /// A dropped packet; the sub type is the drop reason.
    pub const DROP: u32 = 1;
    /// A packet at a trace point; the sub type is the point.
    pub const TRACE: u32 = 4;
    pub const TRACE_TO_ENDPOINT: u32 = 0;
    pub const TRACE_FROM_ENDPOINT: u32 = 5;
}

/// `flow.NetworkInterface`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub index: u32,
}

/// Something counted in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BothWays {
    /// From source to destination.
    pub forward: u64,
    /// From destination to source.
    pub reply: u64,
}

/// A verdict that is not enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Staged {
    pub verdict: Verdict,
    /// The whole walk, the deciding step last.
    pub hits: Vec<HitReport>,
}

/// What Hubble has no field for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weir<'a> {
    pub event: FlowEvent,
    /// [`weir_common::reason::Reason::name`]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'a, str>>,
    /// Of the deciding step of the policy walk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyName>,
    /// Index in the object's list of this direction. Absent at the end of a tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_name: Option<Cow<'a, str>>,
    /// The whole walk, the deciding step last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hits: Vec<HitReport>,
    /// A Log rule was passed.
    #[serde(default, skip_serializing_if = "is_false")]
    pub log: bool,
    /// What would happen if staged policies were enforced; only where there are some, in the first record of a flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staged: Option<Staged>,
    /// Of the flow so far (denied flows: what was dropped).
    pub packets: BothWays,
    /// From the network header on.
    pub bytes: BothWays,
    #[serde(serialize_with = "nanoseconds")]
    pub start: Timestamp,
    /// When the last packet was seen; absent while that is the first one.
    #[serde(
        default,
        serialize_with = "optional_nanoseconds",
        skip_serializing_if = "Option::is_none"
    )]
    pub end: Option<Timestamp>,
    /// Denied packets so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Protocol number, where `l4` has no name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<u8>,
    /// The flow began before its interface was attached.
    #[serde(default, skip_serializing_if = "is_false")]
    pub adopted: bool,
    /// Id of the endpoint whose policies decided.
    pub endpoint: u32,
}

/// One line of the flow log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow<'a> {
    #[serde(serialize_with = "nanoseconds")]
    pub time: Timestamp,
    pub verdict: Verdict,
    /// Hubble's number where Hubble has the reason (130 and above), else Weir's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_reason: Option<u32>,
    #[serde(rename = "IP")]
    pub ip: Ip,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub l4: Option<Layer4>,
    pub source: Endpoint<'a>,
    pub destination: Endpoint<'a>,
    #[serde(rename = "Type")]
    pub kind: Cow<'a, str>,
    pub node_name: Cow<'a, str>,
    pub event_type: EventType,
    pub traffic_direction: TrafficDirection,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_observation_point: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drop_reason_desc: Option<Cow<'a, str>>,
    pub is_reply: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<Interface>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_allowed_by: Vec<Policy<'a>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress_allowed_by: Vec<Policy<'a>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress_denied_by: Vec<Policy<'a>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ingress_denied_by: Vec<Policy<'a>>,
    #[serde(rename = "Summary")]
    pub summary: Cow<'a, str>,
    pub weir: Weir<'a>,
}

/// `flow.LostEventSource`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LossSource {
    /// The kernel's ring buffer was full.
    PerfEventRingBuffer,
    /// The flow log's queue was full, or the log could not be written.
    ObserverEventsQueue,
    /// A reader at the socket was too slow.
    HubbleRingBuffer,
}

/// `flow.LostEvent`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostEvent {
    pub source: LossSource,
    pub num_events_lost: u64,
}

/// The line that says how much is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost<'a> {
    #[serde(serialize_with = "nanoseconds")]
    pub time: Timestamp,
    pub node_name: Cow<'a, str>,
    pub lost_events: LostEvent,
}

/// Any line of the flow log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line<'a> {
    Lost(Lost<'a>),
    Flow(Box<Flow<'a>>),
}

/// RFC 3339 with all nine digits.
fn nanoseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.9}"))
}

fn optional_nanoseconds<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => nanoseconds(time, serializer),
        None => serializer.serialize_none(),
    }
}
