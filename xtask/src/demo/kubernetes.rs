//! A real Kubernetes cluster out of namespaces, with Weir installed from its chart: pods run by kubelets, policies through
//! the API.

use std::{collections::BTreeMap, net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use weir_tests::{
    cluster::{Cluster, Options, Proxy, binaries::kubernetes_version},
    conformance::policies_in,
    e2e::{
        Stage,
        pods::{PodPlan, Pods, namespace},
        stage::AgentPod,
    },
    lab::{Addresses, Families, NetNs, manifests},
};

use crate::{
    live::Verb,
    stage::World,
    story::{CAST, INTERNET_ADDRESS, Policy},
};

const NODES: usize = 2;

/// Only ends what has gone wrong: changes take milliseconds.
const ENFORCED: Duration = Duration::from_secs(60);

pub struct RealCluster {
    pods: Pods,
    nodes: BTreeMap<&'static str, String>,
    agents: BTreeMap<String, AgentPod>,
    verbs: Vec<Verb>,
    version: String,
    stage: Stage,
}

impl RealCluster {
    /// Makes the cluster, installs Weir and starts the pods. `weir` is a binary of the same build as the one in the image.
    pub fn new(weir: &Path, image: &Path, root: &Path) -> Result<Self> {
        let cluster = Cluster::up(&Options {
            nodes: NODES,
            proxy: Proxy::Nftables,
            images: vec![image.to_owned()],
            ..Options::default()
        })?;
        let stage = Stage::of_namespaces(cluster, root)?;
        stage.install(&[])?;
        let agents = stage.agents()?;
        let verbs = agents.values().map(|agent| Verb::new(weir, &agent.run_dir()));

        let mut made = Self {
            pods: Pods::default(),
            nodes: BTreeMap::new(),
            verbs: verbs.collect(),
            agents,
            version: kubernetes_version()?,
            stage,
        };
        made.start_pods()?;
        Ok(made)
    }

    fn start_pods(&mut self) -> Result<()> {
        let api = self.stage.api();
        namespace(api, "shop", &manifests::labels(&[]))?;
        let nodes = self.stage.nodes()?;
        let mut plans = Vec::new();
        for actor in CAST.iter().filter(|actor| actor.pod().is_some()) {
            let node = &nodes[plans.len() % nodes.len()];
            plans.push(PodPlan::idle(
                actor.name,
                node,
                &manifests::labels(&[("app", actor.app)]),
            ));
            self.nodes.insert(actor.name, node.clone());
        }
        self.pods.add(api, &plans)?;
        let addresses = Addresses::planned(Ipv4Addr::from(INTERNET_ADDRESS), Families::Dual);
        let cluster = self.stage.cluster().context("the cluster")?;
        let netns: Arc<NetNs> = Arc::new(cluster.add_external(addresses)?);
        for actor in CAST.iter().filter(|actor| actor.pod().is_none()) {
            let host = (Arc::clone(&netns), addresses);
            self.pods.others.insert(actor.name.to_owned(), host);
        }
        Ok(())
    }
}

impl World for RealCluster {
    type Hosts = Pods;

    fn hosts(&self) -> &Pods {
        &self.pods
    }

    fn node(&self, actor: &str) -> Option<&str> {
        self.nodes.get(actor).map(String::as_str)
    }

    fn apply(&self, policy: &Policy) -> Result<()> {
        let objects = policies_in(policy.yaml)?;
        for object in &objects {
            self.stage.api().apply(object)?;
        }
        for agent in self.agents.values() {
            let enforced = agent.caught_up(ENFORCED)?;
            ensure!(enforced, "{} is not enforced on {}", policy.file, agent.node);
        }
        Ok(())
    }

    fn agents(&self) -> &[Verb] {
        &self.verbs
    }

    fn made_of(&self) -> String {
        let nodes = self.agents.len();
        format!(
            "Kubernetes {} on {nodes} nodes, pods run by their kubelets, and the outside world",
            self.version
        )
    }

    fn started_by(&self) -> &'static str {
        "helm install weir deploy/helm/weir -n kube-system"
    }

    fn written(&self) -> &'static str {
        "applied; enforced on every node"
    }
}
