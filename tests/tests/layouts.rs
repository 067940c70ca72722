//! The same policy in every layout of pod links, over both families, on two nodes.

use anyhow::{Result, ensure};
use weir_tests::{
    lab::{Layout, PodPlan, agent::AgentOptions, agent::Attach, probe::Verdict},
    world::{Plan, World},
};

/// Everybody in x takes from x/client on port 80 only; nobody in x opens connections but to x.
const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: x, namespace: x}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {pod: client}}
    ports:
    - {protocol: TCP, port: 80}
    - {protocol: UDP, port: 80}
    - {protocol: SCTP, port: 80}
  egress:
  - to:
    - podSelector: {}
";

fn policy_holds(layout: Layout, attach: Attach) -> Result<()> {
    let plan = Plan {
        layout,
        pods: vec![
            ("x/client", "node-1"),
            ("x/near", "node-1"),
            ("x/far", "node-2"),
            ("y/near", "node-1"),
            ("y/far", "node-2"),
        ],
        options: AgentOptions {
            attach,
            ..AgentOptions::default()
        },
        ..Plan::one_node(&[])
    };
    World::new(&plan)?.check(|world| {
        // Without policy everybody reaches everybody.
        let hosts = ["x/client", "x/near", "x/far", "y/near", "y/far"];
        let all: Vec<_> = hosts
            .iter()
            .flat_map(|from| hosts.iter().map(|to| (*from, *to, 80, Verdict::Allow)))
            .collect();
        world.expect(&all)?;
        world.policy("x", POLICY)?;
        let mut table = Vec::new();
        for from in hosts {
            for to in hosts {
                for port in [80, 81] {
                    let into_x = !to.starts_with("x/") || (from == "x/client" && port == 80);
                    let out_of_x = !from.starts_with("x/") || to.starts_with("x/");
                    let allowed = from == to || (into_x && out_of_x);
                    table.push((from, to, port, if allowed { Verdict::Allow } else { Verdict::Deny }));
                }
            }
        }
        world.expect(&table)?;
        for node in ["node-1", "node-2"] {
            let status = world.status(node)?;
            let pods = world.lab.pods().filter(|(_, pod)| pod.node == node).count();
            ensure!(
                status.endpoints.len() == pods,
                "{node} knows {} of {pods} pods",
                status.endpoints.len()
            );
            for endpoint in &status.endpoints {
                let link = world.lab.pod(&format!("{}/{}", endpoint.namespace, endpoint.pod))?;
                ensure!(
                    endpoint.interface.as_deref() == Some(&link.interface),
                    "{}/{} is said to be on {:?}, and is on {}",
                    endpoint.namespace,
                    endpoint.pod,
                    endpoint.interface,
                    link.interface
                );
            }
        }
        // A pod that comes and one that goes.
        world.add_pods(&[PodPlan::new("x/late", "node-1")])?;
        world.remove_pod("y/near")?;
        world.enforced()?;
        world.expect(&[
            ("x/client", "x/late", 80, Verdict::Allow),
            ("x/client", "x/late", 81, Verdict::Deny),
            ("y/far", "x/late", 80, Verdict::Deny),
            ("x/late", "y/far", 80, Verdict::Deny),
        ])
    })
}

#[test]
fn routed_tcx() -> Result<()> {
    policy_holds(Layout::Routed, Attach::Tcx)
}

#[test]
fn routed_tc() -> Result<()> {
    policy_holds(Layout::Routed, Attach::Tc)
}

#[test]
fn point_to_point_tcx() -> Result<()> {
    policy_holds(Layout::PointToPoint, Attach::Tcx)
}

#[test]
fn bridge_tcx() -> Result<()> {
    policy_holds(Layout::Bridge, Attach::Tcx)
}

#[test]
fn bridge_tc() -> Result<()> {
    policy_holds(Layout::Bridge, Attach::Tc)
}

#[test]
fn branch_tcx() -> Result<()> {
    policy_holds(Layout::Branch, Attach::Tcx)
}
