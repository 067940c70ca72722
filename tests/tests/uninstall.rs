//! `weir uninstall` against a real API server and the controllers, with the test in the kubelets' place.

use std::{
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::{
    binary,
    cluster::{Cluster, Options, api::Api},
};

const NODES: [&str; 2] = ["n1", "n2"];
const SET: &str = "/apis/apps/v1/namespaces/kube-system/daemonsets/weir";
const PODS: &str = "/api/v1/namespaces/kube-system/pods";
const PATIENCE: Duration = Duration::from_secs(60);

fn install(api: &Api) -> Result<()> {
    for name in NODES {
        api.apply(&json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name},
            "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "9"}},
        }))?;
    }
    let labels = json!({"app.kubernetes.io/name": "weir"});
    api.apply(&json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "weir", "namespace": "kube-system", "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "hostNetwork": true,
                    "terminationGracePeriodSeconds": 60,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "weir", "image": "localhost/weir:test"}],
                },
            },
        },
    }))?;
    // The scheduler has found a node for each.
    api.wait(PODS, PATIENCE, |list| agents(list).len() == NODES.len())?;
    Ok(())
}

/// Names of the agents' pods that have a node, with the node.
fn agents(list: Option<&Value>) -> Vec<(String, String)> {
    let items = list.and_then(|list| list["items"].as_array());
    items
        .into_iter()
        .flatten()
        .filter_map(|pod| {
            let name = pod["metadata"]["name"]
                .as_str()
                .filter(|name| name.starts_with("weir-"))?;
            Some((name.to_owned(), pod["spec"]["nodeName"].as_str()?.to_owned()))
        })
        .collect()
}

/// What the kubelet says when the container runs.
fn runs(api: &Api, pod: &str) -> Result<()> {
    is_in_state(
        api,
        pod,
        &json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}, "terminated": null}),
    )
}

/// What it says when the container has ended.
fn ended(api: &Api, pod: &str, code: i32) -> Result<()> {
    is_in_state(api, pod, &json!({"terminated": {"exitCode": code}, "running": null}))
}

fn is_in_state(api: &Api, pod: &str, state: &Value) -> Result<()> {
    let status = json!({"status": {
        "phase": "Running",
        "containerStatuses": [{
            "name": "weir", "image": "localhost/weir:test", "imageID": "", "ready": true, "restartCount": 0,
            "state": state,
        }],
    }});
    api.patch(&format!("{PODS}/{pod}/status"), &status)?;
    Ok(())
}

fn uninstall(kubeconfig: &Path, timeout: &str) -> Result<Child> {
    Command::new(binary::weir()?)
        .args([
            "uninstall",
            "--output",
            "json",
            "--daemonset",
            "kube-system/weir",
            "--timeout",
            timeout,
        ])
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start weir")
}

fn report(output: &Output) -> Result<Value> {
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("no report; stderr: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn uninstall_returns_when_every_agent_has_ended() -> Result<()> {
    let cluster = Cluster::up(&Options::default())?;
    let api = cluster.api();
    let kubeconfig = cluster.kubeconfig();
    install(api)?;
    let pods = agents(api.get(PODS)?.as_ref());
    let (first, _) = pods.iter().find(|(_, node)| node == "n1").context("an agent on n1")?;
    runs(api, first)?;

    let mut child = uninstall(&kubeconfig, "120s")?;
    api.wait(SET, PATIENCE, |set| set.is_none())?;
    let going = |list: Option<&Value>| {
        let items = list.and_then(|list| list["items"].as_array());
        items.is_some_and(|items| {
            items
                .iter()
                .all(|pod| pod["metadata"].get("deletionTimestamp").is_some())
        })
    };
    api.wait(PODS, PATIENCE, going)?;
    api.delete(&format!("{PODS}/{first}"))?;
    // One agent is still at it: several looks later it is waited for.
    thread::sleep(Duration::from_secs(2));
    ensure!(
        child.try_wait()?.is_none(),
        "it returns although an agent has not ended"
    );
    for (pod, _) in &pods {
        api.delete(&format!("{PODS}/{pod}"))?;
    }
    let output = child.wait_with_output()?;
    assert_eq!(
        report(&output)?,
        json!({"deleted": true, "ended": ["n1"], "not_running": ["n2"], "failed": [], "remaining": []})
    );
    // Helm must not go on as if nothing were left there.
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(complaint.contains("no agent was running on n2"), "{complaint}");

    // Again, and there is nothing to do.
    let output = uninstall(&kubeconfig, "60s")?.wait_with_output()?;
    ensure!(output.status.success(), "the second time: {output:?}");
    assert_eq!(report(&output)?["deleted"], false);

    // An agent that could not clean its node is named, although the kubelet deletes its pod at once.
    install(api)?;
    let pods = agents(api.get(PODS)?.as_ref());
    for (pod, _) in &pods {
        runs(api, pod)?;
    }
    let child = uninstall(&kubeconfig, "120s")?;
    api.wait(PODS, PATIENCE, going)?;
    for (pod, node) in &pods {
        ended(api, pod, if node == "n1" { 137 } else { 0 })?;
        api.delete(&format!("{PODS}/{pod}"))?;
    }
    let output = child.wait_with_output()?;
    assert_eq!(
        report(&output)?,
        json!({"deleted": true, "ended": ["n2"], "not_running": [], "failed": ["n1"], "remaining": []})
    );
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        complaint.contains("could not take everything away from n1"),
        "{complaint}"
    );

    // A node that does not answer is named.
    install(api)?;
    for (pod, _) in agents(api.get(PODS)?.as_ref()) {
        runs(api, &pod)?;
    }
    let output = uninstall(&kubeconfig, "4s")?.wait_with_output()?;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(report(&output)?["remaining"], json!(NODES));
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(complaint.contains("the agent has not ended on n1, n2"), "{complaint}");
    Ok(())
}

/// As in the chart's pods: the run directory is mounted into a root that is read only.
#[test]
fn a_run_directory_that_is_a_mount_in_a_read_only_root_is_emptied() -> Result<()> {
    const SCRIPT: &str = r#"
        mount -t tmpfs root "$1"
        mkdir "$1/run"
        mount -t tmpfs run "$1/run"
        touch "$1/run/last-valid.log"
        mount -o remount,ro "$1"
        "$2" detach --bpffs "$1/bpf" --run-dir "$1/run"
        test -z "$(ls -A "$1/run")"
    "#;
    let root = tempfile::tempdir()?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", SCRIPT, "sh"]);
    command.arg(root.path()).arg(binary::weir()?);
    let output = command.output().context("run unshare")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
