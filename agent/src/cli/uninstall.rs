//! `weir uninstall`: take Weir away from a whole cluster, and know when it is gone.
//!
//! What every agent does when its DaemonSet goes, it does by itself. This verb makes sure that there is nothing in its
//! way: Helm deletes the DaemonSet together with the agents' rights, and does not wait for pods.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use futures_util::StreamExt as _;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Pod, PodStatus},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{DeleteParams, ListParams, Preconditions, PropagationPolicy, WatchEvent, WatchParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::Serialize;

use super::{
    args::{Object, Output},
    error::CliError,
    output,
};

/// Between two looks at the pods.
const INTERVAL: Duration = Duration::from_millis(500);

/// By which the agents are found where their DaemonSet is gone already.
const LABEL: &str = "app.kubernetes.io/name=weir";

/// Pods and their connections go on; nothing is enforced any more.
#[derive(Debug, Args)]
pub struct Uninstall {
    /// The agents' DaemonSet
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "kube-system/weir")]
    daemonset: Object,
    /// How long all nodes together may take
    #[arg(long, value_name = "DURATION", default_value = "120s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Kubeconfig file [default: as kubectl, or in a pod its service account]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

/// What was found and done.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The DaemonSet was there, and was deleted.
    deleted: bool,
    /// Nodes whose agent has ended, and so has taken everything away.
    ended: BTreeSet<String>,
    /// Nodes whose agent did not run when it was told to go: what an earlier one left may still be there.
    not_running: BTreeSet<String>,
    /// Nodes whose agent has ended with an error, or was killed before it had taken everything away.
    failed: BTreeSet<String>,
    /// Nodes whose agent has not ended in time.
    remaining: BTreeSet<String>,
    /// Pods whose agent did not run: how they end says nothing.
    #[serde(skip)]
    deaf: BTreeSet<String>,
}

impl Report {
    /// What was not done, if anything.
    fn failure(&self, timeout: Duration) -> Option<CliError> {
        let mut messages = Vec::new();
        if !self.not_running.is_empty() {
            messages.push(format!(
                "no agent was running on {}: what it had put there before is still there",
                list(&self.not_running)
            ));
        }
        if !self.failed.is_empty() {
            messages.push(format!(
                "the agent could not take everything away from {}",
                list(&self.failed)
            ));
        }
        if !self.remaining.is_empty() {
            messages.push(format!(
                "after {}, the agent has not ended on {}",
                humantime::format_duration(timeout),
                list(&self.remaining)
            ));
        }
        if messages.is_empty() {
            return None;
        }
        Some(CliError::Failed {
            message: messages.join("; "),
            remedy: Some(
                "while a node has the CNI plugin and no agent, its pods do not start: run `weir detach --cni-conf-dir DIR \
                 --cni-bin-dir DIR` on these nodes, then uninstall again; where a node is down or gone for good, \
                 `helm uninstall --no-hooks` does not ask for it (if it comes back, install and uninstall Weir once more)"
                    .to_owned(),
            ),
        })
    }

    /// Learns from an agent's pod how it has ended, if it has.
    fn take(&mut self, pod: &Pod) {
        let told_to_go = pod.metadata.deletion_timestamp.is_some();
        if told_to_go
            && !self.deaf.contains(&pod.name_any())
            && exit_codes(pod.status.as_ref()).any(|code| code != 0)
            && let Some(node) = node(pod)
        {
            self.failed.insert(node);
        }
    }
}

impl Uninstall {
    /// # Errors
    /// The API server cannot be asked; some node was not cleaned, or it is not known to be.
    pub fn run(self) -> Result<(), CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let report = runtime.block_on(self.uninstall())?;
        output::print(self.output.output, &report, |out| {
            let name = &self.daemonset;
            if report.deleted {
                writeln!(out, "deleted the DaemonSet {name}")?;
            } else {
                writeln!(out, "there is no DaemonSet {name} (any more)")?;
            }
            writeln!(out, "agents took everything away from {} nodes", report.ended.len())
        })?;
        report.failure(self.timeout).map_or(Ok(()), Err)
    }

    async fn uninstall(&self) -> anyhow::Result<Report> {
        let deadline = Instant::now() + self.timeout;
        let client = self.client().await?;
        let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &self.daemonset.namespace);
        let pods: Api<Pod> = Api::namespaced(client, &self.daemonset.namespace);

        let set = patiently(deadline, "reading the DaemonSet", || sets.get_opt(&self.daemonset.name)).await?;
        let selector = set.as_ref().map_or_else(|| LABEL.to_owned(), |set| selector(&set.spec));
        let agents = ListParams::default().labels(&selector);
        let before = patiently(deadline, "listing the agents' pods", || pods.list(&agents)).await?;

        let (hearing, deaf): (Vec<&Pod>, Vec<&Pod>) = before.items.iter().partition(|pod| hears(pod));
        let mut report = Report {
            deleted: set.is_some(),
            deaf: deaf.iter().map(|pod| pod.name_any()).collect(),
            ..Report::default()
        };
        // Of an evicted pod and the one that came after it, one is enough.
        let running: BTreeSet<String> = hearing.iter().filter_map(|pod| node(pod)).collect();
        let silent: BTreeSet<String> = deaf.iter().filter_map(|pod| node(pod)).collect();
        if let Some(set) = set {
            // This very DaemonSet, not one of the same name that somebody has just created.
            let delete = DeleteParams {
                propagation_policy: Some(PropagationPolicy::Background),
                preconditions: Some(Preconditions {
                    uid: set.uid(),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            patiently(deadline, "deleting the DaemonSet", || async {
                match sets.delete(&self.daemonset.name, &delete).await {
                    Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                    answer => answer.map(drop),
                }
            })
            .await?;
        }

        loop {
            let left = patiently(deadline, "listing the agents' pods", || pods.list(&agents)).await?;
            left.items.iter().for_each(|pod| report.take(pod));
            report.remaining = left.items.iter().filter_map(node).collect();
            // A pod that has no node yet has done nothing, but may still get one.
            if left.items.is_empty() || Instant::now() >= deadline {
                break;
            }
            let version = left.metadata.resource_version.unwrap_or_default();
            let names = left.items.iter().map(ResourceExt::name_any).collect();
            watch(&pods, &selector, &version, names, deadline, &mut report).await;
            tokio::time::sleep(INTERVAL).await;
        }
        let difference = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<BTreeSet<_>>();
        report.not_running = difference(&difference(&silent, &running), &report.remaining);
        report.failed = difference(&difference(&report.failed, &report.not_running), &report.remaining);
        report.ended = difference(&difference(&running, &report.failed), &report.remaining);
        Ok(report)
    }

    async fn client(&self) -> anyhow::Result<Client> {
        let config = match &self.kubeconfig {
            Some(file) => {
                let told = || format!("reading {}", file.display());
                let kubeconfig = Kubeconfig::read_from(file).with_context(told)?;
                Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                    .await
                    .with_context(told)?
            }
            None => Config::infer()
                .await
                .context("neither a kubeconfig nor a pod's service account; name a file with --kubeconfig")?,
        };
        Client::try_from(config).context("setting up the connection to the API server")
    }
}

/// Asks until there is an answer or it is too late: API servers restart. What is refused is refused for good.
async fn patiently<T, F: Future<Output = kube::Result<T>>>(
    deadline: Instant,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> anyhow::Result<T> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(INTERVAL);
        let error = match tokio::time::timeout(left, ask()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => anyhow::Error::from(error),
            Err(_) => anyhow::anyhow!("the API server does not answer"),
        };
        let refused = matches!(
            error.downcast_ref(),
            Some(kube::Error::Api(status)) if (400..500).contains(&status.code) && status.code != 429
        );
        if refused || Instant::now() >= deadline {
            return Err(error.context(what.to_owned()));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// The label selector of a DaemonSet as text. The chart's has plain labels alone.
fn selector(spec: &Option<k8s_openapi::api::apps::v1::DaemonSetSpec>) -> String {
    let labels = spec.as_ref().map(|spec| &spec.selector);
    let Some(LabelSelector {
        match_labels: Some(labels),
        ..
    }) = labels
    else {
        return LABEL.to_owned();
    };
    let terms: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    terms.join(",")
}

fn node(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone()
}

/// Whether the agent in a pod hears that it is to go; or has heard, and done so.
fn hears(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    let told_to_go = pod.metadata.deletion_timestamp.is_some();
    containers.is_some_and(|containers| {
        containers.iter().all(|container| {
            container.state.as_ref().is_some_and(|state| {
                let done = state.terminated.as_ref().is_some_and(|ended| ended.exit_code == 0);
                state.running.is_some() || (told_to_go && done)
            })
        })
    })
}

/// Exit codes of the containers that have ended.
fn exit_codes(status: Option<&PodStatus>) -> impl Iterator<Item = i32> {
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    containers
        .into_iter()
        .flatten()
        .filter_map(|container| Some(container.state.as_ref()?.terminated.as_ref()?.exit_code))
}

/// Follows the agents' pods until all are gone, it is too late, or the API server says no more: the kubelet writes how an
/// agent has ended and deletes its pod in one go, which looking at lists would miss.
async fn watch(
    pods: &Api<Pod>,
    selector: &str,
    version: &str,
    mut names: BTreeSet<String>,
    deadline: Instant,
    report: &mut Report,
) {
    // The longest that the API server is asked for; the list that follows finds out how it stands.
    let longest = Duration::from_secs(290);
    let left = deadline.saturating_duration_since(Instant::now()).min(longest);
    let params = WatchParams::default()
        .labels(selector)
        .timeout(left.as_secs().max(1) as u32);
    let followed = tokio::time::timeout(left, async {
        // Refused or broken: lists alone, then.
        let Ok(events) = pods.watch(&params, version).await else {
            return;
        };
        let mut events = pin!(events);
        while let Some(Ok(event)) = events.next().await {
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    report.take(&pod);
                    names.insert(pod.name_any());
                }
                WatchEvent::Deleted(pod) => {
                    report.take(&pod);
                    names.remove(&pod.name_any());
                    if names.is_empty() {
                        return;
                    }
                }
                WatchEvent::Bookmark(_) => {}
                WatchEvent::Error(_) => return,
            }
        }
    });
    // Too late: the caller sees it by the clock.
    let _ = followed.await;
}

fn list(nodes: &BTreeSet<String>) -> String {
    const SHOWN: usize = 10;
    let mut text = nodes.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if let Some(more) = nodes.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        text.push_str(&format!(" and {more} more nodes"));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, told_to_go: bool, state: &Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"containerStatuses": [{
                "name": "weir", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state,
            }]},
        });
        if told_to_go {
            pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        serde_json::from_value(pod).expect("a pod")
    }

    #[test]
    fn only_an_agent_that_runs_hears_that_it_is_to_go() {
        let running = json!({"running": {}});
        let ended = |code: i32| json!({"terminated": {"exitCode": code}});
        assert!(hears(&pod("a", false, &running)));
        assert!(hears(&pod("a", true, &running)));
        assert!(hears(&pod("a", true, &ended(0))), "it has heard, and done so");
        for (told_to_go, state) in [
            (true, ended(137)),
            // Between two restarts: what it left is there.
            (false, ended(0)),
            (false, json!({"waiting": {"reason": "CrashLoopBackOff"}})),
            (false, json!({})),
        ] {
            assert!(!hears(&pod("a", told_to_go, &state)), "{state}");
        }
        assert!(!hears(&Pod::default()), "its image is still being pulled");
    }

    #[test]
    fn an_agent_that_ends_with_an_error_has_not_cleaned_its_node() {
        let ended = |code: i32| json!({"terminated": {"exitCode": code}});
        let mut report = Report {
            deaf: ["evicted".to_owned()].into(),
            ..Report::default()
        };
        report.take(&pod("a", true, &ended(0)));
        report.take(&pod("evicted", true, &ended(137)));
        // It crashes, and is started again.
        report.take(&pod("a", false, &ended(1)));
        assert_eq!(report.failed, BTreeSet::new());
        assert!(report.failure(Duration::from_secs(1)).is_none());
        report.take(&pod("a", true, &ended(137)));
        assert_eq!(report.failed, ["n1".to_owned()].into());
        let failure = report.failure(Duration::from_secs(1)).expect("a failure");
        assert_eq!(failure.exit_code(), 1);
        assert!(failure.to_string().contains("n1"), "{failure}");
    }
}
