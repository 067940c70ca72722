//! Agents whose DaemonSet goes: they take everything away, and do not end before they have.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weir::api::Severity;
use weir_tests::{
    api_world::{ApiWorld, PATIENCE, rights},
    lab::cni::PLUGIN,
    scrape::{self, Scrape},
    world::{Plan, only_from},
};

use super::{BOTH, NODE, ONLY_A, cluster_role_without, enforced, expect, plan, signal};

const SET: &str = "/apis/apps/v1/namespaces/kube-system/daemonsets/weir";
const ROLE: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/weir";

/// What the agent may ask for where its DaemonSet is: as the chart has it for a release in `namespace`.
fn rights_in(namespace: &str) -> Result<Vec<Value>> {
    let mut objects = rights()?;
    objects.retain(|object| object["metadata"]["name"] == "weir" && object["kind"] != "ServiceAccount");
    for object in &mut objects {
        if matches!(object["kind"].as_str(), Some("Role" | "RoleBinding")) {
            object["metadata"]["namespace"] = namespace.into();
        }
        let rules = object.get_mut("rules").and_then(Value::as_array_mut);
        for rule in rules
            .into_iter()
            .flatten()
            .filter(|rule| rule["resources"] == json!(["namespaces"]))
        {
            rule["resourceNames"] = json!([namespace]);
        }
    }
    Ok(objects)
}

fn daemon_set(namespace: &str) -> Value {
    let labels = json!({"app.kubernetes.io/name": "weir"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "weir", "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    // The agent of the lab is there already.
                    "nodeSelector": {"no": "node"},
                    "containers": [{"name": "weir", "image": "localhost/weir:test"}],
                },
            },
        },
    })
}

/// An agent with these arguments that enforces a policy and has seen its DaemonSet in `namespace`.
fn installed(namespace: &str, arguments: &[String]) -> Result<ApiWorld> {
    let mut plan: Plan = plan();
    plan.options.arguments = [&[format!("--daemonset={namespace}/weir")], arguments].concat();
    let mut world = ApiWorld::without_agents(&plan)?;
    world.put(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}))?;
    for object in rights_in(namespace)? {
        world.put(&object)?;
    }
    world.put(&daemon_set(namespace))?;
    world.apply(&only_from("a"))?;
    world.world.start_agents()?;
    expect(&mut world, ONLY_A)?;
    let seen = world.world.agent(NODE)?.run_dir().join("daemonset");
    world.until("the agent has seen its DaemonSet", |_| {
        Ok(fs::read_to_string(&seen).is_ok_and(|text| text == format!("{namespace}/weir")))
    })?;
    Ok(world)
}

/// What `deploy/kustomize` consists of.
const KUSTOMIZE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize");

/// Nothing of the agent is left, and nobody enforces.
fn is_gone(world: &mut ApiWorld) -> Result<()> {
    let agent = world.world.agent(NODE)?;
    for path in [agent.bpffs().to_owned(), agent.run_dir().to_owned()] {
        ensure!(!path.exists(), "{} is left", path.display());
    }
    expect(world, BOTH)
}

#[test]
fn an_agent_that_cannot_take_everything_away_does_not_end_before_it_can() -> Result<()> {
    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "lab", "plugins": [{"type": "ptp"}]}"#;
    let node = tempfile::tempdir()?;
    let [conf, bin] = ["net.d", "bin"].map(|name| node.path().join(name));
    fs::create_dir(&conf)?;
    fs::create_dir(&bin)?;
    let list = conf.join("10-lab.conflist");
    fs::write(&list, LIST)?;
    let argument = |name: &str, path: &Path| format!("--{name}={}", path.display());
    let arguments = [argument("cni-conf-dir", &conf), argument("cni-bin-dir", &bin)];
    installed("kube-system", &arguments)?.check(|world| {
        ensure!(fs::read_to_string(&list)?.contains(PLUGIN), "not chained");
        // As Multus copies what comes first.
        let copy = conf.join("99-copy.conf");
        let text = json!({
            "cniVersion": "1.0.0", "name": "copy", "type": "multus",
            "delegates": [{"name": "lab", "plugins": [{"type": "ptp"}, {"type": PLUGIN}]}],
        });
        fs::write(&copy, text.to_string())?;
        world.cluster.api().delete(SET)?;
        world.cluster.api().wait(SET, PATIENCE, |set| set.is_none())?;
        let pid = world.world.agent(NODE)?.pid().context("it does not run")?;
        signal(pid, Signal::SIGTERM)?;
        world.until("its entry is gone", |_| Ok(fs::read_to_string(&list)? == LIST))?;
        let pins = world.world.agent(NODE)?.bpffs().to_owned();
        world.until("its pins are gone", |_| Ok(!pins.exists()))?;
        // Several attempts later: a process that has ended has no program any more.
        thread::sleep(Duration::from_secs(2));
        ensure!(
            fs::read_link(format!("/proc/{pid}/exe")).is_ok(),
            "it has ended although the plugin is there"
        );
        ensure!(
            bin.join(PLUGIN).exists(),
            "a configuration names what is no longer there"
        );
        fs::remove_file(&copy)?;
        let status = world.world.agent(NODE)?.await_end()?;
        ensure!(status.success(), "{status}");
        ensure!(!bin.join(PLUGIN).exists(), "the plugin is left");
        is_gone(world)
    })
}

#[test]
fn a_namespace_that_goes_takes_its_agents_along() -> Result<()> {
    const NAMESPACE: &str = "/api/v1/namespaces/weir-own";
    let going =
        |object: Option<&Value>| object.is_some_and(|object| !object["metadata"]["deletionTimestamp"].is_null());
    installed("weir-own", &[])?.check(|world| {
        // Pods go first, and the rest when there are none any more: this one stays.
        world.put(&json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "stays", "namespace": "weir-own", "finalizers": ["weir.test/stays"]},
            "spec": {"nodeSelector": {"no": "node"}, "containers": [{"name": "main", "image": "none"}]},
        }))?;
        let api = world.cluster.api();
        api.delete(NAMESPACE)?;
        api.wait(&format!("{NAMESPACE}/pods/stays"), PATIENCE, going)?;
        let set = api.get("/apis/apps/v1/namespaces/weir-own/daemonsets/weir")?;
        ensure!(
            set.is_some() && !going(set.as_ref()),
            "the DaemonSet itself tells that it goes, so this proves nothing: {set:?}"
        );
        let status = world.world.agent(NODE)?.terminate()?;
        ensure!(status.success(), "{status}");
        is_gone(world)
    })
}

/// Watches that no policy depends on.
const BESIDE: [(&str, &str); 2] = [
    ("daemonsets.apps", "DaemonSet"),
    (
        "customresourcedefinitions.apiextensions.k8s.io",
        "CustomResourceDefinition",
    ),
];

/// There is a warning, and no error, that says so.
fn warned(world: &ApiWorld, part: &str) -> Result<bool> {
    // An agent that has just been started does not answer yet.
    let Ok(status) = world.world.status(NODE) else {
        return Ok(false);
    };
    let mut problems = status.problems.iter().filter(|problem| problem.message.contains(part));
    let found = problems.next();
    if let Some(problem) = found {
        ensure!(problem.severity == Severity::Warning, "{problem}");
        ensure!(problem.remedy.contains("leave this node as it is"), "{problem}");
    }
    Ok(found.is_some())
}

/// What the metrics say of a watch: whether it was told whole, and how often it failed.
fn measured(world: &ApiWorld, kind: &str) -> Result<(u64, u64)> {
    let scrape = Scrape::fetch(&world.world.lab, NODE)?;
    Ok((
        scrape.count("weir_watch_synced", &[("kind", kind)])?,
        scrape.count("weir_watch_failures_total", &[("kind", kind)])?,
    ))
}

/// The API server lets the agent watch its DaemonSet. What it knows of roles it learns a moment after they are written.
fn may_watch(world: &ApiWorld) -> Result<bool> {
    let review = world.cluster.api().post(
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        &json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": "system:serviceaccount:kube-system:weir",
                "resourceAttributes": {
                    "verb": "watch", "group": "apps", "resource": "daemonsets", "namespace": "kube-system", "name": "weir",
                },
            },
        }),
    )?;
    Ok(review["status"]["allowed"] == true)
}

#[test]
fn that_a_removal_would_not_be_known_is_told_and_nothing_else_depends_on_it() -> Result<()> {
    let mut plan: Plan = plan();
    plan.options.arguments = [vec!["--daemonset=kube-system/weir".to_owned()], scrape::arguments()].concat();
    ApiWorld::new(&plan)?.check(|world| {
        world.apply(&only_from("a"))?;
        world.until("the agent says that there is no such DaemonSet", |world| {
            warned(world, "there is no DaemonSet kube-system/weir")
        })?;
        enforced(world, ONLY_A)?;
        ensure!(world.world.status(NODE)?.ready, "it is not ready");

        world.put(&daemon_set("kube-system"))?;
        world.until("the agent sees its DaemonSet", |world| {
            let watch = world.watch(NODE, "daemonsets.apps")?.context("not watched")?;
            Ok(watch.synced && watch.objects == 1 && !warned(world, "DaemonSet")?)
        })?;
        for (_, kind) in BESIDE {
            let (synced, _) = measured(world, kind)?;
            ensure!(synced == 1, "metrics do not say that {kind} has been read");
        }

        // Neither that nor CRDs may be watched by the next agent.
        world.put(&cluster_role_without("apiextensions.k8s.io")?)?;
        world.cluster.api().delete(ROLE)?;
        world.until("the right is gone", |world| Ok(!may_watch(world)?))?;
        let agent = world.world.agent(NODE)?;
        agent.terminate()?;
        agent.spawn()?;
        world.until("the agent says that it cannot watch", |world| {
            warned(world, "cannot watch the agent's own DaemonSet kube-system/weir")
        })?;
        world.until("the agent is ready", |world| Ok(world.world.status(NODE)?.ready))?;
        enforced(world, ONLY_A)?;
        for (name, kind) in BESIDE {
            let watch = world
                .watch(NODE, name)?
                .with_context(|| format!("{name} is not watched"))?;
            ensure!(watch.stale.is_some() && !watch.synced, "{watch:?}");
            let (synced, failures) = measured(world, kind)?;
            ensure!(synced == 0 && failures > 0, "{kind}: {synced}, {failures}");
        }

        // So this is a restart, for all that it knows.
        world.cluster.api().delete(SET)?;
        world.cluster.api().wait(SET, PATIENCE, |set| set.is_none())?;
        let agent = world.world.agent(NODE)?;
        let status = agent.terminate()?;
        ensure!(status.success() && agent.bpffs().exists(), "{status}");
        expect(world, ONLY_A)?;

        // With its rights back it is a removal.
        world.world.agent(NODE)?.spawn()?;
        for object in rights_in("kube-system")? {
            world.put(&object)?;
        }
        world.until("nothing is stale", |world| {
            let Ok(status) = world.world.status(NODE) else {
                return Ok(false);
            };
            let read = |(name, _): &(&str, &str)| {
                let mut watches = status.watches.iter();
                watches.any(|watch| watch.kind == *name && watch.synced && watch.stale.is_none())
            };
            Ok(BESIDE.iter().all(read) && !warned(world, "DaemonSet")?)
        })?;
        let status = world.world.agent(NODE)?.terminate()?;
        ensure!(status.success(), "{status}");
        is_gone(world)
    })
}

#[test]
fn an_agent_whose_rights_go_together_with_its_daemonset_takes_everything_away() -> Result<()> {
    installed("kube-system", &[])?.check(|world| {
        // Account, roles and bindings come first in the file, and so go first.
        let mut kubectl = world.cluster.kubectl();
        let output = kubectl
            .args(["delete", "--ignore-not-found", "-k", KUSTOMIZE])
            .output()
            .context("start kubectl")?;
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "kubectl delete: {told}");
        let api = world.cluster.api();
        for gone in [
            "/api/v1/namespaces/kube-system/serviceaccounts/weir",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/weir",
            "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings/weir",
            "/apis/apps/v1/namespaces/kube-system/daemonsets/weir",
        ] {
            ensure!(api.get(gone)?.is_none(), "kubectl has left {gone}");
        }
        // What the kubelet's signal comes after in a cluster: a controller has to see it as well, and delete the pod.
        world.until("the agent was told that its DaemonSet is gone", |world| {
            let log = world.world.agents.get(NODE).context("no agent")?.log_tail(200);
            Ok(log.contains("the agent's DaemonSet is removed"))
        })?;
        let agent = world.world.agent(NODE)?;
        let status = agent.terminate()?;
        ensure!(status.success(), "{status}");
        let log = agent.log_tail(200);
        ensure!(
            log.contains("asked=None"),
            "the agent still had the right to ask, so this proves nothing:\n{log}"
        );
        is_gone(world)
    })
}
