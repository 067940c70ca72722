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

    /// Local pods that are not enforced, and such as are gone and not closed, with the reason.
    pub fn unenforced(&self) -> impl Iterator<Item = (&PeerKey, String)> {
        self.waiting().map(|(pod, endpoint)| (pod, reason(endpoint)))
    }

    fn waiting(&self) -> impl Iterator<Item = (&PeerKey, &LocalEndpoint)> {
        let gone = self.departed.iter().map(|gone| (&gone.pod, &gone.endpoint));
        let all = self.endpoints.iter().chain(gone);
        all.filter(|(_, endpoint)| !endpoint.is_attached())
    }

    /// A pod that is not enforced and should be by now: new ones take a moment, and so do those that end.
    fn long_unenforced(&self) -> Option<String> {
        let long = |endpoint: &LocalEndpoint| endpoint.waiting_since.is_some_and(|since| since.elapsed() >= PATIENCE);
        let mut pods = self.waiting().filter(|(_, endpoint)| long(endpoint));
        let (pod, endpoint) = pods.next()?;
        let reason = reason(endpoint);
        Some(match pods.count() {
            0 => format!("{pod} is not enforced: {reason}"),
            more => format!("{pod} is not enforced: {reason} (and {more} more pods)"),
        })
    }

    /// Why pods may start without their policy, if the CNI plugin is to keep them from it.
    fn without_plugin(&self) -> Option<String> {
        // Pods of a plugin that is not wanted and cannot be taken away are enforced all the same.
        let options = self.options.cni.as_ref().filter(|options| options.install)?;
        match &self.plugin {
            None => Some("the CNI plugin is being installed".to_owned()),
            Some(report) if report.failed => Some(format!(
                "the CNI plugin is not installed: {}",
                report.reason.as_deref().unwrap_or("no reason given")
            )),
            // Something gives pods their interfaces. Before the network's own agent has come up, nothing does.
            Some(report)
                if report.installed.is_none()
                    && self.endpoints.iter().any(|(_, endpoint)| endpoint.interface.is_some()) =>
            {
                Some(format!(
                    "pods have interfaces, but there is no network configuration in {}: this is not the directory that \
                     the container runtime uses; correct cni.confDir (--cni-conf-dir)",
                    options.directories.conf.display()
                ))
            }
            Some(_) => None,
        }
    }
}

fn reason(endpoint: &LocalEndpoint) -> String {
    let reason = endpoint.trouble.clone();
    reason.unwrap_or_else(|| "its interface has not been found yet".to_owned())
}
