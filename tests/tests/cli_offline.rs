//! Verbs that need neither an agent nor a kernel, as a shell sees them: output, errors, exit codes.

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir_tests::binary;

const CLUSTER: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: prod, labels: {team: a}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: prod, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: '2001:db8::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: prod, labels: {app: api}}
spec:
  nodeName: n2
  containers: [{name: c, image: i, ports: [{name: http, containerPort: 8080}]}]
status: {phase: Running, podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}, {ip: '2001:db8::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: prod, labels: {app: other}}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 10.0.0.3, podIPs: [{ip: 10.0.0.3}]}
";

const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: api, namespace: prod}
spec:
  podSelector: {matchLabels: {app: api}}
  policyTypes: [Ingress]
  ingress:
  - from: [{ipBlock: {cidr: 198.51.100.0/24}}]
  - from: [{podSelector: {matchLabels: {app: web}}}]
    ports: [{port: http}]
";

fn weir(arguments: &[&str]) -> Result<Output> {
    Command::new(binary::weir()?)
        .args(arguments)
        .env_remove("WEIR_RUN_DIR")
        .stdin(Stdio::null())
        .output()
        .context("run weir")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Asserts the exit code and gives standard output and standard error.
fn run(arguments: &[&str], code: i32) -> Result<(String, String)> {
    let output = weir(arguments)?;
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    ensure!(
        output.status.code() == Some(code),
        "weir {arguments:?} ended with {}, not {code}:\n{stdout}{stderr}",
        output.status
    );
    Ok((stdout, stderr))
}

fn write(directory: &Path, name: &str, content: &str) -> Result<String> {
    let path = directory.join(name);
    fs::write(&path, content)?;
    Ok(path.display().to_string())
}

/// `weir explain --manifests … -o json`.
fn explain(directory: &Path, arguments: &[&str]) -> Result<Value> {
    let directory = directory.display().to_string();
    let mut all = vec!["explain", "--manifests", &directory, "-o", "json"];
    all.extend(arguments);
    let (stdout, _) = run(&all, 0)?;
    serde_json::from_str(&stdout).context("JSON")
}

#[test]
fn explain_names_the_rule_that_decides() -> Result<()> {
    let directory = tempfile::tempdir()?;
    write(directory.path(), "cluster.yaml", CLUSTER)?;
    write(directory.path(), "policy.yaml", POLICY)?;

    let allowed = explain(directory.path(), &["prod/web", "prod/api", "8080"])?;
    assert_eq!(allowed["verdict"], "FORWARDED");
    assert_eq!(allowed["ingress"]["tier"], "default");
    assert_eq!(allowed["ingress"]["policy"]["name"], "api");
    assert_eq!(allowed["ingress"]["policy"]["namespace"], "prod");
    assert_eq!(allowed["ingress"]["rule"], 1);
    assert_eq!(allowed["egress"]["verdict"], "FORWARDED");
    assert_eq!(allowed["paths"].as_array().map(Vec::len), Some(2), "both families");

    let denied = explain(directory.path(), &["prod/other", "prod/api", "8080/TCP"])?;
    assert_eq!(denied["verdict"], "DROPPED");
    assert_eq!(
        denied["ingress"]["policy"]["name"], "api",
        "the end of the tier is attributed"
    );
    assert_eq!(denied["ingress"].get("rule"), None);

    // By address, and from the world.
    let by_address = explain(directory.path(), &["10.0.0.1", "10.0.0.2", "8080/tcp"])?;
    assert_eq!(by_address["source"]["pod"], "web");
    assert_eq!(by_address["verdict"], "FORWARDED");
    let world = explain(directory.path(), &["198.51.100.7", "prod/api", "53/UDP"])?;
    assert_eq!(
        (&world["verdict"], &world["ingress"]["rule"]),
        (&"FORWARDED".into(), &0.into())
    );
    assert_eq!(world["source"]["kind"], "world");

    // A rule with ports says nothing of ICMP, one without does.
    let echo = explain(directory.path(), &["prod/web", "prod/api", "icmp"])?;
    assert_eq!((&echo["verdict"], &echo["icmp_type"]), (&"DROPPED".into(), &8.into()));
    let echo = explain(directory.path(), &["198.51.100.7", "prod/api", "8/0/ICMP"])?;
    assert_eq!(echo["verdict"], "FORWARDED");
    let echo = explain(directory.path(), &["prod/web", "prod/api", "icmp", "-6"])?;
    assert_eq!((&echo["protocol"], &echo["icmp_type"]), (&"ICMPv6".into(), &128.into()));
    Ok(())
}

#[test]
fn explain_knows_what_is_exempt() -> Result<()> {
    let directory = tempfile::tempdir()?;
    write(directory.path(), "cluster.yaml", CLUSTER)?;
    let deny = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: prod}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
";
    write(directory.path(), "deny.yaml", deny)?;
    let own_node = explain(directory.path(), &["192.0.2.1", "prod/web", "80"])?;
    assert_eq!(own_node["verdict"], "FORWARDED");
    assert!(own_node["ingress"]["exempt"].is_string());
    let other_node = explain(directory.path(), &["192.0.2.1", "prod/api", "80"])?;
    assert_eq!(other_node["verdict"], "DROPPED");
    let itself = explain(directory.path(), &["prod/web", "prod/web", "80"])?;
    assert_eq!(itself["verdict"], "FORWARDED");
    let to_node = explain(directory.path(), &["prod/web", "192.0.2.1", "80"])?;
    assert_eq!(to_node["verdict"], "DROPPED", "egress to its own node is judged");
    Ok(())
}

#[test]
fn explain_tells_people_the_whole_walk() -> Result<()> {
    let directory = tempfile::tempdir()?;
    write(directory.path(), "cluster.yaml", CLUSTER)?;
    write(directory.path(), "policy.yaml", POLICY)?;
    let path = directory.path().display().to_string();
    let (stdout, _) = run(&["explain", "--manifests", &path, "prod/other", "prod/api", "8080"], 0)?;
    assert_eq!(
        stdout,
        "prod/other -> prod/api 8080/TCP: DROPPED\n  \
           egress  of prod/other: FORWARDED\n    \
             no policy applies: Allow\n  \
           ingress of prod/api: DROPPED\n    \
             tier default: no rule matches, end of tier: Deny (last: NetworkPolicy prod/api)\n"
    );
    Ok(())
}

#[test]
fn explain_says_what_it_cannot_answer() -> Result<()> {
    let directory = tempfile::tempdir()?;
    write(directory.path(), "cluster.yaml", CLUSTER)?;
    let path = directory.path().display().to_string();
    let base = ["explain", "--manifests", &path];
    let (_, stderr) = run(&[&base[..], &["prod/nobody", "prod/api", "80"]].concat(), 1)?;
    assert!(stderr.contains("no pod prod/nobody"), "{stderr}");
    let (_, stderr) = run(&[&base[..], &["prod/web", "2001:db8::9", "80", "-4"]].concat(), 1)?;
    assert!(stderr.contains("in common"), "{stderr}");
    let (_, stderr) = run(&[&base[..], &["prod/web", "prod/api", "80/tpc"]].concat(), 2)?;
    assert!(stderr.contains("PORT"), "{stderr}");
    let (_, stderr) = run(&["explain", "--manifests", "/nonexistent", "a/b", "a/c", "80"], 1)?;
    assert!(stderr.contains("no directory"), "{stderr}");
    Ok(())
}

#[test]
fn check_passes_what_is_right() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let cluster = write(directory.path(), "cluster.yaml", CLUSTER)?;
    let policy = write(directory.path(), "policy.yaml", POLICY)?;
    let (stdout, stderr) = run(&["check", &cluster, &policy], 0)?;
    assert_eq!(stdout, "");
    assert!(stderr.starts_with("valid"), "{stderr}");
    Ok(())
}

#[test]
fn check_names_file_line_object_and_field() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let broken = POLICY.replace("198.51.100.0/24", "198.51.100.0/33");
    let file = write(directory.path(), "broken.yaml", &broken)?;
    let (stdout, stderr) = run(&["check", &file], 1)?;
    let line = stdout.lines().next().unwrap_or_default();
    for part in [
        "error: ",
        "broken.yaml:",
        "NetworkPolicy prod/api: ",
        "spec.ingress[0].from[0].ipBlock.cidr: ",
    ] {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    assert!(
        stdout.lines().nth(1).is_some_and(|remedy| remedy.starts_with("  ")),
        "{stdout}"
    );
    assert!(stderr.contains("1 error"), "{stderr}");

    let output = weir(&["check", "-o", "json", &file])?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(report["valid"], false);
    assert_eq!(report["problems"][0]["field"], "spec.ingress[0].from[0].ipBlock.cidr");
    Ok(())
}

#[test]
fn check_warnings_count_only_if_asked() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let typo = POLICY.replace("policyTypes: [Ingress]", "policyTypes: [Ingress]\n  ingres: []");
    let file = write(directory.path(), "typo.yaml", &typo)?;
    let (stdout, _) = run(&["check", &file], 0)?;
    assert!(stdout.starts_with("warning: "), "{stdout}");
    run(&["check", "--strict", &file], 1)?;
    Ok(())
}

#[test]
fn a_file_that_is_not_there_is_an_error() -> Result<()> {
    let (stdout, _) = run(&["check", "/nonexistent.yaml"], 1)?;
    assert!(stdout.contains("/nonexistent.yaml"), "{stdout}");
    Ok(())
}

#[test]
fn without_an_agent_every_verb_says_so_with_a_code_of_its_own() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let run_dir = directory.path().display().to_string();
    for verb in [
        &["status"][..],
        &["flows"],
        &["flows", "-f"],
        &["explain", "a/b", "c/d", "80"],
        &["dump", "endpoints"],
    ] {
        let (stdout, stderr) = run(&[verb, &["--run-dir", &run_dir]].concat(), 3)?;
        assert_eq!(stdout, "", "{verb:?}");
        assert!(
            stderr.contains("no agent is running") && stderr.contains(&run_dir),
            "{stderr}"
        );
        assert!(stderr.contains("weir agent"), "the remedy: {stderr}");
    }
    Ok(())
}

#[test]
fn waiting_for_an_agent_that_never_comes_ends_in_time() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let run_dir = directory.path().display().to_string();
    let began = Instant::now();
    let (stdout, _) = run(&["status", "--wait", "300ms", "--run-dir", &run_dir, "-o", "json"], 1)?;
    assert!(began.elapsed() >= Duration::from_millis(300));
    let report: Value = serde_json::from_str(&stdout)?;
    assert_eq!(report["enforced"], false);
    assert!(
        report["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("no agent")),
        "{report}"
    );
    Ok(())
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let typo = POLICY.replace("policyTypes: [Ingress]", "policyTypes: [Ingress]\n  ingres: []");
    let broken = POLICY.replace("198.51.100.0/24", "198.51.100.0/33");
    for (name, content, code) in [("typo.yaml", typo, 0), ("broken.yaml", broken, 1)] {
        let file = write(directory.path(), name, &content)?;
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = Command::new(binary::weir()?)
            .args(["check", &file])
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()?;
        assert_eq!(output.status.code(), Some(code), "{name}");
        assert_eq!(text(&output.stderr), "");
    }
    Ok(())
}

#[test]
fn misuse_and_version() -> Result<()> {
    run(&["--version"], 0)?;
    run(&["--help"], 0)?;
    run(&["dance"], 2)?;
    run(&["agent"], 2)?;
    let (_, stderr) = run(&["status", "--wait", "soon"], 2)?;
    assert!(stderr.contains("--wait"), "{stderr}");
    Ok(())
}
