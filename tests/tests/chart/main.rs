//! The chart, rendered with its defaults and with every value changed, and taken by a real API server.

mod applied;
mod changes;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fs,
};

use anyhow::{Context, Result, ensure};
use clap::Parser as _;
use serde_json::{Value, json};
use weir::cli::{Cli, Verb};
use weir_tests::chart::{Chart, root};

use self::changes::{Change, changes};

/// The one object of a kind, and of a name if there are several of the kind.
fn object<'a>(objects: &'a [Value], kind: &str, name: &str) -> Result<&'a Value> {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .with_context(|| format!("no {kind} {name} is rendered"))
}

fn container(objects: &[Value]) -> Result<&Value> {
    Ok(&object(objects, "DaemonSet", "weir")?["spec"]["template"]["spec"]["containers"][0])
}

/// What the DaemonSet runs, read by the agent's own parser. `$(NAME)` is what the kubelet replaces.
fn agent(objects: &[Value]) -> Result<weir::cli::agent::Agent> {
    let arguments = container(objects)?["args"].as_array().context("arguments")?;
    let texts = arguments.iter().filter_map(Value::as_str);
    let cli = Cli::try_parse_from(["weir"].into_iter().chain(texts))?;
    match cli.verb {
        Verb::Agent(agent) => Ok(agent),
        other => anyhow::bail!("the DaemonSet runs {other:?}"),
    }
}

#[test]
fn the_defaults_are_an_agent_with_no_more_rights_than_it_needs() -> Result<()> {
    let objects = Chart::new()?.render(&Value::Null)?;
    let kinds: BTreeSet<String> = objects
        .iter()
        .map(|object| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]))
        })
        .collect();
    let expected = [
        "ClusterRole weir",
        "ClusterRole weir-policies-edit",
        "ClusterRole weir-policies-view",
        "ClusterRoleBinding weir",
        "DaemonSet weir",
        "Job weir-uninstall",
        "Role weir",
        "Role weir-uninstall",
        "RoleBinding weir",
        "RoleBinding weir-uninstall",
        "ServiceAccount weir",
        "ServiceAccount weir-uninstall",
        "ValidatingAdmissionPolicy weir-tiers",
        "ValidatingAdmissionPolicyBinding weir-tiers",
    ];
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), expected);

    let set = object(&objects, "DaemonSet", "weir")?;
    let pod = &set["spec"]["template"];
    assert_eq!(set["metadata"]["labels"]["app.kubernetes.io/name"], "weir");
    assert_eq!(pod["metadata"]["labels"]["app.kubernetes.io/name"], "weir");
    assert_eq!(pod["spec"]["hostNetwork"], true);
    assert_eq!(pod["spec"]["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["spec"]["priorityClassName"], "system-node-critical");
    for namespace in ["hostPID", "hostIPC"] {
        assert!(pod["spec"].get(namespace).is_none(), "{namespace} is asked for");
    }
    let container = container(&objects)?;
    assert_eq!(container["name"], "weir");
    let security = &container["securityContext"];
    assert_eq!(
        security["capabilities"],
        json!({"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON"]})
    );
    assert_eq!(security["privileged"], false);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["host"], "127.0.0.1", "{probe}");
        assert_eq!(container[probe]["httpGet"]["port"], 9479, "{probe}");
    }
    let mut paths: Vec<&str> = pod["spec"]["volumes"]
        .as_array()
        .context("volumes")?
        .iter()
        .filter_map(|volume| volume["hostPath"]["path"].as_str())
        .collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/etc/cni/net.d", "/opt/cni/bin", "/run/weir", "/sys/fs/bpf"]);
    Ok(())
}

/// What a node that is dead, or being set up, is tainted with keeps the Job away from it: it would be placed there and never
/// start.
#[test]
fn the_uninstall_job_goes_to_a_node_that_runs_pods() -> Result<()> {
    let objects = Chart::new()?.render(&json!({"tolerations": [{"operator": "Exists"}]}))?;
    let job = &object(&objects, "Job", "weir-uninstall")?["spec"]["template"]["spec"];
    let tolerations = job["tolerations"].as_array().context("tolerations")?;
    let tolerates = |taint: &str| {
        tolerations
            .iter()
            .any(|toleration| toleration.get("key").is_none_or(|key| key == taint))
    };
    for taint in ["node-role.kubernetes.io/control-plane", "CriticalAddonsOnly"] {
        assert!(tolerates(taint), "it does not tolerate {taint}");
    }
    for taint in ["not-ready", "unreachable", "network-unavailable"] {
        let taint = format!("node.kubernetes.io/{taint}");
        assert!(!tolerates(&taint), "it tolerates {taint}");
    }
    Ok(())
}

/// Every volume is mounted, every mount is a volume.
#[test]
fn volumes_and_mounts_agree() -> Result<()> {
    let chart = Chart::new()?;
    for values in [
        json!({}),
        json!({"cni": {"install": false}, "flowLog": {"enabled": true}}),
    ] {
        let objects = chart.render(&values)?;
        let pod = &object(&objects, "DaemonSet", "weir")?["spec"]["template"]["spec"];
        let names = |list: &Value| -> BTreeSet<String> {
            let names = list
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|entry| entry["name"].as_str());
            names.map(str::to_owned).collect()
        };
        assert_eq!(
            names(&pod["volumes"]),
            names(&pod["containers"][0]["volumeMounts"]),
            "{values}"
        );
    }
    Ok(())
}

fn rules(objects: &[Value], kind: &str, name: &str) -> Result<Vec<Value>> {
    let rules = &object(objects, kind, name)?["rules"];
    Ok(rules.as_array().context("rules")?.clone())
}

fn words(rule: &Value, key: &str) -> BTreeSet<String> {
    let words = rule[key].as_array().into_iter().flatten().filter_map(Value::as_str);
    words.map(str::to_owned).collect()
}

/// The rules of the agent's ClusterRole with a verb, as the resources and names that each is about.
fn may(objects: &[Value], verb: &str) -> Result<Vec<(BTreeSet<String>, BTreeSet<String>)>> {
    let mut rules = rules(objects, "ClusterRole", "weir")?;
    rules.retain(|rule| words(rule, "verbs").contains(verb));
    Ok(rules
        .iter()
        .map(|rule| (words(rule, "resources"), words(rule, "resourceNames")))
        .collect())
}

/// The agent lists and watches, and writes Events; the roles that are added to view, edit and admin are about what is in a
/// namespace.
#[test]
fn the_rights_are_the_least() -> Result<()> {
    let chart = Chart::new()?;
    let set = |words: &[&str]| -> BTreeSet<String> { words.iter().map(|&word| word.to_owned()).collect() };
    let objects = chart.render(&Value::Null)?;
    for rule in rules(&objects, "ClusterRole", "weir")? {
        let (resources, verbs) = (words(&rule, "resources"), words(&rule, "verbs"));
        ensure!(
            verbs == set(&["list", "watch"]) || verbs == set(&["get"]) || resources == set(&["events"]),
            "{verbs:?} of {resources:?}"
        );
        for forbidden in ["*", "secrets", "configmaps"] {
            assert!(!resources.contains(forbidden), "the agent may read {forbidden}");
        }
    }
    let (pods, own) = (
        (set(&["pods"]), set(&[])),
        (set(&["namespaces"]), set(&["kube-system"])),
    );
    assert_eq!(may(&objects, "get")?, [pods.clone(), own.clone()]);
    assert_eq!(may(&objects, "create")?, [(set(&["events"]), set(&[]))]);
    assert_eq!(may(&objects, "patch")?, []);

    let own_set = rules(&objects, "Role", "weir")?;
    assert_eq!(own_set.len(), 1);
    assert_eq!(own_set[0]["resourceNames"], json!(["weir"]));
    assert_eq!(words(&own_set[0], "verbs"), set(&["get", "list", "watch"]));
    for name in ["weir-policies-view", "weir-policies-edit"] {
        for rule in rules(&objects, "ClusterRole", name)? {
            let global = words(&rule, "resources")
                .into_iter()
                .find(|resource| resource.contains("global") || resource == "tiers");
            assert_eq!(global, None, "{name} gives rights on what is in no namespace");
        }
    }

    let with_condition = chart.render(&json!({"nodeCondition": true}))?;
    assert_eq!(may(&with_condition, "get")?, [pods, own, (set(&["nodes"]), set(&[]))]);
    assert_eq!(may(&with_condition, "patch")?, [(set(&["nodes/status"]), set(&[]))]);
    Ok(())
}

/// The values that can be set, as paths: what holds no further values.
fn leaves(value: &Value, path: &str, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() && path != "affinity.nodeAffinity" => {
            for (key, value) in fields {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                leaves(value, &path, out);
            }
        }
        _ => {
            out.insert(path.to_owned());
        }
    }
}

#[test]
fn every_value_has_its_effect() -> Result<()> {
    let chart = Chart::new()?;
    let values = fs::read_to_string(root().join("deploy/helm/weir/values.yaml"))?;
    let values: Value = serde_saphyr::from_str(&values)?;
    let mut there = BTreeSet::new();
    leaves(&values, "", &mut there);
    let changes = changes();
    let changed: BTreeSet<String> = changes.iter().map(|change| change.path.to_owned()).collect();
    assert_eq!(there, changed, "a value has no case here, or a case no value");

    let mut baselines = BTreeMap::new();
    for change in changes {
        let with = chart
            .render(&change.values())
            .with_context(|| format!("{}: {}", change.path, change.to))?;
        let without = match baselines.entry(change.given.to_string()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(chart.render(&change.given)?),
        };
        let Change { path, to, shows, .. } = change;
        ensure!(with != *without, "{path}: {to} changes nothing");
        if let Some(text) = shows {
            let rendered = serde_json::to_string(&with)?;
            let rendered = rendered.replace("\\\"", "\"");
            ensure!(rendered.contains(text), "{path}: {to}: {text} is not rendered");
        }
        // The agent understands what it is told then.
        if path != "fullnameOverride" {
            agent(&with).with_context(|| format!("{path}: {to}"))?;
        }
    }
    Ok(())
}

#[test]
fn the_agent_understands_what_it_is_told() -> Result<()> {
    let chart = Chart::new()?;
    let objects = chart.render(&json!({
        "audit": true,
        "nodeCondition": true,
        "flowLog": {"enabled": true, "maxFiles": 2},
        "serviceMonitor": {"enabled": true},
    }))?;
    let agent = agent(&objects)?;
    assert!(agent.audit);
    assert_eq!(agent.health_addr, Some(([0, 0, 0, 0], 9479).into()));
    assert_eq!(agent.flow_log.as_deref(), Some("/var/log/weir/flows.json".as_ref()));
    assert_eq!(agent.flow_log_max_files, 2);

    let hook = &object(&objects, "Job", "weir-uninstall")?["spec"]["template"]["spec"]["containers"][0];
    let arguments = hook["args"]
        .as_array()
        .context("arguments")?
        .iter()
        .filter_map(Value::as_str);
    let cli = Cli::try_parse_from(["weir"].into_iter().chain(arguments))?;
    assert!(matches!(cli.verb, Verb::Uninstall(_)), "the hook runs {:?}", cli.verb);
    Ok(())
}

#[test]
fn what_makes_no_sense_is_refused() -> Result<()> {
    let chart = Chart::new()?;
    for values in [
        json!({"flowlog": {"enabled": true}}),
        json!({"cni": {"instal": false}}),
        json!({"audit": "yes"}),
        json!({"attach": "xdp"}),
        json!({"k8sServiceHost": "https://api.example"}),
        json!({"health": {"port": 70000}}),
        json!({"flowLog": {"path": "flows.json"}}),
        json!({"securityContext": {"extraCapabilities": ["CAP_SYS_ADMIN"]}}),
        json!({"cni": {"wait": "10"}}),
        json!({"cni": {"wait": "601s"}}),
        json!({"cni": {"wait": "1h"}}),
        json!({"flowLog": {"period": "4s"}}),
        json!({"flowLog": {"period": "4999ms"}}),
        json!({"flowLog": {"period": "0m"}}),
        json!({"flowLog": {"maxSize": "50ki"}}),
        json!({"flowLog": {"maxSize": "50T"}}),
        json!({"flowLog": {"maxSize": "99999999999G"}}),
        json!({"metrics": {"address": "999.1"}}),
        json!({"metrics": {"address": "1.2.3"}}),
        json!({"metrics": {"address": "::"}}),
        // The probes ask 127.0.0.1.
        json!({"metrics": {"address": "10.0.0.5"}}),
        json!({"metrics": {"address": "[::1]"}}),
        json!({"k8sServiceHost": "api.example", "k8sServicePort": "0"}),
        json!({"k8sServiceHost": "api.example", "k8sServicePort": "70000"}),
    ] {
        ensure!(chart.render(&values).is_err(), "{values} was taken");
    }
    Ok(())
}

/// What the schema takes, the agent takes: it would end at once on every node otherwise.
#[test]
fn the_agent_takes_what_the_schema_lets_pass() -> Result<()> {
    let chart = Chart::new()?;
    let mut cases = Vec::new();
    for address in ["0.0.0.0", "[::]", "127.0.0.1"] {
        cases.push(json!({"metrics": {"enabled": true, "address": address}}));
    }
    for wait in ["0s", "010s", "600s", "10m", "600000ms", "0h"] {
        cases.push(json!({"cni": {"wait": wait}}));
    }
    for period in ["5s", "5000ms", "999999s", "1m", "99h"] {
        cases.push(json!({"flowLog": {"enabled": true, "period": period}}));
    }
    for size in [
        "0",
        "999999999999999999B",
        "5k",
        "5 KB",
        "999999999GiB",
        "1Ki",
        "7 M",
        "2G",
        "3Mi",
    ] {
        cases.push(json!({"flowLog": {"enabled": true, "maxSize": size}}));
    }
    for values in cases {
        let rendered = chart.render(&values).with_context(|| format!("{values}"))?;
        agent(&rendered).with_context(|| format!("{values}"))?;
    }
    Ok(())
}

/// Kubernetes has had the field since 1.30, and an annotation before.
#[test]
fn app_armor_is_left_off_on_every_version() -> Result<()> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/weir";
    let chart = Chart::new()?;
    let new = chart.render_for("1.30.0", &Value::Null)?;
    assert_eq!(
        container(&new)?["securityContext"]["appArmorProfile"]["type"],
        "Unconfined"
    );
    let old = chart.render_for("1.29.9", &Value::Null)?;
    assert!(container(&old)?["securityContext"].get("appArmorProfile").is_none());
    let pod = &object(&old, "DaemonSet", "weir")?["spec"]["template"];
    assert_eq!(pod["metadata"]["annotations"][ANNOTATION], "unconfined");
    Ok(())
}

#[test]
fn the_kustomize_base_is_what_the_chart_makes() -> Result<()> {
    let committed = fs::read_to_string(root().join("deploy/kustomize/weir.yaml"))?;
    ensure!(
        committed == Chart::new()?.kustomize()?,
        "deploy/kustomize/weir.yaml is out of date: run `cargo xtask kustomize`"
    );
    let objects: Vec<Value> = serde_saphyr::from_multiple(&committed)?;
    object(&objects, "DaemonSet", "weir")?;
    ensure!(
        objects.iter().all(|object| object["kind"] != "Job"),
        "Helm's hooks are no part of it"
    );
    Ok(())
}
