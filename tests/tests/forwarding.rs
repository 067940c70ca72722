//! Who carries packets between pods of one node: handed over directly where nothing needs the kernel's forwarding, and
//! by the kernel where something does. What policies allow, what is counted and what breaks is the same either way.

use std::{
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt::ReuseAddr,
};
use weir::flow::json::{FlowEvent, Layer4, Line};
use weir_tests::{
    connection::Connection,
    lab::{Family, Layout, agent::AgentOptions, agent::Attach, probe::Verdict},
    traffic::Traffic,
    world::{ENFORCED, Plan, World},
};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// By then the agent has looked again, also on a slow machine.
const NOTICED: Duration = Duration::from_secs(40);
const ROUND_TRIPS: u64 = 100;

const VIP4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 96, 0, 0, 0, 0, 0, 1);

/// x/client and x/near on one node, x/far on another.
fn plan(layout: Layout, attach: Attach, forward: &str) -> Plan {
    Plan {
        layout,
        pods: vec![("x/client", "node-1"), ("x/near", "node-1"), ("x/far", "node-2")],
        options: AgentOptions {
            attach,
            arguments: vec!["--forward".into(), forward.into()],
            ..AgentOptions::default()
        },
        ..Plan::one_node(&[])
    }
}

/// Waits until the agent of node-1 says that packets are handed over directly (or are not, with this in the reason).
fn await_forwarding(world: &World, expected: Result<(), &str>) -> Result<()> {
    let deadline = Instant::now() + NOTICED;
    loop {
        let status = world.status("node-1")?;
        let found = match (&status.forwarding.reason, expected) {
            (None, Ok(())) => status.forwarding.direct,
            (Some(reason), Err(part)) => !status.forwarding.direct && reason.contains(part),
            _ => false,
        };
        if found {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "not {expected:?} but {:?}",
            status.forwarding
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the agent of node-1 says why the kernel forwards a pod's packets, or that it does not.
fn await_endpoint(world: &World, pod: &str, expected: Option<&str>) -> Result<()> {
    let deadline = Instant::now() + NOTICED;
    loop {
        let status = world.status("node-1")?;
        let endpoint = status.endpoints.iter().find(|endpoint| endpoint.pod == pod);
        let reason = endpoint.context("no such pod")?.forwarding.as_deref();
        if match (reason, expected) {
            (None, None) => true,
            (Some(reason), Some(part)) => reason.contains(part),
            _ => false,
        } {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not {expected:?} but {reason:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Packets that the kernel of a node has forwarded.
fn forwarded(world: &World, family: Family) -> Result<u64> {
    world.lab.node("node-1")?.netns.run(|| match family {
        Family::V4 => {
            let text = fs::read_to_string("/proc/thread-self/net/snmp")?;
            let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
            let (names, values) = (lines.next().context("names")?, lines.next().context("values")?);
            let at = names.split(' ').position(|name| name == "ForwDatagrams");
            Ok(values
                .split(' ')
                .nth(at.context("no ForwDatagrams")?)
                .context("a value")?
                .parse()?)
        }
        Family::V6 => {
            let text = fs::read_to_string("/proc/thread-self/net/snmp6")?;
            let line = text.lines().find(|line| line.starts_with("Ip6OutForwDatagrams"));
            let value = line.context("no Ip6OutForwDatagrams")?.split_whitespace().last();
            Ok(value.context("a value")?.parse()?)
        }
    })
}

fn echo(connection: &mut Connection, times: u64) -> Result<()> {
    for round in 0..times {
        ensure!(connection.echoes()?, "round trip {round} was lost");
    }
    Ok(())
}

/// How many packets the kernel forwards while a connection carries so many round trips.
fn forwarded_by(world: &World, family: Family, connection: &mut Connection) -> Result<u64> {
    let before = forwarded(world, family)?;
    echo(connection, ROUND_TRIPS)?;
    Ok(forwarded(world, family)? - before)
}

/// Of a connection through its whole life: both ends' records of it, as (forward, reply) packets and bytes.
fn life(world: &World, family: Family) -> Result<[[u64; 4]; 2]> {
    let mut connection = world.connect("x/client", "x/near", family, 80)?;
    echo(&mut connection, 20)?;
    let stream = connection.into_stream();
    let port = stream.local_addr()?.port();
    drop(stream);
    let deadline = Instant::now() + NOTICED;
    loop {
        let (text, _) = world.agents.get("node-1").context("an agent")?.flows_from(0)?;
        let mut found = Vec::new();
        for line in text.lines() {
            let Line::Flow(flow) = serde_json::from_str(line)? else {
                continue;
            };
            let ours = flow.l4.as_ref().and_then(Layer4::ports) == Some((port, 80));
            if ours && flow.weir.event == FlowEvent::Ended {
                let (packets, bytes) = (&flow.weir.packets, &flow.weir.bytes);
                found.push([packets.forward, packets.reply, bytes.forward, bytes.reply]);
            }
        }
        if let [a, b] = found.as_slice() {
            return Ok([*a, *b]);
        }
        ensure!(
            Instant::now() < deadline,
            "{} ends of the connection were told",
            found.len()
        );
        thread::sleep(Duration::from_millis(20));
    }
}

fn packets_of_open_connections_are_handed_over(layout: Layout, attach: Attach) -> Result<()> {
    World::new(&plan(layout, attach, "auto"))?.check(|world| {
        await_forwarding(world, Ok(()))?;
        for pod in ["client", "near"] {
            await_endpoint(world, pod, None)?;
        }
        for family in FAMILIES {
            let mut near = world.connect("x/client", "x/near", family, 80)?;
            let passed = forwarded_by(world, family, &mut near)?;
            ensure!(
                passed < ROUND_TRIPS / 2,
                "{family:?}: the kernel forwarded {passed} packets to a neighbour"
            );
            let mut far = world.connect("x/client", "x/far", family, 80)?;
            let passed = forwarded_by(world, family, &mut far)?;
            ensure!(
                passed >= 2 * ROUND_TRIPS,
                "{family:?}: the kernel forwarded {passed} packets to another node"
            );
            ensure!(near.lost()? == 0 && far.lost()? == 0, "{family:?}: packets were lost");
            let [a, b] = life(world, family)?;
            // 20 echoes of 8 bytes, SYN and FIN; how they are acknowledged is the pods' business.
            ensure!(
                a == b && a[0] > 21 && a[1] > 21,
                "{family:?}: the ends count {a:?} and {b:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn packets_of_open_connections_are_handed_over_routed_tcx() -> Result<()> {
    packets_of_open_connections_are_handed_over(Layout::Routed, Attach::Tcx)
}

#[test]
fn packets_of_open_connections_are_handed_over_routed_tc() -> Result<()> {
    packets_of_open_connections_are_handed_over(Layout::Routed, Attach::Tc)
}

#[test]
fn packets_of_open_connections_are_handed_over_point_to_point() -> Result<()> {
    packets_of_open_connections_are_handed_over(Layout::PointToPoint, Attach::Tcx)
}

#[test]
fn packets_of_open_connections_are_handed_over_branch() -> Result<()> {
    packets_of_open_connections_are_handed_over(Layout::Branch, Attach::Tcx)
}

#[test]
fn a_bridge_and_the_switch_leave_it_to_the_kernel() -> Result<()> {
    World::new(&plan(Layout::Bridge, Attach::Tcx, "auto"))?.check(|world| {
        await_endpoint(world, "near", Some("bridge"))?;
        for family in FAMILIES {
            echo(&mut world.connect("x/client", "x/near", family, 80)?, ROUND_TRIPS)?;
        }
        Ok(())
    })?;
    World::new(&plan(Layout::Routed, Attach::Tcx, "kernel"))?.check(|world| {
        await_forwarding(world, Err("--forward kernel"))?;
        for family in FAMILIES {
            let mut near = world.connect("x/client", "x/near", family, 80)?;
            let passed = forwarded_by(world, family, &mut near)?;
            ensure!(
                passed >= 2 * ROUND_TRIPS,
                "{family:?}: the kernel forwarded {passed} packets"
            );
            let [a, b] = life(world, family)?;
            ensure!(
                a == b && a[0] > 21 && a[1] > 21,
                "{family:?}: the ends count {a:?} and {b:?}"
            );
        }
        Ok(())
    })
}

/// Feeds rules to `nft` in the namespace of a node.
fn nft(world: &World, node: &str, rules: &str) -> Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    world.lab.node(node)?.netns.command(&mut command)?;
    let mut child = command.spawn().context("start nft (Debian: apt install nftables)")?;
    child.stdin.take().context("its input")?.write_all(rules.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn whatever_needs_the_kernels_forwarding_gets_it_and_connections_live_on() -> Result<()> {
    World::new(&plan(Layout::Routed, Attach::Tcx, "auto"))?.check(|world| {
        await_forwarding(world, Ok(()))?;
        await_endpoint(world, "near", None)?;
        let mut open = Vec::new();
        for family in FAMILIES {
            open.push((family, world.connect("x/client", "x/near", family, 80)?));
        }
        let mut check = |world: &World, direct: bool| -> Result<()> {
            for (family, connection) in &mut open {
                let passed = forwarded_by(world, *family, connection)?;
                let fits = if direct {
                    passed < ROUND_TRIPS / 2
                } else {
                    passed >= 2 * ROUND_TRIPS
                };
                ensure!(
                    fits,
                    "{family:?}: the kernel forwarded {passed} packets; directly: {direct}"
                );
            }
            Ok(())
        };
        check(world, true)?;

        nft(
            world,
            "node-1",
            "add table inet t\nadd chain inet t local { type filter hook input priority 0; policy accept; }",
        )?;
        nft(
            world,
            "node-1",
            "add chain inet t c { type filter hook forward priority 0; policy accept; }",
        )?;
        await_forwarding(world, Err("chain t c"))?;
        check(world, false)?;
        nft(world, "node-1", "delete chain inet t c")?;
        // What the node itself receives is no business of forwarding.
        await_forwarding(world, Ok(()))?;
        check(world, true)?;

        let netns = &world.lab.node("node-1")?.netns;
        let interface = &world.lab.pod("x/near")?.interface;
        let tc = |arguments: &str| -> Result<()> {
            let mut command = Command::new("tc");
            command.args(arguments.replace("DEV", interface).split(' '));
            netns.command(&mut command)?;
            ensure!(command.status()?.success(), "tc {arguments} on {interface}");
            Ok(())
        };
        // As the bandwidth plugin shapes what a pod receives,
        tc("qdisc add dev DEV root tbf rate 10gbit burst 10mb latency 50ms")?;
        await_endpoint(world, "near", Some("tbf"))?;
        check(world, false)?;
        tc("qdisc del dev DEV root")?;
        await_endpoint(world, "near", None)?;
        check(world, true)?;

        // and catches what it sends.
        tc("qdisc add dev DEV ingress")?;
        tc("filter add dev DEV ingress protocol all prio 10 u32 match u32 0 0")?;
        await_endpoint(world, "near", Some("u32"))?;
        check(world, false)
    })
}

#[test]
fn policies_cut_what_is_handed_over() -> Result<()> {
    const DENY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny, namespace: x}
spec:
  podSelector: {matchLabels: {pod: POD}}
  policyTypes: [DIRECTION]
";
    World::new(&plan(Layout::Routed, Attach::Tcx, "auto"))?.check(|world| {
        await_forwarding(world, Ok(()))?;
        await_endpoint(world, "near", None)?;
        for (pod, direction) in [("near", "Ingress"), ("client", "Egress")] {
            let mut open = Vec::new();
            for family in FAMILIES {
                let mut connection = world.connect("x/client", "x/near", family, 80)?;
                let passed = forwarded_by(world, family, &mut connection)?;
                ensure!(passed < ROUND_TRIPS / 2, "the kernel forwarded {passed} packets");
                open.push(connection);
            }
            world.policy("deny", &DENY.replace("POD", pod).replace("DIRECTION", direction))?;
            world.expect(&[("x/client", "x/near", 80, Verdict::Deny)])?;
            for connection in &mut open {
                ensure!(
                    connection.is_cut()?,
                    "{direction} of {pod} is denied, and the connection lives on"
                );
            }
            world.expect(&[("x/client", "x/near", 80, Verdict::Deny)])?;
            world.remove_policy("deny")?;
            world.expect(&[("x/client", "x/near", 80, Verdict::Allow)])?;
        }
        Ok(())
    })
}

#[test]
fn restarts_and_detachment_harm_nothing_that_is_handed_over() -> Result<()> {
    World::new(&plan(Layout::Routed, Attach::Tcx, "auto"))?.check(|world| {
        await_forwarding(world, Ok(()))?;
        await_endpoint(world, "near", None)?;
        let mut running = Vec::new();
        for family in FAMILIES {
            running.push(Traffic::start(world, family, ("x/client", "x/near"), None)?);
        }
        thread::sleep(Duration::from_millis(300));
        world.agent("node-1")?.kill()?;
        thread::sleep(Duration::from_millis(300));
        let agent = world.agent("node-1")?;
        agent.spawn()?;
        agent.wait(ENFORCED)?;
        await_forwarding(world, Ok(()))?;
        thread::sleep(Duration::from_millis(300));
        world.agent("node-1")?.detach()?;
        thread::sleep(Duration::from_millis(300));
        for traffic in running {
            traffic.stop(world)?.unharmed()?;
        }
        Ok(())
    })
}

/// Makes every node translate the virtual address to a pod's, as kube-proxy does, and back.
fn translate(world: &World, to: &str) -> Result<()> {
    let (_, addresses) = world.lab.host(to)?;
    let of = |family| addresses.of(family).context("an address");
    let (v4, v6) = (of(Family::V4)?, of(Family::V6)?);
    let rules = format!(
        "table inet t {{
           chain pre {{
             type nat hook prerouting priority dstnat;
             ip daddr {VIP4} tcp dport 8000 dnat ip to {v4}:80
             ip6 daddr {VIP6} tcp dport 8000 dnat ip6 to [{v6}]:80
           }}
           chain post {{
             type nat hook postrouting priority srcnat;
             ip saddr {v4} ip daddr {v4} masquerade
             ip6 saddr {v6} ip6 daddr {v6} masquerade
           }}
         }}"
    );
    nft(world, "node-1", &format!("flush ruleset\n{rules}"))
}

/// A connection from a port of choice, which other connections may use too.
fn connect_from(world: &World, from: &str, port: u16, to: SocketAddr) -> Result<Connection> {
    let (netns, _) = world.lab.host(from)?;
    let stream = netns.run(|| {
        let (family, any): (_, IpAddr) = match to {
            SocketAddr::V4(_) => (AddressFamily::Inet, Ipv4Addr::UNSPECIFIED.into()),
            SocketAddr::V6(_) => (AddressFamily::Inet6, Ipv6Addr::UNSPECIFIED.into()),
        };
        let fd: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, ReuseAddr, &true)?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))?;
        let stream = TcpStream::from(fd);
        // Of a connection that does not come about; the kernel's own patience is minutes.
        stream.set_write_timeout(Some(Duration::from_secs(3)))?;
        connect(stream.as_raw_fd(), &SockaddrStorage::from(to)).with_context(|| format!("{from}: connect to {to}"))?;
        Ok(stream)
    })?;
    Connection::new(stream)
}

fn translated_connections_work(attach: Attach, forward: &str) -> Result<()> {
    World::new(&plan(Layout::Routed, attach, forward))?.check(|world| {
        let mut port = 20_000;
        for backend in ["x/near", "x/far", "x/client"] {
            translate(world, backend)?;
            match forward {
                "direct" => await_forwarding(world, Ok(()))?,
                _ => await_forwarding(world, Err("chain t"))?,
            }
            for (family, vip) in [(Family::V4, IpAddr::from(VIP4)), (Family::V6, IpAddr::from(VIP6))] {
                let vip = SocketAddr::new(vip, 8000);
                let direct = SocketAddr::new(world.lab.address(backend, family)?, 80);
                // The same source port to the pod itself and to it by way of the service: netfilter gives the later
                // connection another port, and nothing of one may get into the other.
                for order in [[vip, direct], [direct, vip]] {
                    port += 1;
                    let open = |to| {
                        connect_from(world, "x/client", port, to)
                            .with_context(|| format!("{family:?}, {backend}, of {order:?}"))
                    };
                    let mut first = open(order[0])?;
                    echo(&mut first, 5)?;
                    if backend == "x/client" && order[0] == direct {
                        // A pod's connection to itself never leaves it.
                        continue;
                    }
                    let mut second = open(order[1])?;
                    for _ in 0..5 {
                        echo(&mut second, 1).with_context(|| format!("{family:?}, {backend}, second of {order:?}"))?;
                        echo(&mut first, 1).with_context(|| format!("{family:?}, {backend}, first of {order:?}"))?;
                    }
                }
            }
        }
        Ok(())
    })
}

#[test]
fn translated_connections_work_while_others_are_handed_over_tcx() -> Result<()> {
    translated_connections_work(Attach::Tcx, "direct")
}

#[test]
fn translated_connections_work_while_others_are_handed_over_tc() -> Result<()> {
    translated_connections_work(Attach::Tc, "direct")
}

#[test]
fn translated_connections_work_by_default() -> Result<()> {
    translated_connections_work(Attach::Tcx, "auto")
}
