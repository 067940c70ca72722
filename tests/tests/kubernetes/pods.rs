//! What local pods may do while the API says too little of them: not yet, or not any more.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use serde_json::json;
use weir::control::query::{EndpointReport, EndpointState};
use weir_common::layout::map;
use weir_tests::{
    api_world::ApiWorld,
    hooks, kernel,
    lab::{
        agent::Attach,
        cni::{self, Call},
        ip::Batch,
        probe::Verdict,
    },
    world::only_from,
};

use super::{BOTH, NODE, ONLY_A, POLICIES, cluster_role, cluster_role_without, enforced, expect, plan};

/// It allows nothing that was not allowed, but is something to write.
const EVERYBODY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: everybody, namespace: x}
spec: {podSelector: {matchLabels: {pod: server}}, policyTypes: [Ingress], ingress: [{}]}
";
const B: &str = "/api/v1/namespaces/x/pods/b";

fn endpoint(world: &ApiWorld, pod: &str) -> Result<Option<EndpointReport>> {
    let status = world.world.status(NODE)?;
    Ok(status.endpoints.into_iter().find(|endpoint| endpoint.pod == pod))
}

#[test]
fn a_pod_that_is_deleted_by_force_is_closed_until_its_interface_is_gone() -> Result<()> {
    ApiWorld::new(&plan())?.check(|world| {
        expect(world, BOTH)?;
        let before = endpoint(world, "b")?.map(|endpoint| endpoint.id);
        let closed = |world: &ApiWorld| -> Result<bool> {
            Ok(endpoint(world, "b")?.is_some_and(|endpoint| endpoint.state == EndpointState::Closed))
        };
        // Its object goes; its processes, and its interface, do not.
        world.cluster.api().delete(B)?;
        world.until("the pod's endpoint is closed", closed)?;
        expect(world, (Verdict::Allow, Verdict::Deny))?;

        // So it is in maps that are built anew, as a write was refused.
        let generation = world.world.agent(NODE)?.generation()?;
        kernel::freeze(&generation.join(map::TRACES))?;
        world.apply(EVERYBODY)?;
        world.until("the maps are built anew", |_| Ok(!generation.exists()))?;
        enforced(world, (Verdict::Allow, Verdict::Deny))?;

        // A pod of its name and address, as a kubelet makes again the object of a static pod: it is that one's interface.
        world.push("pod-x-b")?;
        enforced(world, BOTH)?;
        let after = endpoint(world, "b")?.map(|endpoint| endpoint.id);
        ensure!(
            before == after,
            "connections are remembered under id {before:?}, not {after:?}"
        );

        world.cluster.api().delete(B)?;
        world.until("the pod's endpoint is closed again", closed)?;
        // Also where somebody takes the programs away that close it.
        hooks::detach_links(&world.world, "x/b")?;
        world.until("its programs are back", |world| {
            Ok(hooks::count(&world.world, "x/b")? == (2, 0))
        })?;
        expect(world, (Verdict::Allow, Verdict::Deny))?;
        let host = world.world.lab.pod("x/b")?.interface.clone();
        let mut batch = Batch::default();
        batch.add(format!("link del {host}"));
        batch.run(&world.world.lab.node(NODE)?.netns)?;
        world.until(
            "nothing is left of the pod",
            |world| Ok(endpoint(world, "b")?.is_none()),
        )?;
        world.world.expect(&[("x/a", "x/server", 80, Verdict::Allow)])
    })
}

#[test]
fn a_pod_that_is_gone_and_cannot_be_closed_again_is_not_called_closed() -> Result<()> {
    let mut plan = plan();
    plan.options.attach = Attach::Tc;
    ApiWorld::new(&plan)?.check(|world| {
        expect(world, BOTH)?;
        let is = |world: &ApiWorld, state: EndpointState| -> Result<bool> {
            Ok(endpoint(world, "b")?.is_some_and(|endpoint| endpoint.state == state))
        };
        world.cluster.api().delete(B)?;
        world.until("the pod's endpoint is closed", |world| is(world, EndpointState::Closed))?;

        // Its programs go, and something comes that leaves no room for them. The agent can be faster: once more.
        let node = world.world.lab.node(NODE)?.netns.clone();
        let interface = world.world.lab.pod("x/b")?.interface.clone();
        world.until("the agent was not faster", |world| {
            let _ = hooks::remove_qdisc(&world.world, "x/b");
            Ok(hooks::tc(&node, &["qdisc", "add", "dev", &interface, "ingress"]).is_ok())
        })?;
        world.until("it is said to be open", |world| is(world, EndpointState::Waiting))?;
        let reason = endpoint(world, "b")?
            .and_then(|endpoint| endpoint.reason)
            .unwrap_or_default();
        ensure!(reason.contains("clsact"), "{reason}");
        world.until("the agent is not ready", |world| Ok(!world.world.status(NODE)?.ready))?;

        hooks::tc(&node, &["qdisc", "del", "dev", &interface, "ingress"])?;
        world.until("it is closed again", |world| is(world, EndpointState::Closed))?;
        enforced(world, (Verdict::Allow, Verdict::Deny))
    })
}

#[test]
fn an_agent_that_starts_closes_what_pods_that_are_gone_have_left() -> Result<()> {
    ApiWorld::new(&plan())?.check(|world| {
        expect(world, BOTH)?;
        let interface =
            |world: &ApiWorld, pod: &str| -> Result<String> { Ok(world.world.lab.pod(pod)?.interface.clone()) };
        let (a, b) = (interface(world, "x/a")?, interface(world, "x/b")?);
        let state = |world: &ApiWorld, interface: &str| -> Result<Option<EndpointState>> {
            let of = |endpoint: &EndpointReport| endpoint.interface.as_deref() == Some(interface);
            let status = world.world.status(NODE)?;
            Ok(status.endpoints.into_iter().find(of).map(|endpoint| endpoint.state))
        };
        let id = endpoint(world, "a")?.map(|endpoint| endpoint.id);

        // One pod goes while an agent runs, the other while none does.
        world.cluster.api().delete(B)?;
        world.until("the pod's endpoint is closed", |world| {
            Ok(state(world, &b)? == Some(EndpointState::Closed))
        })?;
        world.world.agent(NODE)?.kill()?;
        world.cluster.api().delete("/api/v1/namespaces/x/pods/a")?;
        world.world.agent(NODE)?.spawn()?;
        enforced(world, (Verdict::Deny, Verdict::Deny))?;
        for interface in [&a, &b] {
            let state = state(world, interface)?;
            ensure!(state == Some(EndpointState::Closed), "{interface} is {state:?}");
        }

        // What is known again is enforced again, under the id that its connections are remembered by.
        world.push("pod-x-a")?;
        enforced(world, (Verdict::Allow, Verdict::Deny))?;
        let after = endpoint(world, "a")?.map(|endpoint| endpoint.id);
        ensure!(id == after, "it was endpoint {id:?} and is {after:?}");
        let mut batch = Batch::default();
        batch.add(format!("link del {b}"));
        batch.run(&world.world.lab.node(NODE)?.netns)?;
        world.until("nothing is left of the other", |world| Ok(state(world, &b)?.is_none()))
    })
}

#[test]
fn no_pod_starts_on_a_node_that_has_never_read_a_policy() -> Result<()> {
    let mut world = ApiWorld::without_agents(&plan())?;
    world.apply(&only_from("a"))?;
    world.put(&cluster_role_without("networking.k8s.io")?)?;
    world.world.spawn_agents()?;
    world.check(|world| {
        world.until("the agent says what it may not read", |world| {
            let reason = world.world.status(NODE).ok().and_then(|status| status.reason);
            Ok(reason.is_some_and(|reason| reason.contains(POLICIES)))
        })?;
        let run_dir = world.world.agent(NODE)?.run_dir().to_owned();
        let mut configuration = cni::configuration("1.1.0", &run_dir, None);
        configuration["waitSeconds"] = json!(1);
        let status = Call::new("STATUS", &configuration);
        status.run()?.failed(50)?;

        world.put(&cluster_role()?)?;
        world.until("the agent is ready", |world| Ok(world.world.status(NODE)?.ready))?;
        status.run()?.succeeded()?;
        enforced(world, ONLY_A)
    })
}

#[test]
fn an_agent_by_another_name_takes_nothing_away() -> Result<()> {
    ApiWorld::new(&plan())?.check(|world| {
        world.apply(&only_from("a"))?;
        enforced(world, ONLY_A)?;
        let agent = world.world.agent(NODE)?;
        agent.terminate()?;
        agent.rename("node-2");
        agent.spawn()?;
        world.until("the agent misses its node", |world| {
            let reason = world.world.status(NODE).ok().and_then(|status| status.reason);
            Ok(reason.is_some_and(|reason| reason.contains("no node node-2")))
        })?;
        // Longer than the first sync waits for interfaces.
        thread::sleep(Duration::from_secs(4));
        expect(world, ONLY_A)
    })
}
