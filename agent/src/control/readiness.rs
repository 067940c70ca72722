//! Whether everything is enforced; if not, why not.

use std::time::Duration;

use super::{agent::Agent, endpoints::LocalEndpoint};
use crate::{policy::change::PeerKey, source::SourceOptions};

/// For so long a pod may be without enforcement before the agent is not ready for it: new ones take a moment, and those that
/// end are known a moment longer than their interfaces.
const PATIENCE: Duration = Duration::from_secs(10);

impl Agent {
    /// Why not everything is enforced, if something is not.
    #[must_use]
    pub fn unready(&self) -> Option<String> {
        if !self.synced {
            return Some("the source has not been read yet".to_owned());
        }
        if self.is_strange() {
            return Some(format!(
                "the cluster has no node {}: pods of that name's node would be taken for gone; see --node",
                self.options.node
            ));
        }
        if let Some((what, _)) = &self.broken {
            return Some(what.clone());
        }
        if !self.settled {
            return Some("interfaces of pods are still being looked for".to_owned());
        }
        if let Some(gap) = &self.incomplete {
            return Some(gap.reason.clone());
        }
        if let Some(reason) = self.without_plugin() {
            return Some(reason);
        }
        if let Some(reason) = self.long_unenforced() {
            return Some(reason);
        }
        self.shortages.first().map(|shortage| {
            format!(
                "map {} is too small: {} entries needed, {} there; {}",
                shortage.map, shortage.needed, shortage.capacity, shortage.consequence
            )
        })
    }

    /// The API has told of all nodes, and this one is not among them: it goes by another name, and its pods are unknown.
    pub(super) fn is_strange(&self) -> bool {
        matches!(self.options.source, SourceOptions::Kubernetes(_)) && self.synced && !self.index.knows_own_node()
    }

    /// Local pods that are not enforced, with the reason.
    pub fn unenforced(&self) -> impl Iterator<Item = (&PeerKey, String)> {
        self.endpoints
            .iter()
            .filter(|(_, endpoint)| !endpoint.is_attached())
            .map(|(pod, endpoint)| {
                let reason = endpoint.trouble.clone();
                (
                    pod,
                    reason.unwrap_or_else(|| "its interface has not been found yet".to_owned()),
                )
            })
    }

    /// A pod that is not enforced and should be by now: new ones take a moment, and so do those that end.
    fn long_unenforced(&self) -> Option<String> {
        let long = |endpoint: &LocalEndpoint| endpoint.waiting_since.is_some_and(|since| since.elapsed() >= PATIENCE);
        let mut pods = self
            .unenforced()
            .filter(|(pod, _)| self.endpoints.get(pod).is_some_and(long));
        let (pod, reason) = pods.next()?;
        Some(match pods.count() {
            0 => format!("{pod} is not enforced: {reason}"),
            more => format!("{pod} is not enforced: {reason} (and {more} more pods)"),
        })
    }

    /// Why pods may start without their policy, if the CNI plugin is to keep them from it.
    fn without_plugin(&self) -> Option<String> {
        self.options.cni.as_ref()?;
        match &self.plugin {
            None => Some("the CNI plugin is being installed".to_owned()),
            Some(report) if report.failed => Some(format!(
                "the CNI plugin is not installed: {}",
                report.reason.as_deref().unwrap_or("no reason given")
            )),
            Some(_) => None,
        }
    }
}
