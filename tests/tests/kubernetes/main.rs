//! Agents that read a real API server, and what becomes of it: killed, compacted, refusing, serving other kinds.

mod churn;
mod older;
mod pods;
mod removal;
mod told;

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use weir_tests::{
    api_world::{ApiWorld, CRDS, restart, rights},
    cluster::{Component, api},
    lab::probe::Verdict,
    world::{Plan, only_from, wait_report},
};

const POLICIES: &str = "networkpolicies.networking.k8s.io";
const NODE: &str = "node-1";
/// The policy that [`only_from`] makes.
const SERVER_POLICY: &str = "/apis/networking.k8s.io/v1/namespaces/x/networkpolicies/server";

/// Who reaches x/server.
fn reached_by(a: Verdict, b: Verdict) -> [(&'static str, &'static str, u16, Verdict); 2] {
    [("x/a", "x/server", 80, a), ("x/b", "x/server", 80, b)]
}

fn plan() -> Plan {
    Plan::one_node(&["x/server", "x/a", "x/b"])
}

const CATCHES_UP: Duration = Duration::from_secs(60);

const ONLY_A: (Verdict, Verdict) = (Verdict::Allow, Verdict::Deny);
const ONLY_B: (Verdict, Verdict) = (Verdict::Deny, Verdict::Allow);
const BOTH: (Verdict, Verdict) = (Verdict::Allow, Verdict::Allow);

fn expect(world: &mut ApiWorld, (a, b): (Verdict, Verdict)) -> Result<()> {
    world.world.expect(&reached_by(a, b))
}

/// An API server that has just been started answers some questions only later; the agent calls that an error when it is
/// asked to wait just then.
fn enforced(world: &mut ApiWorld, verdicts: (Verdict, Verdict)) -> Result<()> {
    let deadline = Instant::now() + CATCHES_UP;
    while let Err(error) = world.world.enforced() {
        if Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    expect(world, verdicts)
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(pid)?), signal).with_context(|| format!("send {signal}"))
}

fn lists(world: &ApiWorld, kind: &str) -> Result<u64> {
    let watch = world.watch(NODE, kind)?;
    Ok(watch.with_context(|| format!("{kind} is not watched"))?.lists)
}

/// The agent stands still while a policy changes and what it missed is forgotten (410): one new list.
fn misses(world: &mut ApiWorld, policy: &str, meanwhile: (Verdict, Verdict)) -> Result<()> {
    let before = lists(world, POLICIES)?;
    let pid = world.world.agent(NODE)?.pid().context("the agent runs")?;
    signal(pid, Signal::SIGSTOP)?;
    // Nothing of what follows waits for it in a buffer.
    restart(&world.cluster, Component::ApiServer)?;
    world.apply(policy)?;
    for round in 0..50 {
        world.cluster.api().patch(
            SERVER_POLICY,
            &json!({"metadata": {"annotations": {"round": round.to_string()}}}),
        )?;
    }
    world.cluster.kill(Component::ApiServer)?;
    world.cluster.compact()?;
    world.cluster.start(Component::ApiServer)?;
    expect(world, meanwhile)?;
    signal(pid, Signal::SIGCONT)?;
    world.until("the agent has listed policies again", |world| {
        Ok(lists(world, POLICIES)? > before)
    })
}

#[test]
fn enforcement_goes_on_while_the_control_plane_is_away_and_catches_up_when_it_is_back() -> Result<()> {
    ApiWorld::new(&plan())?.check(|world| {
        expect(world, BOTH)?;
        world.apply(&only_from("a"))?;
        enforced(world, ONLY_A)?;

        // Away: what was enforced stays, also by an agent that starts meanwhile and cannot ask anybody.
        world.cluster.kill(Component::ApiServer)?;
        world.cluster.kill(Component::Etcd)?;
        world.until("the watch is known to be stale", |world| {
            Ok(world.watch(NODE, "pods")?.is_some_and(|watch| watch.stale.is_some()))
        })?;
        expect(world, ONLY_A)?;
        world.world.agent(NODE)?.kill()?;
        world.world.agent(NODE)?.spawn()?;
        let report = loop {
            // Its socket comes first.
            if let Ok(report) = wait_report(world.world.agent(NODE)?, Duration::from_secs(3)) {
                break report;
            }
        };
        ensure!(
            !report.enforced,
            "an agent that has read nothing says it enforces everything"
        );
        expect(world, ONLY_A)?;

        // Back.
        world.cluster.start(Component::Etcd)?;
        world.cluster.start(Component::ApiServer)?;
        enforced(world, ONLY_A)?;
        world.apply(&only_from("b"))?;
        enforced(world, ONLY_B)?;

        misses(world, &only_from("a"), ONLY_B)?;
        enforced(world, ONLY_A)?;

        // And the watch goes on from there.
        restart(&world.cluster, Component::ApiServer)?;
        world.apply(&only_from("b"))?;
        enforced(world, ONLY_B)?;
        world.cluster.api().delete(SERVER_POLICY)?;
        enforced(world, BOTH)
    })
}

/// The agent's ClusterRole without the right to read what is in an API group.
fn cluster_role_without(group: &str) -> Result<Value> {
    let mut role = cluster_role()?;
    let rules = role["rules"].as_array_mut().context("a role has rules")?;
    let before = rules.len();
    rules.retain(|rule| rule["apiGroups"] != json!([group]));
    ensure!(rules.len() + 1 == before, "the role has a rule for {group} alone");
    Ok(role)
}

/// The agent's ClusterRole.
fn cluster_role() -> Result<Value> {
    rights()?
        .into_iter()
        .find(|object| object["kind"] == "ClusterRole" && object["metadata"]["name"] == "weir")
        .context("the chart has a ClusterRole")
}

#[test]
fn a_permission_that_is_missing_is_told_and_takes_nothing_away() -> Result<()> {
    ApiWorld::new(&plan())?.check(|world| {
        world.apply(&only_from("a"))?;
        enforced(world, ONLY_A)?;

        world.put(&cluster_role_without("networking.k8s.io")?)?;
        let agent = world.world.agent(NODE)?;
        agent.terminate()?;
        agent.spawn()?;
        world.until("the agent says what it may not read", |world| {
            let Ok(status) = world.world.status(NODE) else {
                return Ok(false);
            };
            let told = status.problems.iter().any(|problem| problem.message.contains(POLICIES));
            Ok(told && !status.ready && status.reason.is_some_and(|reason| reason.contains(POLICIES)))
        })?;
        // The policy of the agent before it is in force still, and what may be read is followed.
        expect(world, ONLY_A)?;
        world.world.relabel("x/b", &[("pod", "a")])?;
        world.push("pod-x-b")?;
        world.until("a pod's new labels are enforced", |world| {
            let status = world.world.status(NODE)?;
            Ok(status.endpoints.iter().all(|endpoint| endpoint.reason.is_none()) && status.endpoints.len() == 3)
        })?;
        expect(world, BOTH)?;

        world.put(&cluster_role()?)?;
        world.until("the agent is ready again", |world| Ok(world.world.status(NODE)?.ready))?;
        enforced(world, BOTH)?;
        world.world.relabel("x/b", &[("pod", "b")])?;
        world.push("pod-x-b")?;
        enforced(world, ONLY_A)
    })
}

/// The CRDs that come with the chart, in a group of Calico's.
fn crds(group: &str, version: &str) -> Result<Vec<Value>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(CRDS).with_context(|| format!("read {CRDS}"))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let mut object: Value = serde_saphyr::from_str(&text).with_context(|| format!("parse {}", path.display()))?;
        if object["kind"] != "CustomResourceDefinition" {
            continue;
        }
        let plural = object["spec"]["names"]["plural"]
            .as_str()
            .context("a plural")?
            .to_owned();
        object["metadata"]["name"] = json!(format!("{plural}.{group}"));
        object["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, for a test"});
        object["spec"]["group"] = json!(group);
        object["spec"]["versions"][0]["name"] = json!(version);
        out.push(object);
    }
    ensure!(out.len() == 8, "{} CRDs in {CRDS}", out.len());
    Ok(out)
}

fn calico(api_version: &str, allowed: &str) -> Value {
    json!({
        "apiVersion": api_version, "kind": "NetworkPolicy", "metadata": {"name": "default.server", "namespace": "x"},
        "spec": {
            "selector": "pod == 'server'", "types": ["Ingress"],
            "ingress": [{"action": "Allow", "source": {"selector": format!("pod == '{allowed}'")}}],
        },
    })
}

fn told(world: &ApiWorld, part: &str) -> Result<bool> {
    let problems = world.world.status(NODE)?.problems;
    Ok(problems.iter().any(|problem| problem.message.contains(part)))
}

#[test]
fn kinds_that_come_and_go_are_followed_and_only_one_group_counts() -> Result<()> {
    ApiWorld::new(&plan())?.check(|world| {
        expect(world, BOTH)?;
        let (stored, served) = ("crd.projectcalico.org", "projectcalico.org");
        let watched = |world: &ApiWorld, group: &str| -> Result<bool> {
            let watch = world.watch(NODE, &format!("networkpolicies.{group}"))?;
            Ok(watch.is_some_and(|watch| watch.synced))
        };
        for crd in crds(stored, "v1")? {
            world.put(&crd)?;
        }
        world.put(&calico("crd.projectcalico.org/v1", "a"))?;
        world.until("the kinds of one group are watched", |world| watched(world, stored))?;
        enforced(world, ONLY_A)?;

        // The other group, in which newer installations of Calico keep them: the definitions alone change nothing,
        for crd in crds(served, "v3")? {
            world.put(&crd)?;
        }
        world.until("the other group is said to have no policy yet", |world| {
            told(world, "no policy yet")
        })?;
        enforced(world, ONLY_A)?;
        ensure!(watched(world, stored)? && !watched(world, served)?);
        // but a policy does. What is left behind does not count, and that is no secret.
        world.put(&calico("projectcalico.org/v3", "b"))?;
        world.until("the kinds of the other group are watched", |world| {
            Ok(watched(world, served)? && !watched(world, stored)?)
        })?;
        let deadline = Instant::now() + CATCHES_UP;
        while let Err(error) = expect(world, ONLY_B) {
            ensure!(Instant::now() < deadline, "{error:#}");
        }
        world.until("it is told what is not enforced", |world| {
            told(world, "are not enforced")
        })?;

        for crd in crds(served, "v3")? {
            world.cluster.api().delete(&api::path(&crd)?)?;
        }
        world.until("the first group is watched again", |world| watched(world, stored))?;
        enforced(world, ONLY_A)?;
        for crd in crds(stored, "v1")? {
            world.cluster.api().delete(&api::path(&crd)?)?;
        }
        world.until("no group is watched", |world| {
            Ok(!watched(world, stored)? && !watched(world, served)?)
        })?;
        enforced(world, BOTH)
    })
}
