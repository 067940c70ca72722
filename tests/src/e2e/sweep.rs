//! Taking away what a case has left that did not pass: the next one starts from an empty cluster.

use anyhow::Result;

use super::pods::{OURS, STARTED};
use crate::cluster::api::Api;

/// Namespaces that every cluster has.
pub const BUILT_IN: [&str; 2] = ["default", "kube-system"];

/// Lists of everything that tests make and label.
const LISTS: [&str; 12] = [
    "/apis/networking.k8s.io/v1/networkpolicies",
    "/apis/crd.projectcalico.org/v1/globalnetworkpolicies",
    "/apis/crd.projectcalico.org/v1/globalnetworksets",
    "/apis/crd.projectcalico.org/v1/networkpolicies",
    "/apis/crd.projectcalico.org/v1/networksets",
    "/apis/crd.projectcalico.org/v1/stagedglobalnetworkpolicies",
    "/apis/crd.projectcalico.org/v1/stagedkubernetesnetworkpolicies",
    "/apis/crd.projectcalico.org/v1/stagednetworkpolicies",
    "/apis/crd.projectcalico.org/v1/tiers",
    "/api/v1/serviceaccounts",
    "/api/v1/pods",
    "/api/v1/namespaces",
];

/// Removes everything with the tests' label, and waits until it is gone.
///
/// # Errors
/// The API server's; if something does not go.
pub fn sweep(api: &Api) -> Result<()> {
    let mut gone = Vec::new();
    for list in LISTS {
        let Some(found) = api.get(&format!("{list}?labelSelector={OURS}"))? else {
            continue;
        };
        for item in found["items"].as_array().into_iter().flatten() {
            let metadata = &item["metadata"];
            let name = metadata["name"].as_str().unwrap_or_default();
            let (root, resource) = list.rsplit_once('/').unwrap_or_default();
            if resource == "namespaces" && BUILT_IN.contains(&name) {
                continue;
            }
            let path = match metadata["namespace"].as_str() {
                Some(namespace) => format!("{root}/namespaces/{namespace}/{resource}/{name}"),
                None => format!("{root}/{resource}/{name}"),
            };
            api.delete_within(&path, 1)?;
            gone.push(path);
        }
    }
    gone.iter()
        .try_for_each(|path| api.wait(path, STARTED, |found| found.is_none()))
}
