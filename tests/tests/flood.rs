//! A flood of first packets: live connections stay, and what the table forgot is reported.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use weir_tests::{
    lab::{Families, Family, ip::Batch, probe::socket},
    traffic::Traffic,
    world::{Plan, World},
};

/// SYNs of the flood: three times what the table of unconfirmed connections holds.
const SYNS: u32 = 200_000;

const ALLOW_PORT_80: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: x}
spec:
  podSelector: {matchLabels: {pod: server}}
  policyTypes: [Ingress]
  ingress:
  - ports:
    - {protocol: TCP, port: 80}
    - {protocol: UDP, port: 80}
";

/// Sends SYNs from ever new addresses outside of the cluster (RFC 2544's 198.18.0.0/15).
fn flood(socket: &std::os::fd::OwnedFd, server: Ipv4Addr) -> Result<u32> {
    let mut sent = 0;
    for number in 0..SYNS {
        let [_, low @ ..] = number.to_be_bytes();
        let source = [198, 18 | (low[0] & 1), low[1], low[2]];
        let port = 1024 + u16::try_from(number % 60_000)?;
        let mut bytes = Vec::with_capacity(40);
        PacketBuilder::ipv4(source, server.octets(), 64)
            .tcp(port, 80, number, 1024)
            .syn()
            .write(&mut bytes, &[])?;
        sent += u32::from(socket::send_to(socket, &bytes, SocketAddr::new(IpAddr::V4(server), 0)).is_ok());
    }
    Ok(sent)
}

#[test]
fn a_syn_flood_does_not_harm_live_connections_and_evictions_are_reported() -> Result<()> {
    let plan = Plan {
        families: Families::V4,
        ..Plan::one_node(&["x/server", "x/a"])
    };
    World::new(&plan)?.check(|world| {
        world.add_external("flood", Ipv4Addr::new(203, 0, 113, 66))?;
        // One neighbour for all the false addresses: the kernel's table of neighbours is not what is flooded here.
        let mut route = Batch::default();
        route.add("route add 198.18.0.0/15 via 203.0.113.66 dev eth0 onlink");
        route.run(&world.lab.node("node-1")?.netns)?;
        world.policy("server", ALLOW_PORT_80)?;
        let mut idle = Vec::new();
        for _ in 0..64 {
            idle.push(world.connect("x/a", "x/server", Family::V4, 80)?);
        }
        for connection in &mut idle {
            ensure!(connection.echoes()?, "a fresh connection does not echo");
        }
        let IpAddr::V4(server) = world.lab.address("x/server", Family::V4)? else {
            unreachable!("asked for IPv4")
        };
        let netns = world.lab.host("ext/flood")?.0;
        // 255: raw IP, headers included.
        let socket = netns.run(|| socket::raw(Family::V4, 255).context("open a raw socket"))?;
        let sent = flood(&socket, server)?;
        ensure!(sent > SYNS / 2, "only {sent} SYNs of {SYNS} could be sent");

        for connection in &mut idle {
            ensure!(connection.echoes()?, "a live connection was lost in the flood");
            ensure!(connection.lost()? == 0, "a live connection lost packets");
        }
        // Afterwards everything is as before.
        let traffic = Traffic::start(world, Family::V4, ("x/a", "x/server"), None)?;
        thread::sleep(Duration::from_millis(200));
        traffic.stop(world)?.unharmed()?;

        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let evictions = world.status("node-1")?.evictions;
            ensure!(
                evictions.confirmed == 0,
                "confirmed connections were evicted: {evictions:?}"
            );
            if evictions.unconfirmed > 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "no evictions are reported after {sent} SYNs");
            thread::sleep(Duration::from_millis(200));
        }
    })
}
