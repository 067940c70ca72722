//! A small cluster with agents, as the end-to-end tests and the demo want it: pods that serve, policies that come and
//! go, questions to wire and agents.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use weir::{
    cli::{
        client::Client,
        protocol::{Response, Verb},
    },
    control::query::{StatusReport, WaitReport},
    flow::json::{Flow, Line},
};

use crate::{
    connection::Connection,
    lab::{
        Agent, Families, Family, Lab, Layout, PodPlan,
        agent::AgentOptions,
        manifests::{self, ContainerPort, Labels, Manifests},
        probe::{Patience, Probe, Prober, Protocol, Servers, Verdict},
    },
};

/// A change takes effect within milliseconds; this only ends what has gone wrong.
pub const ENFORCED: Duration = Duration::from_secs(60);

/// What every pod and external serves.
pub const PORTS: [(Protocol, u16); 6] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 81),
    (Protocol::Udp, 80),
    (Protocol::Udp, 81),
    (Protocol::Sctp, 80),
    (Protocol::Sctp, 81),
];

/// What a world is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    pub layout: Layout,
    pub families: Families,
    /// `namespace/pod` and the node it runs on. Nodes are made as they are named.
    pub pods: Vec<(&'static str, &'static str)>,
    pub options: AgentOptions,
}

impl Plan {
    /// Pods on one node, in the layout of Calico, dual-stack, with TCX.
    #[must_use]
    pub fn one_node(pods: &[&'static str]) -> Self {
        Self {
            layout: Layout::Routed,
            families: Families::Dual,
            pods: pods.iter().map(|&pod| (pod, "node-1")).collect(),
            options: AgentOptions::default(),
        }
    }
}

/// The cluster.
pub struct World {
    // Agents first: they end before what they hold on to goes.
    pub agents: BTreeMap<String, Agent>,
    pub manifests: Manifests,
    pub servers: Servers,
    pub lab: Lab,
    prober: Prober,
    options: AgentOptions,
    labels: BTreeMap<String, Labels>,
}

impl World {
    /// Makes the cluster and starts its agents.
    ///
    /// # Errors
    /// The lab's; if an agent does not come up.
    pub fn new(plan: &Plan) -> Result<Self> {
        let mut world = Self::without_agents(plan)?;
        world.start_agents()?;
        Ok(world)
    }

    /// Makes the cluster and writes its objects.
    ///
    /// # Errors
    /// The lab's.
    pub fn without_agents(plan: &Plan) -> Result<Self> {
        let mut lab = Lab::new(plan.families)?;
        for (_, node) in &plan.pods {
            if lab.node(node).is_err() {
                lab.add_node(node, plan.layout)?;
            }
        }
        let manifests = Manifests::new(&lab.directory().join("manifests"))?;
        let mut world = Self {
            agents: BTreeMap::new(),
            manifests,
            servers: Servers::start()?,
            lab,
            prober: Prober::default(),
            options: plan.options.clone(),
            labels: BTreeMap::new(),
        };
        for node in world.lab.nodes() {
            let labels = manifests::labels(&[("kubernetes.io/hostname", &node.name)]);
            let object = manifests::node(&node.name, &labels, node.addresses);
            world.manifests.object(&format!("node-{}", node.name), &object)?;
        }
        let pods: Vec<PodPlan> = plan.pods.iter().map(|(pod, node)| PodPlan::new(pod, node)).collect();
        world.add_pods(&pods)?;
        Ok(world)
    }

    /// Runs a test on the cluster. Where it fails the logs of all agents are shown.
    ///
    /// # Errors
    /// The test's own.
    pub fn check(mut self, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let result = test(&mut self);
        if result.is_err() {
            for (node, agent) in &self.agents {
                eprintln!("--- log of the agent of {node} ---\n{}\n---", agent.log_tail(80));
            }
        }
        result
    }

    /// Starts an agent on every node and waits until all enforce.
    ///
    /// # Errors
    /// If one does not come up.
    pub fn start_agents(&mut self) -> Result<()> {
        self.spawn_agents()?;
        self.agents.values_mut().try_for_each(|agent| agent.wait(ENFORCED))
    }

    /// Starts an agent on every node.
    ///
    /// # Errors
    /// If one does not start.
    pub fn spawn_agents(&mut self) -> Result<()> {
        for node in self.lab.nodes() {
            let agent = Agent::start(&self.lab, &node.name, self.manifests.directory(), self.options.clone())?;
            self.agents.insert(node.name.clone(), agent);
        }
        Ok(())
    }

    /// The agent of a node.
    ///
    /// # Errors
    /// If it has none.
    pub fn agent(&mut self, node: &str) -> Result<&mut Agent> {
        self.agents
            .get_mut(node)
            .with_context(|| format!("{node} has no agent"))
    }

    /// Adds pods: links, servers and objects. Pod `x/a` has the label `pod: a` in a namespace labelled `ns: x`.
    ///
    /// # Errors
    /// The lab's.
    pub fn add_pods(&mut self, plans: &[PodPlan]) -> Result<()> {
        self.lab.add_pods(plans)?;
        for plan in plans {
            self.servers.serve(&plan.name, self.lab.host(&plan.name)?.0, &PORTS)?;
            let (namespace, name) = split(&plan.name)?;
            let file = format!("namespace-{namespace}");
            if !self.manifests.path(&file).exists() {
                let labels = manifests::labels(&[("ns", namespace), ("kubernetes.io/metadata.name", namespace)]);
                self.manifests
                    .object(&file, &manifests::namespace(namespace, &labels))?;
            }
            self.relabel(&plan.name, &[("pod", name)])?;
        }
        Ok(())
    }

    /// Adds a host outside of the cluster, `ext/NAME`, that serves as pods do.
    ///
    /// # Errors
    /// The lab's.
    pub fn add_external(&mut self, name: &str, address: std::net::Ipv4Addr) -> Result<()> {
        self.lab.add_external(name, address)?;
        let key = format!("ext/{name}");
        self.servers.serve(&key, self.lab.host(&key)?.0, &PORTS)
    }

    /// Removes a pod: its object, servers and link.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn remove_pod(&mut self, pod: &str) -> Result<()> {
        self.manifests.remove(&pod_file(pod))?;
        self.servers.stop(pod);
        self.lab.remove_pod(pod)
    }

    /// Gives a pod other labels.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn relabel(&mut self, pod: &str, labels: &[(&str, &str)]) -> Result<()> {
        self.labels.insert(pod.to_owned(), manifests::labels(labels));
        let (namespace, name) = split(pod)?;
        let link = self.lab.pod(pod)?;
        let ports: Vec<ContainerPort> = PORTS
            .iter()
            .map(|(protocol, port)| {
                let name = format!("serve-{port}-{}", protocol.name().to_lowercase());
                (name, *port, protocol.name().to_owned())
            })
            .collect();
        let object = manifests::Pod {
            namespace,
            name,
            labels: &self.labels[pod],
            service_account: "default",
            node: &link.node,
            ports: &ports,
            addresses: link.addresses,
            host_network: false,
        }
        .object();
        self.manifests.object(&pod_file(pod), &object)
    }

    /// Writes a file of policies and waits until it is enforced.
    ///
    /// # Errors
    /// If it is not.
    pub fn policy(&mut self, file: &str, text: &str) -> Result<()> {
        self.manifests.text(file, text)?;
        self.enforced()
    }

    /// Removes a file of policies and waits until that is enforced.
    ///
    /// # Errors
    /// If it is not.
    pub fn remove_policy(&mut self, file: &str) -> Result<()> {
        self.manifests.remove(file)?;
        self.enforced()
    }

    /// Waits until every running agent enforces what the manifests say.
    ///
    /// # Errors
    /// What an agent says keeps it from that.
    pub fn enforced(&mut self) -> Result<()> {
        for agent in self.agents.values().filter(|agent| agent.pid().is_some()) {
            let report = wait_report(agent, ENFORCED)?;
            ensure!(
                report.enforced,
                "{} does not enforce everything: {report:?}",
                agent.node()
            );
        }
        Ok(())
    }

    /// The verdict of the wire.
    ///
    /// # Errors
    /// If there are no such hosts.
    pub fn verdict(&mut self, from: &str, to: &str, family: Family, protocol: Protocol, port: u16) -> Result<Verdict> {
        let to = self.lab.address(to, family)?;
        let probe = Probe {
            from: from.to_owned(),
            to,
            protocol,
            port,
        };
        let outcomes = self.prober.ask(&self.lab, &self.servers, &[probe], Patience::TABLE)?;
        outcomes
            .first()
            .map(|outcome| outcome.verdict)
            .context("a probe without an outcome")
    }

    /// Asks the wire, in every family that the lab has and over TCP, UDP and SCTP, whether these reach each other.
    ///
    /// # Errors
    /// Lists what is not as expected.
    pub fn expect(&mut self, expectations: &[(&str, &str, u16, Verdict)]) -> Result<()> {
        let families: Vec<Family> = [Family::V4, Family::V6]
            .into_iter()
            .filter(|&family| self.lab.families().has(family))
            .collect();
        let mut probes = Vec::new();
        let mut expected = Vec::new();
        for &(from, to, port, verdict) in expectations {
            for &family in &families {
                for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                    let to = self.lab.address(to, family)?;
                    probes.push(Probe {
                        from: from.to_owned(),
                        to,
                        protocol,
                        port,
                    });
                    expected.push(verdict);
                }
            }
        }
        let wrong = self.prober.wrong(&self.lab, &self.servers, &probes, &expected)?;
        ensure!(
            wrong.is_empty(),
            "{} of {} probes: {}",
            wrong.len(),
            probes.len(),
            wrong.join("; ")
        );
        Ok(())
    }

    /// A connection, from a source port of its own choice or of the kernel's.
    ///
    /// # Errors
    /// If it is not answered.
    pub fn connect(&self, from: &str, to: &str, family: Family, port: u16) -> Result<Connection> {
        let (netns, _) = self.lab.host(from)?;
        let to = SocketAddr::new(self.lab.address(to, family)?, port);
        let stream = netns.run(|| {
            TcpStream::connect_timeout(&to, Duration::from_secs(3)).with_context(|| format!("{from}: connect to {to}"))
        })?;
        Connection::new(stream)
    }

    /// What the agent of a node says of itself.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn status(&self, node: &str) -> Result<StatusReport> {
        let agent = self.agents.get(node).with_context(|| format!("{node} has no agent"))?;
        match Client::connect(agent.run_dir())?.ask(Verb::Status)? {
            Response::Status(report) => Ok(*report),
            other => bail!("status was answered by {other:?}"),
        }
    }

    /// Waits for a flow record in a node's log.
    ///
    /// # Errors
    /// If none comes.
    pub fn await_flow(&self, node: &str, wanted: impl Fn(&Flow<'_>) -> bool) -> Result<()> {
        let agent = self.agents.get(node).with_context(|| format!("{node} has no agent"))?;
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let (text, _) = agent.flows_from(0)?;
            for line in text.lines() {
                let line: Line<'_> = serde_json::from_str(line).with_context(|| format!("flow record {line}"))?;
                if matches!(&line, Line::Flow(flow) if wanted(flow)) {
                    return Ok(());
                }
            }
            let last = text.lines().last().unwrap_or("(none)");
            ensure!(
                Instant::now() < deadline,
                "no such flow record in the log of {node}; the last one: {last}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// `weir status --wait`, without a process.
///
/// # Errors
/// If the agent does not answer.
pub fn wait_report(agent: &Agent, patience: Duration) -> Result<WaitReport> {
    let timeout_ms = u64::try_from(patience.as_millis())?;
    let mut client = Client::connect(agent.run_dir())?;
    client.patience(Some(patience + Duration::from_secs(10)))?;
    match client.ask(Verb::Wait { timeout_ms })? {
        Response::Wait(report) => Ok(report),
        other => bail!("wait was answered by {other:?}"),
    }
}

/// Namespace and name of `namespace/name`.
fn split(pod: &str) -> Result<(&str, &str)> {
    pod.split_once('/')
        .with_context(|| format!("{pod} is no namespace/name"))
}

/// The manifest file of a pod.
#[must_use]
pub fn pod_file(pod: &str) -> String {
    format!("pod-{}", pod.replace('/', "-"))
}

/// Ingress of x/server from the pod of that name alone (by its label `pod`).
#[must_use]
pub fn only_from(name: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: server, namespace: x}}
spec:
  podSelector: {{matchLabels: {{pod: server}}}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {{matchLabels: {{pod: {name}}}}}
"
    )
}
