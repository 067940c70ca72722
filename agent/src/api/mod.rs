//! Kubernetes, Calico and ClusterNetworkPolicy objects -> the policy model. Parsing and validation end here.
//!
//! | file | what |
//! |---|---|
//! | `object` | what the rest of the agent sees of an object: trimmed, comparable, cheap to clone |
//! | `problem` | what is wrong with an object or a file, where, and what to do |

mod object;
mod problem;

pub use self::{
    object::{Namespace, Node, Object, ObjectKey, ObjectKind, Pod, PodPhase, ServiceAccount, Workload},
    problem::{Problem, Severity},
};
