//! Calico's policies on real packets, beyond the reachability cases: what the EKS guides show, and auditing.

use anyhow::{Result, ensure};
use weir::{control::query::Dump, flow::json};
use weir_tests::{
    lab::{Family, agent::AgentOptions, probe::Protocol, probe::Verdict},
    world::{ENFORCED, Plan, World},
};

fn plan() -> Plan {
    Plan::one_node(&["x/web", "x/batch", "kube-system/dns"])
}

#[track_caller]
fn expect(world: &mut World, questions: &[(&str, &str, Protocol, u16, Verdict)]) -> Result<()> {
    for &(from, to, protocol, port, expected) in questions {
        for family in [Family::V4, Family::V6] {
            let verdict = world.verdict(from, to, family, protocol, port)?;
            ensure!(
                verdict == expected,
                "{from} -> {to} {family:?} {protocol} {port}: {verdict}, not {expected}"
            );
        }
    }
    Ok(())
}

/// Only labelled pods reach the API server, which is no pod.
#[test]
fn the_api_server_is_for_labelled_pods() -> Result<()> {
    World::new(&plan())?.check(|world| {
        world.add_external("api", "198.51.100.1".parse()?)?;
        let slices: String = [Family::V4, Family::V6]
            .into_iter()
            .map(|family| {
                let address = world.lab.address("ext/api", family)?;
                let kind = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                Ok(format!(
                    "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kubernetes-{}, namespace: default, labels: {{kubernetes.io/service-name: kubernetes}}}}
addressType: {kind}
endpoints: [{{addresses: [\"{address}\"]}}]
ports: [{{name: https, port: 80, protocol: TCP}}]
",
                    kind.to_lowercase()
                ))
            })
            .collect::<Result<_>>()?;
        world.manifests.text("kubernetes", &slices)?;
        world.policy(
            "protect",
            "apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: allow-kube-api}
spec:
  order: 10
  selector: pod == 'web'
  types: [Egress]
  egress:
  - action: Allow
    destination: {services: {name: kubernetes, namespace: default}}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: deny-kube-api}
spec:
  order: 20
  namespaceSelector: kubernetes.io/metadata.name not in {'kube-system'}
  types: [Egress]
  egress:
  - action: Deny
    destination: {services: {name: kubernetes, namespace: default}}
  - action: Allow
",
        )?;
        let (allow, deny) = (Verdict::Allow, Verdict::Deny);
        expect(
            world,
            &[
                ("x/web", "ext/api", Protocol::Tcp, 80, allow),
                ("x/batch", "ext/api", Protocol::Tcp, 80, deny),
                ("x/batch", "ext/api", Protocol::Tcp, 81, allow),
                ("x/batch", "ext/api", Protocol::Udp, 80, allow),
                ("kube-system/dns", "ext/api", Protocol::Tcp, 80, allow),
                ("x/batch", "x/web", Protocol::Tcp, 80, allow),
            ],
        )?;
        // The endpoint moves to another port: the rules go with it.
        world
            .manifests
            .text("kubernetes", &slices.replace("port: 80", "port: 81"))?;
        world.enforced()?;
        expect(
            world,
            &[
                ("x/batch", "ext/api", Protocol::Tcp, 80, allow),
                ("x/batch", "ext/api", Protocol::Tcp, 81, deny),
                ("x/web", "ext/api", Protocol::Tcp, 81, allow),
            ],
        )
    })
}

/// The first two policies of the guides: nothing goes, but names are resolved.
const DEFAULT_DENY: &str = "apiVersion: crd.projectcalico.org/v1
kind: GlobalNetworkPolicy
metadata:
  name: default-deny
spec:
  namespaceSelector: kubernetes.io/metadata.name not in {'kube-system'}
  types:
  - Ingress
  - Egress
---
apiVersion: crd.projectcalico.org/v1
kind: GlobalNetworkPolicy
metadata:
  name: allow-dns-egress
spec:
  selector: all()
  types:
  - Egress
  egress:
  - action: Allow
    protocol: UDP
    destination:
      namespaceSelector: kubernetes.io/metadata.name == \"kube-system\"
      ports:
      - 80
";

#[test]
fn default_deny_lets_names_be_resolved() -> Result<()> {
    World::new(&plan())?.check(|world| {
        world.policy("guide", DEFAULT_DENY)?;
        expect(
            world,
            &[
                ("x/web", "kube-system/dns", Protocol::Udp, 80, Verdict::Allow),
                ("x/web", "kube-system/dns", Protocol::Udp, 81, Verdict::Deny),
                ("x/web", "kube-system/dns", Protocol::Tcp, 80, Verdict::Deny),
                ("x/web", "x/batch", Protocol::Tcp, 80, Verdict::Deny),
                ("kube-system/dns", "x/web", Protocol::Tcp, 80, Verdict::Deny),
            ],
        )
    })
}

/// An auditing agent drops nothing and says what it would have dropped, and by which policy.
#[test]
fn an_auditing_agent_reports_and_drops_nothing() -> Result<()> {
    let mut plan = plan();
    plan.options = AgentOptions {
        arguments: vec!["--audit".to_owned()],
        ..AgentOptions::default()
    };
    World::new(&plan)?.check(|world| {
        world.policy("guide", DEFAULT_DENY)?;
        expect(world, &[("x/web", "x/batch", Protocol::Tcp, 80, Verdict::Allow)])?;
        ensure!(world.status("node-1")?.audit, "status does not say that it only audits");
        world.await_flow("node-1", |flow| {
            flow.verdict == json::Verdict::Audit
                && flow
                    .weir
                    .policy
                    .as_ref()
                    .is_some_and(|policy| policy.name == "default-deny")
        })?;
        // Started again without the flag, it enforces.
        let agent = world.agent("node-1")?;
        agent.options().arguments.clear();
        agent.terminate()?;
        agent.spawn()?;
        agent.wait(ENFORCED)?;
        world.enforced()?;
        expect(world, &[("x/web", "x/batch", Protocol::Tcp, 80, Verdict::Deny)])?;
        ensure!(!world.status("node-1")?.audit, "status says that it only audits");
        Ok(())
    })
}

const COUNTED: &str = "apiVersion: projectcalico.org/v3
kind: Tier
metadata: {name: first}
spec: {order: 1}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: counted}
spec:
  tier: first
  selector: pod == 'web'
  types: [Ingress]
  ingress:
  - {action: Log, protocol: TCP}
  - {action: Pass, protocol: TCP, destination: {ports: [80]}}
  - {action: Allow, protocol: UDP}
  - {action: Deny, protocol: SCTP, source: {nets: [203.0.113.0/24]}}
";

/// Rule and hits of a policy, as `weir status --rules` has them; the end of its tier has no rule.
fn hits(world: &mut World) -> Result<Vec<(Option<u64>, u64)>> {
    let output = world.agent("node-1")?.verb(["status", "--rules", "-o", "json"])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dump: Dump = serde_json::from_slice(&output.stdout)?;
    let counted = dump.rows.iter().filter(|row| row["policy"] == "counted");
    Ok(counted
        .map(|row| (row["rule"].as_u64(), row["hits"].as_u64().unwrap_or_default()))
        .collect())
}

/// Rules are counted, Log and Pass too, and those never hit are listed; a changed policy forgets nothing.
#[test]
fn rules_are_counted() -> Result<()> {
    World::new(&plan())?.check(|world| {
        world.policy("counted", COUNTED)?;
        ensure!(
            hits(world)? == [0, 1, 2, 3].map(|rule| (Some(rule), 0)),
            "{:?}",
            hits(world)?
        );
        let ask = |world: &mut World, protocol, port| world.verdict("x/batch", "x/web", Family::V4, protocol, port);
        ensure!(ask(world, Protocol::Tcp, 80)? == Verdict::Allow);
        ensure!(ask(world, Protocol::Tcp, 80)? == Verdict::Allow);
        ensure!(ask(world, Protocol::Udp, 81)? == Verdict::Allow);
        let first = [(Some(0), 2), (Some(1), 2), (Some(2), 1), (Some(3), 0)];
        ensure!(hits(world)? == first, "{:?}", hits(world)?);
        // Other decisions, other counters in the kernel.
        world.policy("counted", &COUNTED.replace("203.0.113.0/24", "203.0.112.0/24"))?;
        std::thread::sleep(std::time::Duration::from_millis(300));
        ensure!(hits(world)? == first, "after a change: {:?}", hits(world)?);
        ensure!(ask(world, Protocol::Udp, 80)? == Verdict::Allow);
        ensure!(ask(world, Protocol::Tcp, 81)? == Verdict::Deny);
        let now = hits(world)?;
        // A denied connection is tried several times.
        ensure!(
            now[0].1 > 2 && now[1..4] == [(Some(1), 2), (Some(2), 2), (Some(3), 0)],
            "{now:?}"
        );
        ensure!(
            now.len() == 5 && now[4].0.is_none() && now[4].1 == now[0].1 - 2,
            "{now:?}"
        );
        Ok(())
    })
}

const STAGED: &str = "apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: {name: planned}
spec:
  selector: pod == 'web'
  types: [Ingress]
  ingress:
  - {action: Deny, protocol: TCP, destination: {ports: [80]}}
  - {action: Allow}
";

/// A staged policy drops nothing; flow records, explain and status say what it would do.
#[test]
fn staged_policies_show_what_they_would_do() -> Result<()> {
    World::new(&plan())?.check(|world| {
        world.policy("planned", STAGED)?;
        let allow = Verdict::Allow;
        expect(
            world,
            &[
                ("x/batch", "x/web", Protocol::Tcp, 80, allow),
                ("x/batch", "x/web", Protocol::Tcp, 81, allow),
            ],
        )?;
        for (port, verdict, rule) in [(80, json::Verdict::Dropped, 0), (81, json::Verdict::Forwarded, 1)] {
            world.await_flow("node-1", |flow| {
                let to_port = flow.l4.and_then(|l4| l4.ports()).is_some_and(|(_, to)| to == port);
                to_port
                    && flow.verdict == json::Verdict::Forwarded
                    && flow.weir.staged.as_ref().is_some_and(|staged| {
                        let last = staged.hits.last();
                        let by_rule = last.is_some_and(|hit| {
                            hit.rule == Some(rule) && hit.policy.as_ref().is_some_and(|policy| policy.name == "planned")
                        });
                        staged.verdict == verdict && by_rule
                    })
            })?;
        }
        let staged = world.status("node-1")?.staged;
        ensure!(staged.len() == 1 && staged[0].name == "planned", "status: {staged:?}");
        let output = world.agent("node-1")?.verb(["explain", "x/batch", "x/web", "80"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.contains("with staged policies: DROPPED"), "explain: {text}");
        // Unstaged, nobody speaks of it any more.
        world.remove_policy("planned")?;
        let udp = weir_tests::world::PORTS[2];
        expect(world, &[("x/batch", "x/web", udp.0, udp.1, allow)])?;
        world.await_flow("node-1", |flow| {
            matches!(flow.l4, Some(json::Layer4::Udp { .. })) && flow.weir.staged.is_none()
        })
    })
}
