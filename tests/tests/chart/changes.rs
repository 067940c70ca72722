//! Every value of the chart, with another one.

use serde_json::{Value, json};

/// One changed value.
pub struct Change {
    pub path: &'static str,
    pub to: Value,
    /// Values without which it has no effect.
    pub given: Value,
    /// A text that is then rendered, if there is a certain one.
    pub shows: Option<&'static str>,
}

fn change(path: &'static str, to: Value, shows: &'static str) -> Change {
    Change {
        path,
        to,
        given: json!({}),
        shows: Some(shows),
    }
}

/// One for every value of the chart.
pub fn changes() -> Vec<Change> {
    let flow = json!({"flowLog": {"enabled": true}});
    let monitor = json!({"serviceMonitor": {"enabled": true}});
    let given = |change: Change, given: &Value| Change {
        given: given.clone(),
        ..change
    };
    vec![
        change(
            "image.repository",
            json!("registry.example/weir"),
            "registry.example/weir:",
        ),
        change("image.tag", json!("9.9"), "localhost/weir:9.9"),
        change(
            "image.digest",
            json!("sha256:0123456789012345678901234567890123456789012345678901234567890123"),
            "localhost/weir@sha256:0123",
        ),
        change("image.pullPolicy", json!("Always"), "Always"),
        change("imagePullSecrets", json!([{"name": "key"}]), "imagePullSecrets"),
        change("cni.install", json!(false), "--cni-install=false"),
        change("cni.confDir", json!("/var/lib/cni/conf"), "/var/lib/cni/conf"),
        change("cni.binDir", json!("/var/lib/cni/bin"), "/var/lib/cni/bin"),
        change("cni.exemptNamespaces", json!(["a", "b"]), "--cni-exempt-namespaces=a,b"),
        change("cni.wait", json!("3s"), "--cni-wait=3s"),
        change("k8sServiceHost", json!("api.example"), "api.example"),
        given(
            change("k8sServicePort", json!(6443), "\"6443\""),
            &json!({"k8sServiceHost": "api.example"}),
        ),
        change("audit", json!(true), "--audit"),
        change("attach", json!("tc"), "--attach=tc"),
        change("forward", json!("direct"), "--forward=direct"),
        change("flowLog.enabled", json!(true), "--flow-log=/var/log/weir/flows.json"),
        given(change("flowLog.path", json!("/a/b/c.json"), "/a/b"), &flow),
        given(change("flowLog.stdout", json!(true), "--flow-log=-"), &flow),
        given(change("flowLog.period", json!("7s"), "--flow-period=7s"), &flow),
        given(
            change("flowLog.maxSize", json!("1Gi"), "--flow-log-max-size=1Gi"),
            &flow,
        ),
        given(change("flowLog.maxFiles", json!(9), "--flow-log-max-files=9"), &flow),
        change("log.level", json!("debug"), "--log-level=debug"),
        change("log.format", json!("json"), "--log-format=json"),
        change("health.port", json!(1234), "--health-addr=127.0.0.1:1234"),
        change("metrics.enabled", json!(true), "--health-addr=0.0.0.0:9479"),
        given(
            change("metrics.address", json!("[::]"), "--health-addr=[::]:9479"),
            &json!({"metrics": {"enabled": true}}),
        ),
        change("serviceMonitor.enabled", json!(true), "ServiceMonitor"),
        given(change("serviceMonitor.interval", json!("7s"), "7s"), &monitor),
        given(
            change("serviceMonitor.labels", json!({"release": "p"}), "\"release\":\"p\""),
            &monitor,
        ),
        change("nodeCondition", json!(true), "nodes/status"),
        Change {
            shows: None,
            ..change("aggregateRoles", json!(false), "")
        },
        Change {
            shows: None,
            ..change("restrictTiers", json!(false), "")
        },
        change("priorityClassName", json!("high"), "\"priorityClassName\":\"high\""),
        change("resources.requests.cpu", json!("77m"), "77m"),
        change("resources.requests.memory", json!("77Mi"), "77Mi"),
        change("updateStrategy.type", json!("OnDelete"), "OnDelete"),
        change(
            "updateStrategy.rollingUpdate.maxUnavailable",
            json!(3),
            "\"maxUnavailable\":3",
        ),
        change(
            "terminationGracePeriodSeconds",
            json!(77),
            "\"terminationGracePeriodSeconds\":77",
        ),
        Change {
            shows: None,
            ..change("uninstallHook.enabled", json!(false), "")
        },
        change("uninstallHook.timeout", json!("77s"), "--timeout=77s"),
        change(
            "uninstallHook.tolerations",
            json!([{"key": "hook"}]),
            "\"tolerations\":[{\"key\":\"hook\"}]",
        ),
        change("securityContext.extraCapabilities", json!(["SYS_ADMIN"]), "SYS_ADMIN"),
        change("securityContext.seccompProfile", json!("Unconfined"), "Unconfined"),
        Change {
            shows: None,
            ..change("securityContext.appArmorProfile", json!(""), "")
        },
        change("securityContext.seLinuxOptions", json!({"type": "spc_t"}), "spc_t"),
        change("nodeSelector.kubernetes.io/os", json!("plan9"), "plan9"),
        change(
            "affinity.nodeAffinity",
            json!({"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}],
            }}),
            "\"key\":\"pool\"",
        ),
        change("tolerations", json!([{"key": "k"}]), "\"key\":\"k\""),
        change("serviceAccount.annotations", json!({"sa": "note"}), "\"sa\":\"note\""),
        change("podAnnotations", json!({"pod": "note"}), "\"pod\":\"note\""),
        change("podLabels", json!({"pod": "label"}), "\"pod\":\"label\""),
        change("extraArgs", json!(["--bpffs=/b"]), "--bpffs=/b"),
        change("extraEnv", json!([{"name": "E", "value": "v"}]), "\"name\":\"E\""),
        change("fullnameOverride", json!("other"), "\"name\":\"other\""),
    ]
}

/// `{"a": {"b": value}}` of `a.b`. Keys with dots come last in this chart.
fn nested(path: &str, value: &Value) -> Value {
    match path.split_once('.') {
        Some((key, rest)) if key != "kubernetes" => json!({key: nested(rest, value)}),
        _ => json!({path: value}),
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(json!({})), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

impl Change {
    /// The values to give the chart.
    pub fn values(&self) -> Value {
        let mut values = self.given.clone();
        merge(&mut values, &nested(self.path, &self.to));
        values
    }
}
