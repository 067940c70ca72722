//! `weir uninstall`: take Weir away from a whole cluster, and know when it is gone.
//!
//! What every agent does when its DaemonSet goes, it does by itself. This verb makes sure that there is nothing in its
//! way: Helm deletes the DaemonSet together with the agents' rights, and does not wait for pods.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Pod, PodStatus},
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, Preconditions, PropagationPolicy},
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
    /// Nodes whose agent has ended.
    ended: BTreeSet<String>,
    /// Nodes whose agent did not run when it was told to go: what an earlier one left may still be there.
    not_running: BTreeSet<String>,
    /// Nodes whose agent has not ended in time.
    remaining: BTreeSet<String>,
}

impl Uninstall {
    /// # Errors
    /// The API server cannot be asked, or some agent does not end in time.
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
            writeln!(out, "agents ended on {} nodes", report.ended.len())
        })?;
        if !report.not_running.is_empty() {
            eprintln!(
                "weir: no agent was running on {}: run `weir detach` there (how: docs/install.md, \"A node without agent\")",
                list(&report.not_running)
            );
        }
        if report.remaining.is_empty() {
            return Ok(());
        }
        Err(CliError::Failed {
            message: format!(
                "after {}, the agent has not ended on {}",
                humantime::format_duration(self.timeout),
                list(&report.remaining)
            ),
            remedy: Some(
                "a node that was down still has the CNI plugin when it comes back, and its pods wait for an agent: install \
                 and uninstall Weir once more then. Where the node is up, look at the agent's log, and run `weir detach` \
                 (how: docs/install.md, \"A node without agent\")"
                    .to_owned(),
            ),
        })
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

        let mut report = Report {
            deleted: set.is_some(),
            ..Report::default()
        };
        for pod in &before.items {
            if let Some(node) = node(pod)
                && !is_running(pod.status.as_ref())
            {
                report.not_running.insert(node);
            }
        }
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

        let all: BTreeSet<String> = before.items.iter().filter_map(node).collect();
        loop {
            let left = patiently(deadline, "listing the agents' pods", || pods.list(&agents)).await?;
            report.remaining = left.items.iter().filter_map(node).collect();
            // A pod that has no node yet has done nothing, but may still get one.
            if left.items.is_empty() || Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(INTERVAL).await;
        }
        report.ended = all.difference(&report.remaining).cloned().collect();
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

/// Whether the agent in a pod runs, and so hears that it is to go.
fn is_running(status: Option<&PodStatus>) -> bool {
    let containers = status.and_then(|status| status.container_statuses.as_ref());
    containers.is_some_and(|containers| {
        containers
            .iter()
            .all(|container| container.state.as_ref().is_some_and(|state| state.running.is_some()))
    })
}

fn list(nodes: &BTreeSet<String>) -> String {
    const SHOWN: usize = 10;
    let mut text = nodes.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if let Some(more) = nodes.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        text.push_str(&format!(" and {more} more nodes"));
    }
    text
}
