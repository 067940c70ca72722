//! An agent that is installed under running connections takes over those that policy allows.

use anyhow::{Result, ensure};
use weir_tests::{
    lab::{Family, agent::AgentOptions, agent::Attach, probe::Verdict},
    traffic::Traffic,
    world::{Plan, World},
};

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

/// What of one kind of traffic the kernel itself may lose while the programs are attached to the two interfaces that it
/// crosses. A new clsact qdisc takes the transmit queue of its interface away for a moment (`qdisc_graft` in
/// net/sched/sch_api.c deactivates the device; the drop reason is QDISC_DROP). TCX needs no qdisc.
fn taken_by_the_kernel(attach: Attach) -> u64 {
    match attach {
        Attach::Tc => 2,
        Attach::Tcx => 0,
    }
}

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
                connection.echoes()?,
                "a connection does not echo before there is an agent"
            );
        }
        world.start_agents()?;
        // A question that passed before the programs were there, and whose answer came after: nothing tells that answer
        // from a flow that the server opens, which policy forbids. One of each kind can be on its way.
        let on_its_way = 1;
        for connection in &mut allowed {
            ensure!(connection.echoes()?, "a running connection that policy allows was cut");
            ensure!(connection.lost()? == 0, "a running connection lost packets");
        }
        for traffic in traffic {
            let report = traffic.stop(world)?;
            ensure!(
                !report.broken && u64::from(report.lost_segments) <= taken_by_the_kernel(attach),
                "a running connection was harmed: {report:?}"
            );
            let at_most = on_its_way + taken_by_the_kernel(attach);
            ensure!(
                report.lost <= at_most && report.refused <= at_most,
                "more than what was on its way was lost: {report:?}"
            );
        }
        for connection in &mut forbidden {
            ensure!(
                connection.is_cut()?,
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
