//! Many pods at once, whose first act is to connect where policy says no.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::{
    pods::{PodPlan, Pods, STARTED, eventually, namespace, remove_namespace},
    stage::Stage,
};
use crate::lab::{
    Family, Hosts as _,
    manifests::labels,
    probe::{Protocol, Servers},
};

const OWN: &str = "weir-e2e-first-packet";

/// Pods that policy lets nowhere.
const MANY: usize = 200;
/// Pods that it lets through, so that the server is seen to answer.
const FEW: usize = 10;

/// None of the many gets through, all of the few do, while every agent is killed in between.
///
/// # Errors
/// Which pods got where they must not, or did not get where they must.
pub fn run(stage: &Stage) -> Result<()> {
    let api = stage.api();
    let nodes = stage.nodes()?;
    namespace(api, OWN, &labels(&[]))?;
    let server = format!("{OWN}/server");
    let mut pods = Pods::default();
    pods.add(
        api,
        &[PodPlan::idle(&server, &nodes[0], &labels(&[("role", "server")]))],
    )?;
    let servers = Servers::start()?;
    servers.serve(&server, pods.host(&server)?.0, &[(Protocol::Tcp, 80)])?;
    let to = pods.address(&server, Family::V4)?;
    // The sender's side alone says no: what lets its first packet out would be too late.
    api.apply(&json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": OWN, "name": "nowhere"},
        "spec": {"podSelector": {"matchLabels": {"role": "nowhere"}}, "policyTypes": ["Egress"], "egress": []},
    }))?;
    for agent in stage.agents()?.values() {
        ensure!(
            agent.caught_up(STARTED)?,
            "the agent of {} does not enforce everything",
            agent.node
        );
    }

    let plan = |role: &str, number: usize| PodPlan {
        namespace: OWN.to_owned(),
        name: format!("{role}-{number}"),
        node: Some(nodes[number % nodes.len()].clone()),
        labels: labels(&[("role", role)]),
        arguments: ["connect", &format!("{to}:80"), "--timeout=1s"]
            .map(str::to_owned)
            .to_vec(),
        ..PodPlan::default()
    };
    let many: Vec<PodPlan> = (0..MANY).map(|number| plan("nowhere", number)).collect();
    let few: Vec<PodPlan> = (0..FEW).map(|number| plan("anywhere", number)).collect();
    for (number, plan) in many.iter().enumerate() {
        api.create(&plan.object())?;
        if number % (MANY / FEW) == 0 {
            api.create(&few[number / (MANY / FEW)].object())?;
        }
        // With many on their way.
        if number == MANY / 2 {
            for agent in stage.agents()?.values() {
                kill(Pid::from_raw(agent.pid), Signal::SIGKILL)
                    .with_context(|| format!("kill the agent of {}", agent.node))?;
            }
        }
    }

    let list = format!("/api/v1/namespaces/{OWN}/pods");
    let ended = |phase: &str, role: &str| -> Result<Vec<String>> {
        Ok(api
            .list(&list)?
            .iter()
            .filter(|pod| pod["status"]["phase"] == phase && pod["metadata"]["labels"]["role"] == role)
            .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
            .collect())
    };
    let deadline = STARTED * 3;
    let finished = eventually("all pods have tried", deadline, || {
        // It will not get better: what got through is told below.
        if !ended("Succeeded", "nowhere")?.is_empty() {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(400));
        Ok(ended("Failed", "nowhere")?.len() == MANY
            && ended("Succeeded", "anywhere")?.len() + ended("Failed", "anywhere")?.len() == FEW)
    });
    finished.with_context(|| {
        stage
            .kubectl(&["get", "pods", "-n", OWN, "-o", "wide"])
            .unwrap_or_default()
    })?;
    let through = ended("Succeeded", "nowhere")?;
    ensure!(through.is_empty(), "got through: {}", through.join(" "));
    let refused = ended("Failed", "anywhere")?;
    ensure!(refused.is_empty(), "did not get through: {}", refused.join(" "));
    // What the server saw, whatever the pods say.
    ensure!(
        servers.accepted() == u32::try_from(FEW)?,
        "the server accepted {} connections, not {FEW}",
        servers.accepted()
    );
    stage.await_agents()?;
    remove_namespace(api, OWN)
}
