//! A cluster of network namespaces alone: one node, policies from a directory of manifests.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use weir_tests::{
    lab::{
        Agent, Families, Lab, Layout, PodPlan,
        agent::AgentOptions,
        manifests::{self, ContainerPort, Manifests},
    },
    world::wait_report,
};

use crate::{
    live::Verb,
    stage::World,
    story::{CAST, INTERNET_ADDRESS, Policy},
};

const NODE: &str = "node-1";

/// Only ends what has gone wrong: changes take milliseconds.
const ENFORCED: Duration = Duration::from_secs(60);

pub struct Namespaces {
    // The agent goes before what it holds on to.
    agent: Agent,
    verbs: [Verb; 1],
    manifests: Manifests,
    lab: Lab,
}

impl Namespaces {
    /// Makes the cluster and starts the agent.
    pub fn new(weir: &Path) -> Result<Self> {
        let mut lab = Lab::new(Families::Dual)?;
        lab.add_node(NODE, Layout::Routed)?;
        let pods = CAST.iter().filter(|actor| actor.pod().is_some());
        let plans: Vec<PodPlan> = pods.clone().map(|actor| PodPlan::new(actor.name, NODE)).collect();
        lab.add_pods(&plans)?;
        lab.add_external("internet", Ipv4Addr::from(INTERNET_ADDRESS))?;

        let manifests = Manifests::new(&lab.directory().join("manifests"))?;
        let node = lab.node(NODE)?;
        manifests.object(NODE, &manifests::node(NODE, &manifests::labels(&[]), node.addresses))?;
        for namespace in ["shop", "kube-system"] {
            let labels = manifests::labels(&[("kubernetes.io/metadata.name", namespace)]);
            manifests.object(
                &format!("namespace-{namespace}"),
                &manifests::namespace(namespace, &labels),
            )?;
        }
        for actor in pods {
            let (namespace, name) = actor.pod().context("a pod's name")?;
            let ports: Vec<ContainerPort> = actor
                .serves
                .iter()
                .map(|(protocol, port)| {
                    let name = format!("{}-{port}", protocol.name().to_lowercase());
                    (name, *port, protocol.name().to_owned())
                })
                .collect();
            let pod = manifests::Pod {
                namespace,
                name,
                labels: &manifests::labels(&[("app", actor.app)]),
                service_account: "default",
                node: NODE,
                ports: &ports,
                addresses: lab.pod(actor.name)?.addresses,
                host_network: false,
            };
            manifests.object(&format!("pod-{namespace}-{name}"), &pod.object())?;
        }

        let options = AgentOptions {
            flows: false,
            binary: Some(weir.to_owned()),
            ..AgentOptions::default()
        };
        let mut agent = Agent::start(&lab, NODE, manifests.directory(), options)?;
        agent.wait(ENFORCED)?;
        Ok(Self {
            verbs: [Verb::new(weir, agent.run_dir())],
            agent,
            manifests,
            lab,
        })
    }
}

impl World for Namespaces {
    type Hosts = Lab;

    fn hosts(&self) -> &Lab {
        &self.lab
    }

    fn node(&self, _actor: &str) -> Option<&str> {
        None
    }

    fn apply(&self, policy: &Policy) -> Result<()> {
        self.manifests.text(policy.file, policy.yaml)?;
        let report = wait_report(&self.agent, ENFORCED)?;
        ensure!(report.enforced, "{} is not enforced: {report:?}", policy.file);
        Ok(())
    }

    fn agents(&self) -> &[Verb] {
        &self.verbs
    }

    fn made_of(&self) -> String {
        "a node, four pods and the outside world, each a network namespace".to_owned()
    }

    fn started_by(&self) -> &'static str {
        "weir agent --node node-1 --manifests …"
    }

    fn written(&self) -> &'static str {
        "written; enforced"
    }
}
