//! What Prometheus is told of real packets, policies and pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{SocketAddr, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weir::metrics::register;
use weir_tests::{
    lab::{Families, Family, agent::AgentOptions},
    promql,
    scrape::{self, Scrape},
    world::{Plan, World, wait_report},
};

const NODE: &str = "node-1";

/// For what the agent learns by sweeps.
const PATIENCE: Duration = Duration::from_secs(20);

/// No port but 80 of `x/server`.
const ALLOW_PORT_80: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: x}
spec:
  podSelector: {matchLabels: {pod: server}}
  policyTypes: [Ingress]
  ingress:
  - ports:
    - {protocol: TCP, port: 80}
    - {protocol: UDP, port: 80}
";

const INVALID: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: broken, namespace: x}
spec:
  podSelector: {matchLabels: {pod: nobody}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - ipBlock: {cidr: 10.0.0.0/99}
";

fn world(more: &[&str]) -> Result<World> {
    let mut arguments = scrape::arguments();
    arguments.extend(more.iter().map(|&argument| argument.to_owned()));
    World::new(&Plan {
        families: Families::V4,
        options: AgentOptions {
            arguments,
            ..AgentOptions::default()
        },
        ..Plan::one_node(&["x/server", "x/a"])
    })
}

/// Sends datagrams of a size, each from a port of its own, and waits for no answer.
fn send(world: &World, count: usize, port: u16, size: usize) -> Result<()> {
    let to = SocketAddr::new(world.lab.address("x/server", Family::V4)?, port);
    world.lab.host("x/a")?.0.run(|| {
        for _ in 0..count {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.send_to(&vec![0; size], to).context("send a datagram")?;
        }
        Ok(())
    })
}

/// Scrapes until what is asked for is so.
fn await_scrape(world: &World, what: &str, wanted: impl Fn(&Scrape) -> Result<bool>) -> Result<Scrape> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let scrape = Scrape::fetch(&world.lab, NODE)?;
        if wanted(&scrape)? {
            return Ok(scrape);
        }
        ensure!(Instant::now() < deadline, "{what} never came:\n{}", scrape.text);
        thread::sleep(Duration::from_millis(50));
    }
}

/// Packets and bytes that came to `x/server` under a reason.
fn counted(scrape: &Scrape, reason: &str) -> Result<(u64, u64)> {
    let labels = [("reason", reason), ("direction", "ingress")];
    Ok((
        scrape.count("weir_packets_total", &labels)?,
        scrape.count("weir_bytes_total", &labels)?,
    ))
}

#[test]
fn packets_are_counted_by_verdict_and_reason_to_the_byte() -> Result<()> {
    const HEADERS: u64 = 20 + 8;
    world(&[])?.check(|world| {
        world.policy("server", ALLOW_PORT_80)?;
        let before = Scrape::fetch(&world.lab, NODE)?;
        assert_eq!(before.count("weir_audit_mode", &[])?, 0);
        send(world, 25, 81, 100)?;
        send(world, 7, 80, 50)?;
        let after = await_scrape(world, "the last packet", |scrape| {
            let allowed = counted(scrape, "ALLOWED")?.0 - counted(&before, "ALLOWED")?.0;
            Ok(counted(scrape, "POLICY_DENIED")?.0 >= 25 && allowed >= 7)
        })?;
        let grown = |reason| -> Result<(u64, u64)> {
            let (old, new) = (counted(&before, reason)?, counted(&after, reason)?);
            Ok((new.0 - old.0, new.1 - old.1))
        };
        assert_eq!(grown("POLICY_DENIED")?, (25, 25 * (HEADERS + 100)));
        assert_eq!(grown("ALLOWED")?, (7, 7 * (HEADERS + 50)));
        let dropped = |scrape: &Scrape| scrape.count("weir_packets_total", &[("verdict", "DROPPED")]);
        assert_eq!(dropped(&after)? - dropped(&before)?, 25, "and for no other reason");
        assert_eq!(after.count("weir_packets_total", &[("verdict", "AUDIT")])?, 0);

        // The kernel counts, not the agent: the next one goes on from there.
        let agent = world.agent(NODE)?;
        agent.kill()?;
        send(world, 5, 81, 100)?;
        let agent = world.agent(NODE)?;
        agent.spawn()?;
        agent.wait(PATIENCE)?;
        let again = Scrape::fetch(&world.lab, NODE)?;
        assert_eq!(
            counted(&again, "POLICY_DENIED")?.0 - counted(&after, "POLICY_DENIED")?.0,
            5
        );
        let generation = |scrape: &Scrape| scrape.count("weir_generation", &[]);
        assert_eq!(generation(&again)?, generation(&after)? + 1);
        Ok(())
    })
}

#[test]
fn an_audit_tells_what_it_would_have_dropped() -> Result<()> {
    world(&["--audit"])?.check(|world| {
        world.policy("server", ALLOW_PORT_80)?;
        // Somebody who listens and says nothing: an answer would be audited too.
        let _silent = world
            .lab
            .host("x/server")?
            .0
            .run(|| Ok(UdpSocket::bind("0.0.0.0:9999")?))?;
        send(world, 9, 9999, 10)?;
        let scrape = await_scrape(world, "the last packet", |scrape| {
            Ok(scrape.count("weir_packets_total", &[("verdict", "AUDIT")])? >= 9)
        })?;
        assert_eq!(scrape.count("weir_audit_mode", &[])?, 1);
        assert_eq!(
            scrape.count(
                "weir_packets_total",
                &[("verdict", "AUDIT"), ("reason", "AUDIT"), ("direction", "ingress")]
            )?,
            9
        );
        assert_eq!(scrape.count("weir_packets_total", &[("verdict", "DROPPED")])?, 0);
        Ok(())
    })
}

#[test]
fn policies_pods_and_what_they_cost_are_told() -> Result<()> {
    world(&[])?.check(|world| {
        let start = Scrape::fetch(&world.lab, NODE)?;
        let policies = |scrape: &Scrape| scrape.count("weir_policies", &[("kind", "NetworkPolicy")]);
        let programmed =
            |scrape: &Scrape, trigger| scrape.count("weir_programming_duration_seconds_count", &[("trigger", trigger)]);
        assert_eq!((policies(&start)?, start.count("weir_ready", &[])?), (0, 1));
        assert_eq!(programmed(&start, "endpoint")?, 2);
        for (state, pods) in [("enforced", 2), ("closed", 0), ("waiting", 0)] {
            assert_eq!(start.count("weir_endpoints", &[("state", state)])?, pods, "{state}");
        }

        world.policy("server", ALLOW_PORT_80)?;
        let enforced = await_scrape(world, "the policy", |scrape| Ok(policies(scrape)? == 1))?;
        assert_eq!(programmed(&enforced, "objects")?, programmed(&start, "objects")? + 1);
        let seconds =
            |scrape: &Scrape| scrape.value("weir_programming_duration_seconds_sum", &[("trigger", "objects")]);
        let took = seconds(&enforced)? - seconds(&start)?;
        assert!(took > 0.0 && took < 10.0, "{took}");
        let tables = |scrape: &Scrape| scrape.count("weir_tables", &[]);
        assert!(tables(&enforced)? > tables(&start)?, "{}", enforced.text);
        assert_eq!(enforced.count("weir_map_entries", &[("map", "ENDPOINTS")])?, 2);

        world.manifests.text("broken", INVALID)?;
        let report = wait_report(world.agent(NODE)?, PATIENCE)?;
        ensure!(!report.enforced, "an invalid policy is no problem");
        let broken = await_scrape(world, "the problem", |scrape| {
            Ok(scrape.count("weir_problems", &[("severity", "error")])? > 0)
        })?;
        assert_eq!(broken.count("weir_invalid_objects", &[("kind", "NetworkPolicy")])?, 1);

        // A connection that lasts, and the record of it.
        let mut connection = world.connect("x/a", "x/server", Family::V4, 80)?;
        ensure!(connection.echoes()?, "a fresh connection does not echo");
        let lasting = await_scrape(world, "the connection", |scrape| {
            Ok(scrape.count("weir_connections", &[("state", "confirmed")])? > 0)
        })?;
        assert!(lasting.count("weir_flow_records_total", &[])? > 0, "{}", lasting.text);
        assert_eq!(lasting.count("weir_flow_records_lost_total", &[])?, 0);

        let process = |name| lasting.value(name, &[]);
        assert!(process("process_resident_memory_bytes")? > 1e6, "{}", lasting.text);
        assert!(process("process_cpu_seconds_total")? > 0.0, "{}", lasting.text);
        assert!(
            process("process_open_fds")? < process("process_max_fds")?,
            "{}",
            lasting.text
        );
        Ok(())
    })
}

/// Where Prometheus' own labels come from: the scrape, not the agent.
const TARGET_LABELS: [&str; 2] = ["instance", "job"];

/// Every expression of the dashboard.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match field {
                    Value::String(text) if name == "expr" || (name == "query" && text.contains('(')) => {
                        found.push(text.clone());
                    }
                    other => expressions(other, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_what_is_served_and_the_document_lists_it() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(root.join("deploy/grafana/weir.json"))?)?;
    let mut asked = Vec::new();
    expressions(&dashboard, &mut asked);
    ensure!(asked.len() > 30, "only {} expressions", asked.len());

    world(&[])?.check(|world| {
        let served = Scrape::fetch(&world.lab, NODE)?;
        let registered: BTreeMap<String, String> = register::ALL
            .iter()
            .map(|family| (family.declared_name().to_owned(), family.kind.as_str().to_owned()))
            .collect();
        assert_eq!(served.families, registered);

        let series: BTreeMap<String, BTreeSet<&str>> = register::ALL
            .iter()
            .filter(|family| served.families.contains_key(family.declared_name()))
            .flat_map(|family| {
                let labels: BTreeSet<&str> = family
                    .labels
                    .iter()
                    .copied()
                    .chain(TARGET_LABELS)
                    .chain(["le"])
                    .collect();
                family.series().into_iter().map(move |name| (name, labels.clone()))
            })
            .collect();
        // No cluster, no watches.
        let silent = |name: &str| name.starts_with("weir_watch_") || name == "weir_invalid_objects";
        for expression in &asked {
            let asked = promql::asked(expression).with_context(|| expression.clone())?;
            ensure!(!asked.metrics.is_empty(), "{expression} asks for nothing");
            let mut labels = BTreeSet::<&str>::new();
            for metric in &asked.metrics {
                labels.extend(
                    series
                        .get(metric)
                        .with_context(|| format!("{expression}: {metric} is not served"))?,
                );
                let has_series = served.samples.iter().any(|sample| sample.name == *metric);
                ensure!(has_series || silent(metric), "{expression}: {metric} has no series");
            }
            for label in &asked.labels {
                ensure!(
                    labels.contains(label.as_str()),
                    "{expression}: there is no label {label}"
                );
            }
        }
        Ok(())
    })
}
