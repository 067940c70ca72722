//! Who is judged from the first packet on, who is waited for, and who is not.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weir_tests::{
    lab::{
        Family, Layout,
        agent::AgentOptions,
        cni::{self, Answer, Call},
        probe::{Protocol, Verdict},
    },
    world::{ENFORCED, Plan, World},
};

use super::{JUDGED, NODE, POD, POLICY, call, edit, endpoint, enforced, link, pending, world, write};

fn a_pod_is_judged_from_its_first_packet(layout: Layout) -> Result<()> {
    world(layout)?.check(|world| {
        link(world)?;
        write(world, &pending(world)?)?;
        world.enforced()?;
        ensure!(endpoint(world)?.is_none(), "a pod without an address has an endpoint");
        let call = call(world, "ADD", "1.0.0")?;
        let answer = call.run()?;
        answer.succeeded()?;
        let result = cni::result("1.0.0", world.lab.pod(POD)?);
        ensure!(answer.output == result, "the result was changed: {}", answer.output);
        // From here on processes of the pod may run.
        let first = enforced(world)?;
        world.expect(&JUDGED)?;
        let interface = &world.lab.pod(POD)?.interface;
        ensure!(first.interface.as_ref() == Some(interface), "{first:?}");

        // The kubelet tells of the address, and a late message that there is none: nothing changes.
        let mut running = pending(world)?;
        let addresses = world.lab.pod(POD)?.addresses;
        running["status"] = json!({
            "phase": "Running",
            "podIPs": addresses.iter().map(|address| json!({"ip": address.to_string()})).collect::<Vec<_>>(),
        });
        for object in [&running, &pending(world)?, &running, &pending(world)?] {
            write(world, object)?;
            world.enforced()?;
            let now = enforced(world)?;
            ensure!((now.id, now.epoch) == (first.id, first.epoch), "{now:?}, not {first:?}");
        }
        // The same again (a runtime that lost the answer), and what the plugin says of it later.
        call.run()?.succeeded()?;
        let mut check = call.clone();
        check.set("CNI_COMMAND", "CHECK");
        check.run()?.succeeded()?;
        world.expect(&JUDGED)?;

        let mut del = call;
        del.set("CNI_COMMAND", "DEL");
        for _ in 0..2 {
            let answer = del.run()?;
            answer.succeeded()?;
            ensure!(answer.output == Value::Null, "DEL says {}", answer.output);
        }
        ensure!(endpoint(world)?.is_none(), "still there: {:?}", endpoint(world)?);
        check.run()?.failed(11)
    })
}

#[test]
fn first_packet_routed() -> Result<()> {
    a_pod_is_judged_from_its_first_packet(Layout::Routed)
}

#[test]
fn first_packet_point_to_point() -> Result<()> {
    a_pod_is_judged_from_its_first_packet(Layout::PointToPoint)
}

#[test]
fn first_packet_bridge() -> Result<()> {
    a_pod_is_judged_from_its_first_packet(Layout::Bridge)
}

#[test]
fn first_packet_branch() -> Result<()> {
    a_pod_is_judged_from_its_first_packet(Layout::Branch)
}

#[test]
fn a_pod_that_the_source_has_not_told_of_is_waited_for() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        let mut short = call(world, "ADD", "1.0.0")?;
        edit(&mut short, |configuration| configuration["waitSeconds"] = json!(0.3))?;
        let answer = short.run()?;
        answer.failed(11)?;
        ensure!(
            answer.output["details"].as_str().is_some_and(|text| text.contains(POD)),
            "{answer:?}"
        );
        ensure!(
            answer.took >= Duration::from_millis(200),
            "it did not wait: {:?}",
            answer.took
        );

        let mut waiting = call(world, "ADD", "1.0.0")?.start()?;
        thread::sleep(Duration::from_millis(300));
        ensure!(!waiting.has_ended()?, "it did not wait: {:?}", waiting.end()?);
        write(world, &pending(world)?)?;
        waiting.end()?.succeeded()?;
        enforced(world)?;
        world.expect(&JUDGED)
    })
}

#[test]
fn another_pod_of_the_same_name_is_not_taken_for_it() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        let uid = |digit: char| format!("{0}-1111-4111-8111-111111111111", digit.to_string().repeat(8));
        let object = |world: &World, uid: &str, label: &str| -> Result<Value> {
            let mut object = pending(world)?;
            object["metadata"]["uid"] = json!(uid);
            object["metadata"]["labels"] = json!({"pod": label});
            Ok(object)
        };
        // The one before, which no policy selects.
        write(world, &object(world, &uid('a'), "old")?)?;
        world.enforced()?;
        let mut new = call(world, "ADD", "1.0.0")?;
        new.set(
            "CNI_ARGS",
            &format!("K8S_POD_NAMESPACE=x;K8S_POD_NAME=new;K8S_POD_UID={}", uid('b')),
        );
        let mut waiting = new.start()?;
        thread::sleep(Duration::from_millis(300));
        ensure!(
            !waiting.has_ended()?,
            "the pod before was taken for it: {:?}",
            waiting.end()?
        );
        write(world, &object(world, &uid('b'), "new")?)?;
        waiting.end()?.succeeded()?;
        world.expect(&JUDGED)
    })
}

#[test]
fn without_an_agent_a_pod_waits_then_fails_but_for_exempt_namespaces() -> Result<()> {
    World::without_agents(&Plan::one_node(&["x/a", "x/b"]))?.check(|world| {
        world.manifests.text("policy", POLICY)?;
        link(world)?;
        write(world, &pending(world)?)?;
        world.start_agents()?;
        world.agent(NODE)?.terminate()?;

        let mut short = call(world, "ADD", "1.0.0")?;
        edit(&mut short, |configuration| configuration["waitSeconds"] = json!(0.3))?;
        let answer = short.run()?;
        answer.failed(11)?;
        ensure!(
            answer.took >= Duration::from_millis(250),
            "it did not wait: {:?}",
            answer.took
        );
        // The socket of an agent that has ended is there still; without a run directory there is not even that.
        edit(&mut short, |configuration| {
            configuration["runDir"] = json!("/nowhere/weir")
        })?;
        short.run()?.failed(11)?;

        // kube-system by default; nobody where the list is empty.
        let mut exempt = call(world, "ADD", "1.0.0")?;
        exempt.set("CNI_ARGS", "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=new");
        let answer = exempt.run()?;
        answer.succeeded()?;
        ensure!(
            answer.output["ips"].is_array() && answer.notes.contains("exempt"),
            "{answer:?}"
        );
        edit(&mut exempt, |configuration| {
            configuration["exemptNamespaces"] = json!([]);
            configuration["waitSeconds"] = json!(0.1);
        })?;
        exempt.run()?.failed(11)?;
        edit(&mut short, |configuration| {
            configuration["exemptNamespaces"] = json!(["x"])
        })?;
        short.run()?.succeeded()?;
        // What needs no agent needs none.
        let mut del = short.clone();
        del.set("CNI_COMMAND", "DEL");
        del.run()?.succeeded()?;

        // An agent that comes while the plugin waits.
        let mut waiting = call(world, "ADD", "1.0.0")?.start()?;
        thread::sleep(Duration::from_millis(300));
        ensure!(!waiting.has_ended()?, "it did not wait: {:?}", waiting.end()?);
        world.agent(NODE)?.spawn()?;
        waiting.end()?.succeeded()?;
        enforced(world)?;
        world.expect(&JUDGED)
    })
}

/// An agent that runs but has read nothing: pods of exempt namespaces may be what it waits for.
#[test]
fn an_exempt_pod_does_not_wait_long_for_an_agent_that_cannot_attach_it() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let kubeconfig = directory.path().join("kubeconfig");
    // Nobody listens there.
    let nobody = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "none",
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
        "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "none", "user": {}}],
    });
    fs::write(&kubeconfig, nobody.to_string())?;
    let plan = Plan {
        options: AgentOptions {
            kubeconfig: Some(kubeconfig),
            ..AgentOptions::default()
        },
        ..Plan::one_node(&["x/a", "x/b"])
    };
    World::without_agents(&plan)?.check(|world| {
        link(world)?;
        world.spawn_agents()?;
        let began = Instant::now();
        while world.status(NODE).is_err() {
            ensure!(began.elapsed() < ENFORCED, "the agent does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        let waiting =
            |call: &mut Call, seconds: u64| edit(call, |configuration| configuration["waitSeconds"] = json!(seconds));
        let mut exempt = call(world, "ADD", "1.0.0")?;
        exempt.set("CNI_ARGS", "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=new");
        let started = |answer: &Answer, soonest: u64, latest: u64| {
            answer.succeeded()?;
            ensure!(
                answer.notes.contains("exempt") && answer.notes.contains("the source has not been read yet"),
                "{answer:?}"
            );
            let expected = Duration::from_secs(soonest)..Duration::from_secs(latest);
            ensure!(
                expected.contains(&answer.took),
                "{:?} is not in {expected:?}",
                answer.took
            );
            Ok(())
        };
        // The wait where it is short, and else as long as it is by default.
        waiting(&mut exempt, 2)?;
        started(&exempt.run()?, 1, 6)?;
        let mut other = call(world, "ADD", "1.0.0")?;
        waiting(&mut other, 20)?;
        let mut other = other.start()?;
        waiting(&mut exempt, 60)?;
        started(&exempt.run()?, 8, 18)?;
        ensure!(!other.has_ended()?, "a pod of another namespace did not wait");
        other.end()?.failed(11)
    })
}

#[test]
fn an_exempt_pod_that_started_without_an_agent_is_taken_over() -> Result<()> {
    world(Layout::PointToPoint)?.check(|world| {
        world.agent(NODE)?.terminate()?;
        link(world)?;
        let mut exempt = call(world, "ADD", "1.0.0")?;
        edit(&mut exempt, |configuration| {
            configuration["exemptNamespaces"] = json!(["x"])
        })?;
        exempt.run()?.succeeded()?;
        let verdict = world.verdict("x/b", POD, Family::V4, Protocol::Tcp, 80)?;
        ensure!(verdict == Verdict::Allow, "nobody enforces, and yet: {verdict}");
        let mut running = pending(world)?;
        let addresses = world.lab.pod(POD)?.addresses;
        running["status"]["podIPs"] = addresses
            .iter()
            .map(|address| json!({"ip": address.to_string()}))
            .collect();
        write(world, &running)?;
        let agent = world.agent(NODE)?;
        agent.spawn()?;
        agent.wait(ENFORCED)?;
        enforced(world)?;
        world.expect(&JUDGED)
    })
}
