//! Which flow records a reader wants. Several values of one condition: any of them; several conditions: all of them.

use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use weir_common::policy::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP};

use super::{
    directory::{Name, PodInfo},
    json::Verdict,
    record::FlowRecord,
};

/// A pod by name, as people write it: `name`, `namespace/name`, `namespace/`. The name may be cut short (`web-` finds
/// every replica).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPattern {
    pub namespace: Option<String>,
    pub prefix: String,
}

impl FromStr for PodPattern {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once('/') {
            Some((namespace, prefix)) => Self {
                namespace: Some(namespace.to_owned()),
                prefix: prefix.to_owned(),
            },
            None => Self {
                namespace: None,
                prefix: text.to_owned(),
            },
        })
    }
}

impl PodPattern {
    fn matches(&self, pod: &PodInfo) -> bool {
        self.namespace
            .as_deref()
            .is_none_or(|namespace| *namespace == *pod.namespace)
            && pod.name.starts_with(&self.prefix)
    }
}

/// A protocol by name or number. `ICMP` is both ICMP and ICMPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolPattern {
    pub first: u8,
    pub second: Option<u8>,
}

/// A protocol that nobody knows.
#[derive(Debug, thiserror::Error)]
#[error("unknown protocol {0:?}: use tcp, udp, sctp, icmp, icmpv4, icmpv6 or a number from 0 to 255")]
pub struct UnknownProtocol(String);

impl FromStr for ProtocolPattern {
    type Err = UnknownProtocol;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let one = |first| Self { first, second: None };
        Ok(match text.to_ascii_lowercase().as_str() {
            "tcp" => one(IPPROTO_TCP),
            "udp" => one(IPPROTO_UDP),
            "sctp" => one(IPPROTO_SCTP),
            "icmpv4" => one(IPPROTO_ICMP),
            "icmpv6" => one(IPPROTO_ICMPV6),
            "icmp" => Self {
                first: IPPROTO_ICMP,
                second: Some(IPPROTO_ICMPV6),
            },
            number => one(number.parse().map_err(|_| UnknownProtocol(text.to_owned()))?),
        })
    }
}

/// What a reader asked for. Empty conditions are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Of either end.
    pub namespaces: Vec<String>,
    /// Either end.
    pub pods: Vec<PodPattern>,
    pub verdicts: Vec<Verdict>,
    pub protocols: Vec<ProtocolPattern>,
    /// Either end's.
    pub ports: Vec<u16>,
    /// Nothing older.
    pub since: Option<Timestamp>,
}

impl Filter {
    #[must_use]
    pub fn matches(&self, record: &FlowRecord) -> bool {
        let pods = || {
            [&record.source, &record.destination]
                .into_iter()
                .filter_map(|end| match &end.name {
                    Some(Name::Pod(pod)) => Some(pod),
                    _ => None,
                })
        };
        (self.namespaces.is_empty() || pods().any(|pod| self.namespaces.iter().any(|name| **name == *pod.namespace)))
            && (self.pods.is_empty() || pods().any(|pod| self.pods.iter().any(|pattern| pattern.matches(pod))))
            && (self.verdicts.is_empty() || self.verdicts.contains(&record.verdict))
            && (self.protocols.is_empty()
                || self
                    .protocols
                    .iter()
                    .any(|p| p.first == record.protocol || p.second == Some(record.protocol)))
            && (self.ports.is_empty()
                || record.ports().is_some_and(|(source, destination)| {
                    self.ports.contains(&source) || self.ports.contains(&destination)
                }))
            && self.since.is_none_or(|since| record.time >= since)
    }
}
