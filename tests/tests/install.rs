//! An agent that is installed under running connections takes over those that policy allows.

use std::time::Duration;

use anyhow::{Result, ensure};
use weir_tests::{
    lab::{Family, agent::AgentOptions, agent::Attach, probe::Verdict},
    traffic::Traffic,
    world::{Plan, World},
};

const ECHO: Duration = Duration::from_millis(500);

/// x/server takes connections from x/a; x/client opens none but to x/server.
const POLICIES: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: x}
spec:
  podSelector: {matchLabels: {pod: server}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {pod: a}}
";

fn running_connections_are_adopted(attach: Attach, second: &'static str) -> Result<()> {
    let plan = Plan {
        pods: vec![("x/server", "node-1"), ("x/a", second), ("x/b", "node-1")],
        options: AgentOptions {
            attach,
            ..AgentOptions::default()
        },
        ..Plan::one_node(&[])
    };
    World::without_agents(&plan)?.check(|world| {
        world.manifests.text("server", POLICIES)?;
        let mut allowed = Vec::new();
        let mut forbidden = Vec::new();
        let mut backward = Vec::new();
        let mut traffic = Vec::new();
        for family in [Family::V4, Family::V6] {
            allowed.push(world.connect("x/a", "x/server", family, 80)?);
            forbidden.push(world.connect("x/b", "x/server", family, 80)?);
            // The server's own connection, which its egress policy does not allow.
            backward.push(world.connect("x/server", "x/b", family, 80)?);
            traffic.push(Traffic::start(world, family, ("x/a", "x/server"), None)?);
        }
        for connection in allowed.iter_mut().chain(&mut forbidden).chain(&mut backward) {
            ensure!(
                connection.echo(ECHO)?,
                "a connection does not echo before there is an agent"
            );
        }
        world.start_agents()?;
        for connection in &mut allowed {
            ensure!(
                connection.echo(ECHO)?,
                "a running connection that policy allows was cut"
            );
            ensure!(connection.retransmitted()? == 0, "a running connection lost packets");
        }
        for traffic in traffic {
            let report = traffic.stop(world)?;
            ensure!(
                !report.broken && report.retransmitted == 0,
                "a running connection was harmed: {report:?}"
            );
            // A question that passed before the programs were there, and whose answer came after: nothing tells that
            // answer from a flow that the server opens, which policy forbids. One of each kind can be on its way.
            ensure!(
                report.lost <= 1 && report.refused <= 1,
                "more than what was on its way was lost: {report:?}"
            );
        }
        for connection in &mut forbidden {
            ensure!(
                !connection.echo(ECHO)?,
                "a running connection that policy forbids lives on"
            );
        }
        world.expect(&[
            ("x/a", "x/server", 80, Verdict::Allow),
            ("x/b", "x/server", 80, Verdict::Deny),
        ])
    })
}

#[test]
fn running_connections_are_adopted_tcx_one_node() -> Result<()> {
    running_connections_are_adopted(Attach::Tcx, "node-1")
}

#[test]
fn running_connections_are_adopted_tc_two_nodes() -> Result<()> {
    running_connections_are_adopted(Attach::Tc, "node-2")
}
