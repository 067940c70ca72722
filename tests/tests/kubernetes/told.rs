//! What the agent tells the cluster: Events on pods that are not enforced, and the condition on its Node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::{api_world::ApiWorld, lab::agent::AgentOptions, world::Plan};

use super::{NODE, cluster_role, plan};

const NODE_PATH: &str = "/api/v1/nodes/node-1";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/x/events";
const LOST: &str = "/api/v1/namespaces/x/pods/lost";

/// As the chart has it with `nodeCondition`.
fn with_condition() -> Result<Value> {
    let mut role = cluster_role()?;
    let rules = role["rules"].as_array_mut().context("a role has rules")?;
    rules.push(json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}));
    rules.push(json!({"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]}));
    Ok(role)
}

fn condition(world: &ApiWorld) -> Result<Option<Value>> {
    let node = world.cluster.api().get(NODE_PATH)?.context("the node is there")?;
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    Ok(conditions
        .into_iter()
        .find(|condition| condition["type"] == "WeirReady"))
}

#[test]
fn the_nodes_condition_outlives_an_agent_and_goes_with_enforcement() -> Result<()> {
    let plan = Plan {
        options: AgentOptions {
            arguments: vec!["--node-condition".to_owned()],
            ..AgentOptions::default()
        },
        ..plan()
    };
    let mut world = ApiWorld::without_agents(&plan)?;
    world.put(&with_condition()?)?;
    world.world.start_agents()?;
    world.check(|world| {
        let is_true = |world: &ApiWorld| {
            let found = condition(world)?;
            Ok(found.is_some_and(|condition| condition["status"] == "True"))
        };
        world.until("the condition is written", is_true)?;
        let before = condition(world)?.context("it is written")?;

        // Its times are in seconds.
        std::thread::sleep(Duration::from_millis(1100));
        let agent = world.world.agent(NODE)?;
        agent.terminate()?;
        agent.spawn()?;
        world.until("the next agent has written it", |world| {
            let found = condition(world)?.context("it has gone meanwhile")?;
            ensure!(found["status"] == "True", "a restart is no transition: {found}");
            Ok(found["lastHeartbeatTime"] != before["lastHeartbeatTime"])
        })?;
        let after = condition(world)?.context("it is written")?;
        ensure!(
            after["lastTransitionTime"] == before["lastTransitionTime"],
            "the status is what it was: {before}, then {after}"
        );

        world.world.agent(NODE)?.detach()?;
        world.until("the condition is gone", |world| Ok(condition(world)?.is_none()))
    })
}

#[test]
fn a_pod_that_is_not_enforced_has_an_event() -> Result<()> {
    ApiWorld::new(&plan())?.check(|world| {
        // No interface leads to it.
        world.put(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": "x", "name": "lost"},
            "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "none"}]},
            "status": {"phase": "Running", "podIP": "10.77.77.77", "podIPs": [{"ip": "10.77.77.77"}]},
        }))?;
        let pod = world.cluster.api().get(LOST)?.context("the pod is there")?;
        let found = |world: &ApiWorld| -> Result<Vec<Value>> {
            let mut events = world.cluster.api().list(EVENTS)?;
            events.retain(|event| event["regarding"]["kind"] == "Pod");
            Ok(events)
        };
        world.until("an Event says so", |world| Ok(!found(world)?.is_empty()))?;
        for event in found(world)? {
            ensure!(
                event["regarding"]["uid"] == pod["metadata"]["uid"] && event["regarding"]["name"] == "lost",
                "of others: {event}"
            );
            ensure!(
                event["reason"] == "NotEnforced" && event["type"] == "Warning",
                "{event}"
            );
        }
        Ok(())
    })
}
