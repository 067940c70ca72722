//! The chart and its CRDs on a real API server, without nodes.

use std::{
    collections::BTreeMap,
    io::Write as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::{
    chart::{Chart, root},
    cluster::{Cluster, Options},
};

use crate::changes::changes;

const TEAM: &str = "team";
/// Somebody who may edit what is in that namespace.
const EDITOR: &str = "weir-test-editor";

/// Roles are aggregated, and bindings and policies of admission seen, within moments.
const MOMENTS: Duration = Duration::from_secs(30);

/// Gives kubectl a document; what it complains about is the error.
fn kubectl(cluster: &Cluster, arguments: &[&str], document: &str) -> Result<()> {
    let mut kubectl: Command = cluster.kubectl();
    kubectl
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = kubectl.spawn().context("start kubectl")?;
    let mut input = child.stdin.take().context("kubectl has no standard input")?;
    input.write_all(document.as_bytes())?;
    drop(input);
    let output = child.wait_with_output().context("wait for kubectl")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn list(objects: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

fn apply_definitions(cluster: &Cluster) -> Result<()> {
    let directory = root().join("deploy/crds");
    let directory = directory.to_str().context("a path that is no text")?;
    kubectl(cluster, &["apply", "--server-side", "-k", directory], "")?;
    for kind in ["networkpolicies", "tiers"] {
        let name = format!("crd/{kind}.crd.projectcalico.org");
        kubectl(cluster, &["wait", "--for=condition=Established", &name], "")?;
    }
    Ok(())
}

/// Every object of every rendering passes the server's validation. What belongs to Prometheus' operator is not known there.
#[test]
fn an_api_server_takes_the_chart_with_every_value_changed() -> Result<()> {
    let chart = Chart::new()?;
    let cluster = Cluster::up(&Options::default())?;
    let all = changes().into_iter().map(|change| change.values());
    // Most objects are the same with most values.
    let mut objects = BTreeMap::new();
    for values in [json!({})].into_iter().chain(all) {
        for object in chart.render(&values)? {
            if object["kind"] != "ServiceMonitor" {
                objects.insert(object.to_string(), object);
            }
        }
    }
    let objects: Vec<Value> = objects.into_values().collect();
    let create = ["create", "--dry-run=server", "--validate=strict", "--filename", "-"];
    kubectl(&cluster, &create, &list(&objects))?;
    Ok(())
}

fn policy(name: &str, tier: Option<&str>) -> Value {
    let mut policy = json!({
        "apiVersion": "crd.projectcalico.org/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": TEAM},
        "spec": {
            "order": 10,
            "selector": "app == 'web'",
            "types": ["Ingress", "egress"],
            "ingress": [{
                "action": "allow",
                "protocol": "TCP",
                "source": {"selector": "has(client)", "nets": ["10.0.0.0/8"]},
                "destination": {"ports": [80, "8000:8080", "http"]},
            }],
            "egress": [{"action": "Deny", "protocol": 17}],
        },
    });
    if let Some(tier) = tier {
        policy["spec"]["tier"] = tier.into();
    }
    policy
}

/// Tries until it is so: what was changed is not seen everywhere at once.
fn eventually(what: &str, mut attempt: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + MOMENTS;
    loop {
        match attempt() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.context(what.to_owned())),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

fn refused(attempt: Result<()>, with: &str) -> Result<()> {
    let error = match attempt {
        Ok(()) => anyhow::bail!("it was taken"),
        Err(error) => format!("{error:#}"),
    };
    ensure!(error.contains(with), "refused for another reason: {error}");
    Ok(())
}

#[test]
fn teams_write_their_policies_and_no_others() -> Result<()> {
    let chart = Chart::new()?;
    let cluster = Cluster::up(&Options::default())?;
    apply_definitions(&cluster)?;
    let apply = ["apply", "--server-side", "--filename", "-"];
    let own = "app.kubernetes.io/managed-by";
    let objects: Vec<Value> = chart
        .render(&Value::Null)?
        .into_iter()
        .filter(|object| {
            object["metadata"]["labels"].get(own).is_some() && object["metadata"].get("annotations").is_none()
        })
        .collect();
    kubectl(&cluster, &apply, &list(&objects))?;
    let group = "rbac.authorization.k8s.io";
    let given = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TEAM}}),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "editor", "namespace": TEAM},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "edit"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": EDITOR}],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "uses-allowed"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "uses-allowed"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": EDITOR}],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "uses-allowed"},
            "rules": [{
                "apiGroups": ["crd.projectcalico.org"],
                "resources": ["tiers"],
                "resourceNames": ["allowed"],
                "verbs": ["use"],
            }],
        }),
    ];
    kubectl(&cluster, &apply, &list(&given))?;
    let as_editor = ["--as", EDITOR, "apply", "--server-side", "--filename", "-"];
    let write = |policy: Value| kubectl(&cluster, &as_editor, &policy.to_string());
    let tiers = "right to use a tier";

    eventually("a policy of the default tier", || write(policy("own", None)))?;
    eventually("a policy of a tier that may be used", || {
        write(policy("used", Some("allowed")))
    })?;
    eventually("a policy of another tier", || {
        refused(write(policy("other", Some("security"))), tiers)
    })?;
    refused(write(policy("own", Some("security"))), tiers).context("moving a policy to another tier")?;
    kubectl(&cluster, &apply, &policy("admins", Some("security")).to_string()).context("written by an admin")?;
    refused(write(policy("admins", None)), tiers).context("taking a policy out of another tier")?;
    let delete = ["--as", EDITOR, "delete", "--filename", "-"];
    let delete = |policy: Value| kubectl(&cluster, &delete, &policy.to_string());
    refused(delete(policy("admins", Some("security"))), tiers).context("deleting it")?;
    delete(policy("own", None)).context("deleting one's own")?;

    let named = "a name that is not its own";
    let known_as = |name: &str, kept: &str| {
        let mut policy = policy(name, None);
        policy["metadata"]["annotations"] = json!({"projectcalico.org/metadata": kept});
        write(policy)
    };
    for (name, kept) in [
        ("web", r#"{"name":"web","uid":"1"}"#),
        ("default.web", r#"{"name":"web","uid":"1"}"#),
        ("web", r#"{"uid":"1"}"#),
    ] {
        known_as(name, kept).with_context(|| format!("{name} with {kept}"))?;
    }
    for kept in [
        r#"{"name":"security.deny"}"#,
        r#"{"name": "security.deny"}"#,
        r#"{"n\u0061me":"security.deny"}"#,
        r#"{"name":"web","name":"security.deny"}"#,
        r#"{"labels":{"name":"web"},"name":"security.deny"}"#,
    ] {
        refused(known_as("web", kept), named).with_context(|| format!("the name of another: {kept}"))?;
    }

    let mut global = policy("global", None);
    global["kind"] = "GlobalNetworkPolicy".into();
    global["metadata"] = json!({"name": "global"});
    refused(write(global), "forbidden").context("a policy of the whole cluster")?;
    let mut elsewhere = policy("elsewhere", None);
    elsewhere["metadata"]["namespace"] = "default".into();
    refused(write(elsewhere), "forbidden").context("a policy of another namespace")?;

    // What the API server can tell by the definitions, it tells at once.
    let mut wrong = policy("wrong", None);
    wrong["spec"]["ingress"][0]["action"] = "Permit".into();
    refused(write(wrong), "spec.ingress[0].action")?;
    let mut unknown = policy("unknown", None);
    unknown["spec"]["ingress"][0]["protokol"] = "TCP".into();
    refused(write(unknown), "protokol")?;

    // The namespace's controller may delete them, whatever their tier.
    let namespace = format!("ns/{TEAM}");
    kubectl(&cluster, &["delete", &namespace, "--timeout=60s"], "").context("deleting the namespace")
}
