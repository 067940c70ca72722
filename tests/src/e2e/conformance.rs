//! The conformance cases on real pods: policies through the API, pods run by kubelet on all nodes, probes from inside
//! their namespaces to the addresses that the API names.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    pods::{OURS, PodPlan, Pods, namespace, remove_namespace},
    stage::{AgentPod, Stage},
    sweep::BUILT_IN,
};
use crate::{
    cluster::api,
    conformance::{Case, Cluster, Pod, Question, Step, Suite, expected, policies_in, questions, served, wire},
    lab::{
        Addresses, Families, Family, Hosts as _, NetNs,
        manifests::Labels,
        probe::{Outcome, Patience, Probe, Prober, Servers},
    },
};

/// What is written is enforced within milliseconds; this ends what has gone wrong, on a machine however busy.
const ENFORCED: Duration = Duration::from_secs(30);

/// What cases ask for that real pods do not have: addresses of one's choice. They are skipped, and so are cases with hosts
/// outside where the cluster is not one of namespaces, to which such hosts can be added.
const FOREIGN: &str = "ip-plan";

/// What was run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub cases: usize,
    pub steps: usize,
    pub probes: usize,
    /// Cases that were not played, whatever the reason.
    pub skipped: usize,
}

/// Plays every `share`-th case of the folders of `tests/conformance`, over one family.
///
/// # Errors
/// What keeps cases from being played; the steps whose table is not borne out.
pub fn run(stage: &Stage, share: usize, family: Family) -> Result<Tally> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let suite = Suite::load(&directory, &["upstream-e2e", "cyclonus", "calico"])?.every(share);
    let mut tally = Tally {
        skipped: suite.skipped.len(),
        ..Tally::default()
    };
    let mut runner = Runner::new(stage, family)?;
    let mut wrong = Vec::new();
    for (cluster, cases) in &suite.groups {
        let externals = !cluster.externals.is_empty();
        let (playable, other): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| {
            let foreign = case.requires.iter().any(|ability| ability == FOREIGN);
            !foreign && (!externals || stage.cluster().is_some())
        });
        tally.skipped += other.len();
        for case in playable {
            let complaints = runner
                .play(cluster, case, &mut tally)
                .with_context(|| case.name.clone())?;
            wrong.extend(complaints);
        }
    }
    runner.finish()?;
    ensure!(tally.cases > 0 && tally.probes > 0, "no case was run");
    ensure!(
        wrong.is_empty(),
        "{} steps are not what their tables say:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(tally)
}

struct Runner<'a> {
    stage: &'a Stage,
    nodes: Vec<String>,
    agents: BTreeMap<String, AgentPod>,
    family: Family,
    pods: Pods,
    servers: Servers,
    prober: Prober,
    /// What is in the API now.
    cluster: Cluster,
    namespaces: BTreeSet<String>,
    policies: BTreeMap<String, Value>,
}

impl<'a> Runner<'a> {
    fn new(stage: &'a Stage, family: Family) -> Result<Self> {
        Ok(Self {
            nodes: stage.nodes()?,
            agents: stage.agents()?,
            stage,
            family,
            pods: Pods::default(),
            servers: Servers::start()?,
            prober: Prober::default(),
            cluster: Cluster::default(),
            namespaces: BTreeSet::new(),
            policies: BTreeMap::new(),
        })
    }

    fn play(&mut self, initial: &Cluster, case: &Case, tally: &mut Tally) -> Result<Vec<String>> {
        let mut cluster = initial.clone();
        let mut wrong = Vec::new();
        for (number, step) in case.steps.iter().enumerate() {
            cluster.change(&step.cluster_changes);
            step.label_changes
                .iter()
                .try_for_each(|change| cluster.relabel(change))?;
            self.realise(&cluster)?;
            self.put(&step.policies)?;
            for agent in self.agents.values() {
                // Objects that cannot be enforced are some cases' point: the wire has the last word.
                agent.caught_up(ENFORCED)?;
            }
            let (asked, complaints) = self.compare(&cluster, step)?;
            tally.steps += 1;
            tally.probes += asked;
            if !complaints.is_empty() {
                let shown: Vec<&str> = complaints.iter().take(6).map(String::as_str).collect();
                wrong.push(format!(
                    "{} step {}: {} complaints\n    {}",
                    case.name,
                    number + 1,
                    complaints.len(),
                    shown.join("\n    ")
                ));
            }
        }
        tally.cases += 1;
        Ok(wrong)
    }

    /// Makes the API and the nodes have this cluster and no other.
    fn realise(&mut self, target: &Cluster) -> Result<()> {
        let api = self.stage.api();
        for wanted in &target.namespaces {
            if self.cluster.namespaces.iter().all(|there| there != wanted) {
                namespace(api, &wanted.name, &wanted.labels)?;
                self.namespaces.insert(wanted.name.clone());
            }
        }
        for account in &target.service_accounts {
            if !self.cluster.service_accounts.contains(account) {
                let mut labels = account.labels.clone();
                if account.name != "default" {
                    labels.insert(OURS.to_owned(), "account".to_owned());
                }
                api.apply(&json!({
                    "apiVersion": "v1",
                    "kind": "ServiceAccount",
                    "metadata": {"namespace": account.namespace, "name": account.name, "labels": labels},
                }))?;
            }
        }
        // A pod whose labels alone differ goes on running.
        let shape = |pod: &Pod| Pod {
            labels: Labels::new(),
            ..pod.clone()
        };
        let there: BTreeMap<String, &Pod> = self.cluster.pods.iter().map(|pod| (pod.key(), pod)).collect();
        let wanted: BTreeMap<String, &Pod> = target.pods.iter().map(|pod| (pod.key(), pod)).collect();
        let gone: Vec<String> = there
            .iter()
            .filter(|(key, pod)| wanted.get(*key).is_none_or(|other| shape(other) != shape(pod)))
            .map(|(key, _)| key.clone())
            .collect();
        for name in &gone {
            self.servers.stop(name);
        }
        self.pods.remove(api, &gone)?;
        let fresh: Vec<&Pod> = target
            .pods
            .iter()
            .filter(|pod| self.pods.get(&pod.key()).is_none())
            .collect();
        let plans: Vec<PodPlan> = fresh
            .iter()
            .enumerate()
            .map(|(number, pod)| PodPlan {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                node: Some(self.nodes[number % self.nodes.len()].clone()),
                labels: pod.labels.clone(),
                service_account: pod.service_account.clone(),
                ports: pod
                    .ports
                    .iter()
                    .map(|port| (port.name.clone(), port.port, port.protocol.clone()))
                    .collect(),
                ..PodPlan::default()
            })
            .collect();
        self.pods.add(api, &plans)?;
        for pod in fresh {
            let key = pod.key();
            self.servers
                .serve(&key, self.pods.host(&key)?.0, &served(&pod.ports)?)?;
        }
        for pod in &target.pods {
            let key = pod.key();
            if self
                .pods
                .get(&key)
                .is_some_and(|running| running.plan.labels != pod.labels)
            {
                self.pods.relabel(api, &key, &pod.labels)?;
            }
        }
        for external in &target.externals {
            let key = format!("ext/{}", external.name);
            if !self.pods.others.contains_key(&key) {
                let cluster = self
                    .stage
                    .cluster()
                    .context("hosts outside are made for a cluster of namespaces alone")?;
                let addresses = Addresses::planned(external.ip, Families::Dual);
                let netns: Arc<NetNs> = Arc::new(cluster.add_external(addresses)?);
                self.servers.serve(&key, &netns, &served(&external.ports)?)?;
                self.pods.others.insert(key, (netns, addresses));
            }
        }
        for gone in &self.cluster.namespaces {
            // The API server keeps its own for ever.
            if !BUILT_IN.contains(&gone.name.as_str())
                && target.namespaces.iter().all(|wanted| wanted.name != gone.name)
            {
                remove_namespace(api, &gone.name)?;
                self.namespaces.remove(&gone.name);
            }
        }
        self.cluster = target.clone();
        Ok(())
    }

    /// Makes these the policies in the API, and no others.
    fn put(&mut self, text: &str) -> Result<()> {
        let api = self.stage.api();
        let mut wanted = BTreeMap::new();
        for mut object in policies_in(&self.addressed(text)?)? {
            object["metadata"]["labels"][OURS] = json!("policy");
            wanted.insert(api::path(&object)?, object);
        }
        for (path, object) in &wanted {
            if self.policies.get(path) != Some(object) {
                api.apply(object)?;
            }
        }
        for gone in self.policies.keys().filter(|path| !wanted.contains_key(*path)) {
            api.delete(gone)?;
        }
        self.policies = wanted;
        Ok(())
    }

    fn addressed(&self, text: &str) -> Result<String> {
        crate::conformance::addressed(text, self.family, |host| {
            let (_, addresses) = self.pods.host(host)?;
            addresses
                .of(self.family)
                .with_context(|| format!("{host} has no {:?} address", self.family))
        })
    }

    /// Asks the wire until it says what the table says, for as long as it may take.
    fn compare(&mut self, cluster: &Cluster, step: &Step) -> Result<(usize, Vec<String>)> {
        let questions = questions(cluster, step)?;
        let probes: Vec<Probe> = questions
            .iter()
            .map(|question| {
                Ok(Probe {
                    from: question.from.clone(),
                    to: self.pods.address(&question.to, self.family)?,
                    protocol: question.protocol,
                    port: question.port,
                })
            })
            .collect::<Result<_>>()?;
        let deadline = Instant::now() + ENFORCED;
        let mut patience = Patience::TABLE;
        loop {
            let outcomes = self.prober.ask(&self.pods, &self.servers, &probes, patience)?;
            let wrong = complaints(step, &questions, &outcomes);
            if wrong.is_empty() || Instant::now() > deadline {
                return Ok((probes.len(), wrong));
            }
            patience = Patience::STUBBORN;
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Takes away all that was made.
    fn finish(mut self) -> Result<()> {
        self.put("")?;
        let names: Vec<String> = self.pods.names().map(str::to_owned).collect();
        self.pods.remove(self.stage.api(), &names)?;
        for name in self.namespaces.iter().filter(|name| !BUILT_IN.contains(&name.as_str())) {
            self.stage
                .api()
                .delete_within(&format!("/api/v1/namespaces/{name}"), 1)?;
        }
        for name in self.namespaces.iter().filter(|name| !BUILT_IN.contains(&name.as_str())) {
            remove_namespace(self.stage.api(), name)?;
        }
        Ok(())
    }
}

fn complaints(step: &Step, questions: &[Question], outcomes: &[Outcome]) -> Vec<String> {
    questions
        .iter()
        .zip(outcomes)
        .filter_map(|(question, outcome)| {
            let expected = expected(step, question);
            (outcome.verdict != wire(expected))
                .then(|| format!("{question}: the wire says {}, the table {expected:?}", outcome.verdict))
        })
        .collect()
}
