//! What the tests of this room share.

use std::sync::Arc;

use super::directory::PodInfo;
use crate::api::PodPhase;

/// A running pod.
pub fn pod(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Arc<PodInfo> {
    Arc::new(PodInfo {
        namespace: namespace.into(),
        name: name.into(),
        labels: Arc::new(
            labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        ),
        node_name: Some("n1".into()),
        host_network: false,
        service_account: "default".into(),
        named_ports: Vec::new().into(),
        addresses: Vec::new(),
        phase: PodPhase::Running,
        created: None,
        allowed_sources: Vec::new(),
        workload: None,
    })
}
