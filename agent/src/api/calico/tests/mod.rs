//! Calico's semantics, trap by trap: from text through the index to the naive evaluator.

mod broken;
mod policies;
mod rules;
mod services;
mod sets;

use std::{net::IpAddr, path::Path};

use weir_common::Direction;

use crate::{
    api::{Outcome, Parser, Problem, Severity, objects},
    index::Index,
    policy::{
        change::PeerKey,
        evaluate::{Flow, World},
        model::{Hit, Judgement},
        selector::EntityKind,
    },
    source::SourceEvent,
};

/// Everybody there is: pods, and hosts that nobody knows. Each has an address of each family.
const EVERYBODY: [&str; 5] = ["prod/web", "prod/api", "dev/web", "good", "bad"];

const CLUSTER: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: prod, labels: {env: prod}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: dev, labels: {env: dev}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: prod, name: front, labels: {trusted: "yes"}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {namespace: dev, name: default, labels: {trusted: "no"}}}
---
apiVersion: v1
kind: Pod
metadata: {namespace: prod, name: web, labels: {app: web, role: front}}
spec: {serviceAccountName: front, containers: [{ports: [{name: http, containerPort: 80}, {name: dns, containerPort: 53, protocol: UDP}]}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: prod, name: api, labels: {app: api}}
spec: {containers: [{ports: [{name: http, containerPort: 8080}]}]}
status: {phase: Running, podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {namespace: dev, name: web, labels: {app: web}}
spec: {}
status: {phase: Running, podIPs: [{ip: 10.0.1.1}, {ip: "fd00:1::1"}]}
"#;

struct Lab {
    parser: Parser,
    index: Index,
    world: World,
    problems: Vec<Problem>,
}

impl Lab {
    /// The cluster, and these objects.
    #[track_caller]
    fn new(text: &str) -> Self {
        let mut lab = Self {
            parser: Parser::new(),
            index: Index::new("here"),
            world: World::new(),
            problems: Vec::new(),
        };
        lab.apply(CLUSTER);
        assert!(lab.problems.is_empty(), "{:?}", lab.problems);
        lab.apply(text);
        lab
    }

    /// The cluster and these objects, about which there is nothing to complain.
    #[track_caller]
    fn clean(text: &str) -> Self {
        let lab = Self::new(text);
        assert!(lab.problems.is_empty(), "{:?}", lab.problems);
        lab
    }

    /// The cluster, and a global policy of this spec.
    #[track_caller]
    fn global(spec: &str) -> Self {
        Self::clean(&global(spec))
    }

    /// The cluster, and a policy of this spec in namespace prod.
    #[track_caller]
    fn namespaced(spec: &str) -> Self {
        Self::clean(&namespaced(spec))
    }

    #[track_caller]
    fn apply(&mut self, text: &str) {
        let (documents, errors) = objects(Path::new("test.yaml"), text, &mut self.parser);
        assert!(errors.is_empty(), "{errors:?}");
        for document in documents {
            let parsed = document.parsed;
            let unknown = parsed.unknown.iter().map(|unknown| unknown.problem(1, "files"));
            self.problems.extend(parsed.problems.into_iter().chain(unknown));
            match parsed.outcome {
                Outcome::Valid(object) | Outcome::Partial(object) => {
                    assert_eq!(Some(object.key()), parsed.key);
                    self.event(SourceEvent::Apply(object));
                }
                Outcome::Invalid | Outcome::Ignored => {}
            }
        }
    }

    #[track_caller]
    fn delete(&mut self, text: &str) {
        let (documents, _) = objects(Path::new("test.yaml"), text, &mut self.parser);
        for document in documents {
            self.event(SourceEvent::Delete(document.parsed.key.unwrap()));
        }
    }

    fn event(&mut self, event: SourceEvent) {
        for change in self.index.apply(event).changes {
            self.world.apply(change);
        }
    }

    /// The fields of all errors.
    fn errors(&self) -> Vec<&str> {
        self.fields(Severity::Error)
    }

    fn warnings(&self) -> Vec<&str> {
        self.fields(Severity::Warning)
    }

    fn fields(&self, severity: Severity) -> Vec<&str> {
        for problem in &self.problems {
            assert!(!problem.remedy.is_empty(), "{problem}");
        }
        let of = self.problems.iter().filter(|problem| problem.severity == severity);
        of.map(|problem| problem.field.as_deref().unwrap_or_default()).collect()
    }

    fn judge(&self, direction: Direction, from: &str, to: &str, what: &str) -> Judgement {
        self.judge_with(direction, from, to, what, false)
    }

    /// As if staged policies were enforced, for what the pod receives.
    fn staged(&self, from: &str, to: &str, what: &str) -> Judgement {
        self.judge_with(Direction::Ingress, from, to, what, true)
    }

    fn judge_with(&self, direction: Direction, from: &str, to: &str, what: &str, staged: bool) -> Judgement {
        let traffic = traffic(what);
        let (from_address, to_address) = (address(from, traffic.v6), address(to, traffic.v6));
        let (pod, local_addr, peer_addr) = match direction {
            Direction::Ingress => (to, to_address, from_address),
            Direction::Egress => (from, from_address, to_address),
        };
        let (namespace, name) = pod.split_once('/').unwrap();
        let flow = Flow {
            endpoint: PeerKey {
                kind: EntityKind::Pod,
                namespace: Some(namespace.into()),
                name: name.into(),
            },
            direction,
            local_addr,
            peer_addr,
            protocol: traffic.protocol,
            source_port: 40_000,
            destination_port: traffic.port,
            icmp: traffic.icmp,
        };
        let judgement = self.world.judge(&flow);
        // Told from nothing it is the same world.
        let mut again = World::new();
        self.index.snapshot().into_iter().for_each(|change| again.apply(change));
        assert_eq!(again.judge(&flow), judgement);
        if staged {
            self.world.judge_staged(&flow)
        } else {
            judgement
        }
    }

    /// Both ends must allow; who is no pod has no policies.
    fn reaches(&self, from: &str, to: &str, what: &str) -> bool {
        let ends = [(Direction::Egress, from), (Direction::Ingress, to)];
        ends.into_iter()
            .filter(|(_, end)| end.contains('/'))
            .all(|(direction, _)| self.judge(direction, from, to, what).allow)
    }

    /// All that reach it.
    fn reach(&self, to: &str, what: &str) -> String {
        list(|from| from != to && self.reaches(from, to, what))
    }

    /// All that it reaches.
    fn reached_by(&self, from: &str, what: &str) -> String {
        list(|to| from != to && self.reaches(from, to, what))
    }

    /// What decided, as tier, policy and rule.
    fn decided(&self, direction: Direction, from: &str, to: &str, what: &str) -> Vec<String> {
        let hits = self.judge(direction, from, to, what).hits;
        hits.into_iter()
            .map(|hit| match hit {
                Hit::Rule {
                    tier,
                    policy,
                    index,
                    action,
                    ..
                } => format!("{tier} {} {index} {action:?}", policy.name),
                Hit::EndOfTier {
                    tier, policy, action, ..
                } => format!("{tier} {} end {action:?}", policy.name),
                Hit::Profile => "profile".to_owned(),
            })
            .collect()
    }
}

fn list(wanted: impl Fn(&str) -> bool) -> String {
    let names: Vec<&str> = EVERYBODY.into_iter().filter(|name| wanted(name)).collect();
    names.join(" ")
}

fn address(name: &str, v6: bool) -> IpAddr {
    let (four, six) = match name {
        "prod/web" => ("10.0.0.1", "fd00::1"),
        "prod/api" => ("10.0.0.2", "fd00::2"),
        "dev/web" => ("10.0.1.1", "fd00:1::1"),
        "good" => ("198.51.100.10", "2001:db8:1::10"),
        "bad" => ("203.0.113.66", "2001:db8:2::66"),
        other => (other, other),
    };
    if v6 { six } else { four }.parse().unwrap()
}

struct Traffic {
    protocol: u8,
    port: u16,
    icmp: Option<(u8, u8)>,
    v6: bool,
}

/// As in `tcp/80`, `udp6/53`, `icmp/8/0`, `47`.
fn traffic(what: &str) -> Traffic {
    let mut parts = what.split('/');
    let name = parts.next().unwrap();
    let numbers: Vec<u16> = parts.map(|part| part.parse().unwrap()).collect();
    let v6 = name.ends_with('6') && name != "6";
    let protocol = match name {
        "tcp" | "tcp6" => 6,
        "udp" | "udp6" => 17,
        "sctp" => 132,
        "icmp" => 1,
        "icmp6" => 58,
        number => number.parse().unwrap(),
    };
    let icmp = matches!(protocol, 1 | 58).then(|| (numbers[0].to_be_bytes()[1], numbers[1].to_be_bytes()[1]));
    Traffic {
        protocol,
        port: if icmp.is_some() {
            0
        } else {
            numbers.first().copied().unwrap_or(0)
        },
        icmp,
        v6,
    }
}

fn global(spec: &str) -> String {
    format!(
        "{{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {{name: p}}, spec: {{{spec}}}}}\n"
    )
}

fn namespaced(spec: &str) -> String {
    format!(
        "{{apiVersion: crd.projectcalico.org/v1, kind: NetworkPolicy, metadata: {{namespace: prod, name: p}}, spec: {{{spec}}}}}\n"
    )
}

/// Everybody but the pod itself.
fn all_but(name: &str) -> String {
    list(|other| other != name)
}
