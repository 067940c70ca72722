//! What comes from the node, what only looks as if it did, and what comes from an address that is not the pod's.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weir_tests::{
    lab::{
        Families, Family, Layout, NetNs, agent::AgentOptions, agent::Attach, ip::Batch, probe::Protocol,
        probe::Verdict, probe::packet,
    },
    world::{Plan, World},
};

const DENY_ALL: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: x}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
";

fn plan(layout: Layout, attach: Attach) -> Plan {
    Plan {
        layout,
        pods: vec![("x/a", "node-1"), ("x/b", "node-1"), ("y/c", "node-2")],
        options: AgentOptions {
            attach,
            ..AgentOptions::default()
        },
        ..Plan::one_node(&[])
    }
}

fn the_node_reaches_its_own_pods_only(layout: Layout, attach: Attach) -> Result<()> {
    World::new(&plan(layout, attach))?.check(|world| {
        world.policy("deny", DENY_ALL)?;
        for family in [Family::V4, Family::V6] {
            for (protocol, port) in weir_tests::world::PORTS {
                let mut ask = |from: &str, expected| -> Result<()> {
                    let verdict = world.verdict(from, "x/a", family, protocol, port)?;
                    ensure!(
                        verdict == expected,
                        "{from} -> x/a {family:?} {protocol} {port}: {verdict}"
                    );
                    Ok(())
                };
                ask("node/node-1", Verdict::Allow)?;
                ask("node/node-2", Verdict::Deny)?;
                ask("x/b", Verdict::Deny)?;
            }
        }
        Ok(())
    })
}

#[test]
fn the_node_reaches_its_own_pods_only_routed_tcx() -> Result<()> {
    the_node_reaches_its_own_pods_only(Layout::Routed, Attach::Tcx)
}

#[test]
fn the_node_reaches_its_own_pods_only_bridge_tcx() -> Result<()> {
    the_node_reaches_its_own_pods_only(Layout::Bridge, Attach::Tcx)
}

#[test]
fn the_node_reaches_its_own_pods_only_branch_tc() -> Result<()> {
    the_node_reaches_its_own_pods_only(Layout::Branch, Attach::Tc)
}

/// Loads rules of nftables into a namespace.
fn nft(netns: &NetNs, rules: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    netns.command(&mut command)?;
    let mut child = command.spawn().context("start nft (Debian: apt install nftables)")?;
    child.stdin.take().context("nft's input")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "nft: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[test]
fn forwarded_traffic_that_is_masqueraded_to_the_nodes_address_is_judged() -> Result<()> {
    let plan = Plan {
        families: Families::V4,
        ..plan(Layout::Routed, Attach::Tcx)
    };
    World::without_agents(&plan)?.check(|world| {
        world.add_external("client", Ipv4Addr::new(203, 0, 113, 10))?;
        let node = world.lab.address("node/node-1", Family::V4)?;
        let pod = world.lab.address("x/a", Family::V4)?;
        // What kube-proxy does for a NodePort.
        nft(
            &world.lab.node("node-1")?.netns,
            &format!(
                "table ip nat {{
                   chain prerouting {{ type nat hook prerouting priority dstnat; ip daddr {node} tcp dport 30080 dnat to {pod}:80; }}
                   chain postrouting {{ type nat hook postrouting priority srcnat; ct status dnat masquerade; }}
                 }}"
            ),
        )?;
        let outside = |world: &mut World| world.verdict("ext/client", "node/node-1", Family::V4, Protocol::Tcp, 30080);
        ensure!(outside(world)? == Verdict::Allow, "the node does not forward its port before there is an agent");

        world.manifests.text("deny", DENY_ALL)?;
        world.start_agents()?;
        ensure!(outside(world)? == Verdict::Deny, "masqueraded traffic passed as the node's own");
        ensure!(
            world.verdict("node/node-1", "x/a", Family::V4, Protocol::Tcp, 80)? == Verdict::Allow,
            "the node's own traffic was stopped"
        );
        // It comes from a node's address: a policy can name that.
        world.policy(
            "node",
            &format!(
                "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: node, namespace: x}}
spec:
  podSelector: {{}}
  ingress:
  - from:
    - ipBlock: {{cidr: {node}/32}}
"
            ),
        )?;
        ensure!(outside(world)? == Verdict::Allow, "a rule for the node's address does not admit what has it");
        Ok(())
    })
}

/// Sends a marked datagram from an address that is not the pod's.
fn spoof(world: &World, from: &str, source: SocketAddr, to: SocketAddr, token: u64) -> Result<()> {
    let netns = world.lab.host(from)?.0;
    let bits = if source.is_ipv4() { 32 } else { 128 };
    let mut batch = Batch::default();
    batch.add(format!("addr replace {}/{bits} dev lo", source.ip()));
    batch.run(netns)?;
    netns.run(|| {
        // An IPv6 address can be bound to a moment after it was added.
        let mut bound = UdpSocket::bind(source);
        for _ in 0..100 {
            if bound.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
            bound = UdpSocket::bind(source);
        }
        let socket = bound.with_context(|| format!("bind {source}"))?;
        socket.send_to(&packet::mark(token), to)?;
        Ok(())
    })
}

fn a_false_source_address_is_stopped(attach: Attach) -> Result<()> {
    let pods = vec![
        ("x/liar", "node-1"),
        ("x/victim", "node-1"),
        ("x/server", "node-1"),
        ("y/far", "node-2"),
    ];
    let plan = Plan {
        pods,
        ..plan(Layout::Routed, attach)
    };
    World::without_agents(&plan)?.check(|world| {
        // Addresses of another pod of the node, of another node's pod, and of nobody.
        let mut sources: Vec<IpAddr> = vec![Ipv4Addr::new(192, 0, 2, 77).into()];
        for family in [Family::V4, Family::V6] {
            sources.push(world.lab.address("x/victim", family)?);
            sources.push(world.lab.address("y/far", family)?);
        }
        let mut token = 1 << 62;
        let mut arrives = |world: &World, source: IpAddr| -> Result<bool> {
            token += 1;
            let to = SocketAddr::new(world.lab.address("x/server", Family::of(source))?, 81);
            spoof(world, "x/liar", SocketAddr::new(source, 4_321), to, token)?;
            for _ in 0..50 {
                if world.servers.arrival(token).is_some() {
                    return Ok(true);
                }
                std::thread::sleep(Duration::from_millis(4));
            }
            Ok(false)
        };
        for &source in &sources {
            ensure!(
                arrives(world, source)?,
                "without an agent a packet from {source} does not arrive"
            );
        }
        world.start_agents()?;
        for &source in &sources {
            ensure!(!arrives(world, source)?, "a packet from {source} arrived");
            world.await_flow("node-1", |flow| {
                flow.ip.source == source && flow.weir.reason.as_deref() == Some("INVALID_SOURCE_IP")
            })?;
        }
        world.expect(&[("x/liar", "x/server", 81, Verdict::Allow)])
    })
}

#[test]
fn a_false_source_address_is_stopped_tcx() -> Result<()> {
    a_false_source_address_is_stopped(Attach::Tcx)
}

#[test]
fn a_false_source_address_is_stopped_tc() -> Result<()> {
    a_false_source_address_is_stopped(Attach::Tc)
}
