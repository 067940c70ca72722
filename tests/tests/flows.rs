//! Flow records of real packets: who, what, which rule, how much; in the log and at the socket.

use std::{
    io::{BufRead, BufReader},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use weir_tests::{
    binary,
    connection::Connection,
    lab::{
        Agent, Families, Family, Lab, Layout, PodPlan,
        agent::AgentOptions,
        manifests::{Manifests, Pod, labels, namespace, node},
        probe::{Patience, Probe, Prober, Protocol, Servers, Verdict},
    },
};

const PATIENCE: Duration = Duration::from_secs(20);
const PODS: [&str; 3] = ["prod/web", "prod/api", "prod/other"];

/// One node with three pods; `prod/api` admits `app=web` on port 80.
struct World {
    lab: Lab,
    servers: Servers,
    manifests: Manifests,
}

impl World {
    fn new() -> Result<Self> {
        let mut lab = Lab::new(Families::Dual)?;
        lab.add_node("one", Layout::Routed)?;
        lab.add_pods(&PODS.map(|pod| PodPlan::new(pod, "one")))?;
        let manifests = Manifests::new(&lab.directory().join("manifests"))?;
        manifests.object("node", &node("one", &labels(&[]), lab.host("node/one")?.1))?;
        manifests.object("namespace", &namespace("prod", &labels(&[])))?;
        for name in PODS {
            let app = name.trim_start_matches("prod/");
            let pod = Pod {
                namespace: "prod",
                name: app,
                labels: &labels(&[("app", app)]),
                service_account: "default",
                node: "one",
                ports: &[],
                addresses: lab.host(name)?.1,
                host_network: false,
            };
            manifests.object(app, &pod.object())?;
        }
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": "prod", "name": "api"},
            "spec": {
                "podSelector": {"matchLabels": {"app": "api"}},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"from": [{"podSelector": {"matchLabels": {"app": "nobody"}}}]},
                    {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 80}]},
                ],
            },
        });
        manifests.object("policy", &policy)?;
        let servers = Servers::start()?;
        servers.serve(
            "prod/api",
            lab.host("prod/api")?.0,
            &[(Protocol::Tcp, 80), (Protocol::Udp, 80)],
        )?;
        Ok(Self {
            lab,
            servers,
            manifests,
        })
    }

    fn agent(&self, flows: bool) -> Result<Agent> {
        self.agent_with(AgentOptions {
            flows,
            ..AgentOptions::default()
        })
    }

    fn agent_with(&self, options: AgentOptions) -> Result<Agent> {
        let mut agent = Agent::start(&self.lab, "one", self.manifests.directory(), options)?;
        agent.wait(PATIENCE)?;
        Ok(agent)
    }

    fn api(&self, family: Family) -> Result<IpAddr> {
        self.lab.address("prod/api", family)
    }

    fn ask(&self, from: &str, family: Family, protocol: Protocol, port: u16) -> Result<Verdict> {
        let probe = Probe {
            from: from.to_owned(),
            to: self.api(family)?,
            protocol,
            port,
        };
        Ok(Prober::default().ask(&self.lab, &self.servers, &[probe], Patience::TABLE)?[0].verdict)
    }
}

fn records(agent: &Agent) -> Result<Vec<Value>> {
    let (text, _) = agent.flows_from(0)?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
        .collect()
}

/// Waits for a record in the flow log.
fn find(agent: &Agent, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let records = records(agent)?;
        if let Some(record) = records.iter().find(|record| wanted(record)) {
            return Ok(record.clone());
        }
        if Instant::now() > deadline {
            bail!("no record of {what} in {records:#?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Records of one event at the ingress side of a flow between these pods.
fn ingress(event: &'static str, from: &'static str) -> impl Fn(&Value) -> bool {
    move |record| {
        record["weir"]["event"] == event
            && record["traffic_direction"] == "INGRESS"
            && record["source"]["pod_name"] == from
            && record["destination"]["pod_name"] == "api"
    }
}

#[test]
fn the_log_says_who_what_which_rule_and_how_much() -> Result<()> {
    let world = World::new()?;
    let mut agent = world.agent(true)?;
    for family in [Family::V4, Family::V6] {
        assert_eq!(world.ask("prod/web", family, Protocol::Tcp, 80)?, Verdict::Allow);
        assert_eq!(world.ask("prod/other", family, Protocol::Tcp, 80)?, Verdict::Deny);
    }
    assert_eq!(world.ask("prod/web", Family::V4, Protocol::Udp, 80)?, Verdict::Deny);

    let started = find(&agent, "an allowed flow", ingress("started", "web"))?;
    assert_eq!(started["verdict"], "FORWARDED");
    assert_eq!(started["node_name"], "one");
    assert_eq!(started["destination"]["labels"], json!(["k8s:app=api"]));
    assert_eq!(started["l4"]["TCP"]["destination_port"], 80);
    assert_eq!(started["l4"]["TCP"]["flags"], json!({"SYN": true}));
    assert_eq!(started["ingress_allowed_by"][0]["name"], "api");
    assert_eq!(
        (&started["weir"]["tier"], &started["weir"]["rule"]),
        (&json!("default"), &json!(1))
    );

    // The same flow at its other end, where no policy applies.
    let port = started["l4"]["TCP"]["source_port"].clone();
    let egress = find(&agent, "its other end", |record| {
        record["traffic_direction"] == "EGRESS" && record["l4"]["TCP"]["source_port"] == port
    })?;
    assert_eq!(egress["source"]["pod_name"], "web");
    assert_eq!(egress.get("egress_allowed_by"), None);

    let ended = find(&agent, "the end of that flow", |record| {
        ingress("ended", "web")(record) && record["l4"]["TCP"]["source_port"] == port
    })?;
    for way in ["forward", "reply"] {
        assert!(ended["weir"]["packets"][way].as_u64() >= Some(1), "{ended:#}");
        assert!(ended["weir"]["bytes"][way].as_u64() >= Some(40), "{ended:#}");
    }
    assert_eq!(ended["weir"]["start"], started["weir"]["start"]);

    let denied = find(&agent, "a denied flow", ingress("denied", "other"))?;
    assert_eq!(
        (&denied["verdict"], &denied["drop_reason_desc"]),
        (&json!("DROPPED"), &json!("POLICY_DENIED"))
    );
    assert_eq!(denied["ingress_denied_by"][0]["name"], "api");
    find(&agent, "a denied datagram", |record| {
        record["verdict"] == "DROPPED" && record["l4"].get("UDP").is_some()
    })?;
    find(&agent, "a denied flow over IPv6", |record| {
        record["verdict"] == "DROPPED" && record["IP"]["ipVersion"] == "IPv6"
    })?;

    // Explain says the same rule as the record.
    let output = agent.verb(["explain", "prod/web", "prod/api", "80", "-4", "-o", "json"])?;
    let explanation: Value = serde_json::from_slice(&output.stdout)?;
    for field in ["tier", "policy", "rule"] {
        assert_eq!(explanation["ingress"][field], started["weir"][field], "{field}");
    }

    // Recent records at the socket, for people and for programs.
    let output = agent.verb(["flows", "--verdict", "dropped", "--protocol", "udp", "-o", "json"])?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(!text.is_empty(), "the denied datagram is a recent record");
    for line in text.lines() {
        let record: Value = serde_json::from_str(line)?;
        assert!(
            record["l4"].get("UDP").is_some() && record["verdict"] == "DROPPED",
            "{line}"
        );
    }
    let output = agent.verb(["flows", "--pod", "prod/other"])?;
    let text = String::from_utf8(output.stdout)?;
    assert!(
        text.lines()
            .any(|line| line
                .contains(" -> prod/api:80  to-endpoint DROPPED (TCP SYN) denied at the end of tier default")),
        "{text}"
    );
    let repeated = records(&agent)?
        .iter()
        .filter(|record| {
            ingress("denied", "other")(record) && (&record["IP"], &record["l4"]) == (&denied["IP"], &denied["l4"])
        })
        .count();
    assert_eq!(repeated, 1, "repeated denials of one flow are counted, not repeated");
    agent.terminate()?;
    Ok(())
}

/// Ends with its owner.
struct Reader(Child);

impl Reader {
    fn start(run_dir: &Path, arguments: &[&str]) -> Result<Self> {
        let child = Command::new(binary::weir()?)
            .arg("flows")
            .args(arguments)
            .arg("--run-dir")
            .arg(run_dir)
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn flow_status(agent: &Agent) -> Result<Value> {
    let output = agent.verb(["status", "-o", "json"])?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    Ok(status["flows"].clone())
}

/// Waits until somebody, or nobody, reads.
fn until_enabled(agent: &Agent, enabled: bool) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let flows = flow_status(agent)?;
        if flows["enabled"] == enabled {
            return Ok(flows);
        }
        ensure!(Instant::now() < deadline, "enabled is not {enabled}: {flows}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn without_a_reader_no_event_leaves_the_kernel() -> Result<()> {
    let world = World::new()?;
    let mut agent = world.agent(false)?;
    assert_eq!(world.ask("prod/other", Family::V4, Protocol::Tcp, 80)?, Verdict::Deny);
    let output = agent.verb(["flows"])?;
    assert!(output.stdout.is_empty() && output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("--follow"));
    assert_eq!(until_enabled(&agent, false)?["records"], 0);

    let mut reader = Reader::start(agent.run_dir(), &["-f", "-o", "json", "--verdict", "dropped"])?;
    until_enabled(&agent, true)?;
    assert_eq!(world.ask("prod/web", Family::V4, Protocol::Udp, 80)?, Verdict::Deny);
    let mut line = String::new();
    let stdout = reader.0.stdout.take().context("a pipe")?;
    BufReader::new(stdout).read_line(&mut line)?;
    let record: Value = serde_json::from_str(&line)?;
    assert_eq!(record["source"]["pod_name"], "web");
    assert!(record["l4"].get("UDP").is_some(), "{line}");

    drop(reader);
    let before = until_enabled(&agent, false)?["records"].clone();
    assert_eq!(world.ask("prod/web", Family::V4, Protocol::Udp, 80)?, Verdict::Deny);
    assert_eq!(flow_status(&agent)?["records"], before, "switched off again");
    agent.terminate()?;
    Ok(())
}

/// All records of a flow so far, by its source port.
fn records_of(agent: &Agent, event: &str, port: u16) -> Result<Vec<Value>> {
    let ports = |record: &Value| {
        let l4 = record["l4"].as_object()?;
        l4.values().next()?["source_port"].as_u64()
    };
    Ok(records(agent)?
        .into_iter()
        .filter(|record| {
            record["weir"]["event"] == event
                && record["traffic_direction"] == "INGRESS"
                && ports(record) == Some(port.into())
        })
        .collect())
}

/// Waits for what periods and sweeps bring.
fn await_records(agent: &Agent, event: &str, port: u16, enough: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
    let deadline = Instant::now() + 3 * PATIENCE;
    loop {
        let found = records_of(agent, event, port)?;
        if enough(&found) {
            return Ok(found);
        }
        ensure!(
            Instant::now() < deadline,
            "not the records {event} that are due: {found:#?}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_flow_that_lasts_and_one_that_is_denied_again_are_told_of_every_period() -> Result<()> {
    let world = World::new()?;
    let mut agent = world.agent_with(AgentOptions {
        arguments: vec!["--flow-period".to_owned(), "5s".to_owned()],
        ..AgentOptions::default()
    })?;
    let to = SocketAddr::new(world.api(Family::V4)?, 80);
    let (web, _) = world.lab.host("prod/web")?;
    let stream = web.run(|| Ok(TcpStream::connect(to)?))?;
    let lasting_port = stream.local_addr()?.port();
    let mut lasting = Connection::new(stream)?;
    ensure!(lasting.echoes()?, "a fresh connection does not echo");
    let (other, _) = world.lab.host("prod/other")?;
    let denied = other.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    let denied_port = denied.local_addr()?.port();
    for _ in 0..7 {
        denied.send_to(b"again", to)?;
    }

    let all = |told: &[Value]| told.last().is_some_and(|last| last["weir"]["packets"]["forward"] == 7);
    let told = await_records(&agent, "denied", denied_port, all)?;
    assert_eq!(
        told[0]["weir"]["packets"]["forward"], 1,
        "the first packet is told of at once"
    );
    assert_eq!(told[told.len() - 1]["weir"]["bytes"]["forward"], 7 * (20 + 8 + 5));
    assert_eq!(told[told.len() - 1]["verdict"], "DROPPED");
    let denials = told.len();

    ensure!(lasting.echoes()?, "the connection does not last");
    let told = await_records(&agent, "ongoing", lasting_port, |told| told.len() >= 2)?;
    let packets = |record: &Value| record["weir"]["packets"]["forward"].as_u64();
    assert!(
        packets(&told[0]) >= Some(2) && packets(&told[1]) >= packets(&told[0]),
        "{told:#?}"
    );
    let time = |record: &Value| -> Result<Timestamp> { Ok(record["time"].as_str().context("a time")?.parse()?) };
    let apart = time(&told[1])?.duration_since(time(&told[0])?).as_secs_f64();
    assert!(apart > 4.0, "{apart} s apart");
    assert_eq!(told[0]["ingress_allowed_by"][0]["name"], "api");
    drop(lasting);
    let ended = await_records(&agent, "ended", lasting_port, |told| !told.is_empty())?;
    assert_eq!(ended[0]["weir"]["start"], told[0]["weir"]["start"]);
    let told = records_of(&agent, "denied", denied_port)?;
    assert_eq!(told.len(), denials, "nothing new, nothing told: {told:#?}");
    agent.terminate()?;
    Ok(())
}
