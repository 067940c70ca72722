//! Thousands of pods that come, change and go while nobody waits for anybody. What is enforced in the end is what the
//! objects say in the end, and what an agent that knows nothing of the way there makes of them.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use weir_tests::{
    api_world::ApiWorld,
    churn::{ELSEWHERE, Pod, Writer, decisions},
    cluster::{Component, api::Api},
    world::{ENFORCED, Plan},
};

use super::{NODE, signal};

const WRITERS: u32 = 4;
const PODS_EACH: u32 = 500;
const CHANGES_EACH: u32 = 500;
/// Of the values of the label that the policy asks for; it allows the first two.
const ALLOWED: u32 = 2;

fn write(api: &Api, number: u32) -> Result<BTreeMap<String, Pod>> {
    let mut writer = Writer::new(api, number);
    for _ in 0..PODS_EACH {
        writer.add()?;
    }
    for _ in 0..CHANGES_EACH {
        writer.change()?;
    }
    while writer.catch_up()? {}
    Ok(writer.pods().clone())
}

#[test]
fn thousands_of_pods_whose_status_comes_late_end_as_their_objects_say() -> Result<()> {
    ApiWorld::new(&Plan::one_node(&["x/server", "x/a"]))?.check(|world| {
        world.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": ELSEWHERE}}))?;
        let allowed: Vec<String> = (0..ALLOWED).map(|app| format!("app-{app}")).collect();
        world.put(&json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": "x", "name": "server"},
            "spec": {
                "podSelector": {"matchLabels": {"pod": "server"}}, "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"podSelector": {
                    "matchExpressions": [{"key": "app", "operator": "In", "values": allowed}],
                }}]}],
            },
        }))?;
        world.world.enforced()?;
        // They would only clean up after a node without a kubelet.
        world.cluster.kill(Component::ControllerManager)?;
        world.cluster.kill(Component::Scheduler)?;

        let api = world.cluster.api();
        let pid = world
            .world
            .agents
            .get(NODE)
            .and_then(|agent| agent.pid())
            .context("the agent runs")?;
        let models = thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .map(|number| scope.spawn(move || write(api, number)))
                .collect();
            // A slow consumer, again and again.
            while writers.iter().any(|writer| !writer.is_finished()) {
                signal(pid, Signal::SIGSTOP)?;
                thread::sleep(Duration::from_millis(700));
                signal(pid, Signal::SIGCONT)?;
                thread::sleep(Duration::from_millis(700));
            }
            writers
                .into_iter()
                .map(|writer| writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect::<Result<Vec<_>>>()
        })?;
        world.world.enforced()?;

        let found = decisions(world.world.agent(NODE)?, "x/server")?;
        let mut wrong = Vec::new();
        let mut count = 0;
        for pod in models.iter().flat_map(|pods| pods.values()).filter(|pod| !pod.over) {
            count += 1;
            let expected = if pod.app < ALLOWED { "allow" } else { "deny" };
            match found.get(&pod.address.into()) {
                Some(decision) if decision.contains(expected) => {}
                other => wrong.push(format!("{}: {other:?}, not {expected}", pod.address)),
            }
        }
        ensure!(count >= WRITERS * PODS_EACH, "only {count} pods are left");
        ensure!(
            wrong.is_empty(),
            "{} of {count} are wrong: {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(5)]
        );

        let agent = world.world.agent(NODE)?;
        agent.terminate()?;
        agent.spawn()?;
        agent.wait(ENFORCED)?;
        let fresh = decisions(world.world.agent(NODE)?, "x/server")?;
        let differ: Vec<_> = found
            .iter()
            .filter(|(address, decision)| fresh.get(address) != Some(decision))
            .take(5)
            .collect();
        ensure!(
            differ.is_empty() && fresh.len() == found.len(),
            "a fresh agent knows {} addresses, not {}, and decides otherwise of {differ:?}",
            fresh.len(),
            found.len()
        );
        Ok(())
    })
}
