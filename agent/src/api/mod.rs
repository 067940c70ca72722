//! Kubernetes, Calico and ClusterNetworkPolicy objects -> the policy model. Parsing and validation end here.
//!
//! | file | what |
//! |---|---|
//! | `object` | what the rest of the agent sees of an object: trimmed, comparable, cheap to clone |
//! | `problem` | what is wrong with an object or a file, where, and what to do |
//! | `parse` | an object of any kind: its identity, then its kind's parser from the registry; lists |
//! | `registry` | which kinds are understood, and by which parser |
//! | `at` | a JSON value and where in its object it stands |
//! | `intern` | strings and label sets that many objects share |
//! | `schema` | fields that a kind's API does not have |
//! | `labels` | label selectors and metadata, validated as the API server does |
//! | `manifest` | objects -> manifests |
//! | `core` | Node, Namespace, Pod, ServiceAccount |
//! | `network_policy` | networking.k8s.io/v1 NetworkPolicy |
//! | `calico` | Calico's policies, tiers and network sets |
//! | `service` | Service and EndpointSlice |
//! | `yaml` | the text of a manifest file -> objects |
//! | `check` | all of it for files named by a user |

mod at;
pub mod calico;
mod check;
mod core;
mod intern;
mod labels;
mod manifest;
mod network_policy;
mod object;
mod parse;
mod problem;
mod registry;
mod schema;
mod service;
#[cfg(test)]
mod tests;
mod yaml;

pub use self::{
    check::check,
    manifest::manifest,
    object::{
        EndpointSlice, Namespace, NetworkSet, Node, Object, ObjectKey, ObjectKind, Pod, PodPhase, PodUid, Service,
        ServiceAccount, ServicePolicy, ServiceRule, TransportPort, Workload,
    },
    parse::{Outcome, Parsed, Parser, Unknown},
    problem::{Problem, Severity},
    registry::{ApiKind, api_kinds},
    yaml::{Document, YamlError, objects},
};
