//! Established connections: cut by the change that forbids them, untouched by every other.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::SockType;
use weir::flow::json::{FlowEvent, Layer4};
use weir_tests::{
    connection::Connection,
    lab::{Families, Family, PodPlan, agent::AgentOptions, agent::Attach, probe::Verdict, probe::socket},
    traffic::Traffic,
    world::{Plan, World},
};

/// An echo takes microseconds: nothing passes if none comes for that long.
const SILENCE: Duration = Duration::from_millis(500);

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Ingress of x/server from pods with one of these values of the label `pod`.
fn from_pods(names: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: server
  namespace: x
spec:
  podSelector:
    matchLabels:
      pod: server
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector:
        matchExpressions:
        - {{key: pod, operator: In, values: [{names}]}}
"
    )
}

fn plan(attach: Attach, second: &'static str) -> Plan {
    Plan {
        pods: vec![("x/server", "node-1"), ("x/a", "node-1"), ("x/b", second)],
        options: AgentOptions {
            attach,
            ..AgentOptions::default()
        },
        ..Plan::one_node(&[])
    }
}

fn a_policy_change_cuts_what_it_forbids(attach: Attach, second: &'static str) -> Result<()> {
    World::new(&plan(attach, second))?.check(|world| {
        world.policy("server", &from_pods("a, b"))?;
        let mut forbidden = Vec::new();
        let mut allowed = Vec::new();
        let mut traffic = Vec::new();
        for family in FAMILIES {
            forbidden.push(world.connect("x/a", "x/server", family, 80)?);
            allowed.push(world.connect("x/b", "x/server", family, 80)?);
            traffic.push(Traffic::start(world, family, ("x/b", "x/server"), None)?);
        }
        for connection in forbidden.iter_mut().chain(&mut allowed) {
            ensure!(connection.echoes()?, "a fresh connection does not echo");
        }

        world.policy("server", &from_pods("b"))?;
        for connection in &mut forbidden {
            ensure!(
                connection.is_cut()?,
                "a connection that the new policy forbids lives on"
            );
        }
        // Twice: neither the change itself nor anything that follows harms them.
        for _ in 0..2 {
            for connection in &mut allowed {
                ensure!(connection.echoes()?, "a connection that the new policy allows was cut");
                ensure!(connection.lost()? == 0, "a connection that stays allowed lost packets");
            }
        }
        for traffic in traffic {
            traffic.stop(world)?.unharmed()?;
        }
        world.await_flow("node-1", |flow| {
            flow.weir.reason.as_deref() == Some("POLICY_DENIED_ESTABLISHED")
        })
    })
}

#[test]
fn a_policy_change_cuts_what_it_forbids_on_one_node_tcx() -> Result<()> {
    a_policy_change_cuts_what_it_forbids(Attach::Tcx, "node-1")
}

#[test]
fn a_policy_change_cuts_what_it_forbids_on_two_nodes_tc() -> Result<()> {
    a_policy_change_cuts_what_it_forbids(Attach::Tc, "node-2")
}

#[test]
fn a_peers_label_change_cuts_its_connections_only() -> Result<()> {
    World::new(&plan(Attach::Tcx, "node-2"))?.check(|world| {
        world.policy("server", &from_pods("a, b"))?;
        for family in FAMILIES {
            let mut near = world.connect("x/a", "x/server", family, 80)?;
            let mut far = world.connect("x/b", "x/server", family, 80)?;
            ensure!(near.echoes()? && far.echoes()?, "fresh connections do not echo");

            world.relabel("x/b", &[("pod", "stranger")])?;
            world.enforced()?;
            ensure!(far.is_cut()?, "the pod has other labels and its connection lives on");
            ensure!(
                near.echoes()?,
                "the connection of a pod whose labels did not change was cut"
            );

            // A label that no policy asks for is no reason to judge anybody again, nor to cut.
            world.relabel("x/a", &[("pod", "a"), ("version", "2")])?;
            world.enforced()?;
            ensure!(
                near.echoes()? && near.lost()? == 0,
                "a label of no interest harmed a connection"
            );
            world.relabel("x/b", &[("pod", "b")])?;
            world.enforced()?;
        }
        Ok(())
    })
}

#[test]
fn egress_connections_are_cut_when_their_destination_changes_labels() -> Result<()> {
    World::new(&plan(Attach::Tcx, "node-2"))?.check(|world| {
        world.policy(
            "client",
            "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: client, namespace: x}
spec:
  podSelector: {matchLabels: {pod: a}}
  policyTypes: [Egress]
  egress:
  - to:
    - podSelector: {matchLabels: {role: backend}}
",
        )?;
        world.relabel("x/b", &[("pod", "b"), ("role", "backend")])?;
        world.relabel("x/server", &[("pod", "server"), ("role", "backend")])?;
        world.enforced()?;
        for family in FAMILIES {
            let mut cut = world.connect("x/a", "x/b", family, 80)?;
            let mut kept = world.connect("x/a", "x/server", family, 80)?;
            ensure!(cut.echoes()? && kept.echoes()?, "fresh connections do not echo");
            world.relabel("x/b", &[("pod", "b")])?;
            world.enforced()?;
            ensure!(
                cut.is_cut()?,
                "the destination is no backend any more and the connection lives on"
            );
            ensure!(kept.echoes()?, "a connection to a backend was cut");
            world.relabel("x/b", &[("pod", "b"), ("role", "backend")])?;
            world.enforced()?;
        }
        Ok(())
    })
}

/// A connection from a source port of choice.
fn connect_from(world: &World, from: &str, to: SocketAddr, port: u16) -> Result<Option<Connection>> {
    let (netns, _) = world.lab.host(from)?;
    let family = Family::of(to.ip());
    let socket = netns.run(|| {
        let socket = socket::open(family, SockType::Stream, None)?;
        socket::bind(&socket, family, port)?;
        socket::connect(&socket, to)?;
        Ok(socket)
    })?;
    let stream = TcpStream::from(socket);
    let mut ready = [nix::poll::PollFd::new(
        std::os::fd::AsFd::as_fd(&stream),
        nix::poll::PollFlags::POLLOUT,
    )];
    let answered = nix::poll::poll(&mut ready, nix::poll::PollTimeout::from(500_u16))?;
    if answered == 0 || stream.take_error()?.is_some() {
        return Ok(None);
    }
    stream.set_nonblocking(false)?;
    Connection::new(stream).map(Some)
}

#[test]
fn a_syn_on_the_tuple_of_a_closed_connection_is_a_new_flow() -> Result<()> {
    World::new(&plan(Attach::Tcx, "node-1"))?.check(|world| {
        world.policy("server", &from_pods("a"))?;
        for family in FAMILIES {
            let port = 23_456;
            let to = SocketAddr::new(world.lab.address("x/server", family)?, 80);
            for round in 0..2 {
                let mut connection = connect_from(world, "x/a", to, port)?.with_context(|| format!("round {round}"))?;
                ensure!(connection.echoes()?, "round {round} does not echo");
                // Closed by a reset, so that the tuple can come again at once.
                socket::reset_on_close(&connection.into_stream().into())?;
            }
            let source = world.lab.address("x/a", family)?;
            // Two openings were judged and reported at each end.
            let opened = |world: &World| -> Result<usize> {
                let mut seen = 0;
                let (text, _) = world.agents["node-1"].flows_from(0)?;
                for line in text.lines() {
                    let Ok(weir::flow::json::Line::Flow(flow)) = serde_json::from_str(line) else {
                        continue;
                    };
                    let of_tuple = matches!(flow.l4, Some(Layer4::Tcp { source_port, .. }) if source_port == port);
                    if of_tuple && flow.ip.source == source && flow.weir.event == FlowEvent::Started {
                        seen += 1;
                    }
                }
                Ok(seen)
            };
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            while opened(world)? < 4 && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            ensure!(opened(world)? == 4, "{} openings were reported, not 4", opened(world)?);

            // And judged by what holds now.
            world.policy("server", &from_pods("b"))?;
            ensure!(
                connect_from(world, "x/a", to, port)?.is_none(),
                "a closed connection's tuple passed"
            );
            world.policy("server", &from_pods("a"))?;
        }
        Ok(())
    })
}

#[test]
fn an_address_that_another_pod_takes_over_carries_nothing_over() -> Result<()> {
    for second in ["node-1", "node-2"] {
        let address = Some(Ipv4Addr::new(10, 244, 9, 9));
        World::new(&plan(Attach::Tcx, second))?.check(|world| {
            world.add_pods(&[PodPlan {
                address,
                ..PodPlan::new("x/old", second)
            }])?;
            world.policy("server", &from_pods("old"))?;
            let old = [("x/old", "x/server", 80, Verdict::Allow)];
            world.expect(&old)?;
            let to = SocketAddr::new(world.lab.address("x/server", Family::V4)?, 80);
            let port = 23_457;
            let mut connection = connect_from(world, "x/old", to, port)?.context("the old pod is allowed")?;
            ensure!(connection.echoes()?, "the old pod's connection does not echo");

            world.remove_pod("x/old")?;
            world.add_pods(&[PodPlan {
                address,
                ..PodPlan::new("y/new", second)
            }])?;
            world.enforced()?;
            world.expect(&[("y/new", "x/server", 80, Verdict::Deny)])?;
            ensure!(
                connect_from(world, "y/new", to, port)?.is_none(),
                "the new pod got through on the tuple of the old one's connection"
            );
            let address = world.lab.address("y/new", Family::V4)?;
            world.await_flow("node-1", |flow| {
                flow.ip.source == address && flow.source.pod_name.as_deref() == Some("new")
            })
        })?;
    }
    Ok(())
}

#[test]
fn datagrams_stop_when_policy_does_not_allow_them_any_more() -> Result<()> {
    let plan = Plan {
        families: Families::V4,
        ..plan(Attach::Tcx, "node-1")
    };
    World::new(&plan)?.check(|world| {
        world.policy("server", &from_pods("a"))?;
        let to = SocketAddr::new(world.lab.address("x/server", Family::V4)?, 80);
        let socket = world.lab.host("x/a")?.0.run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            Ok(socket)
        })?;
        let echo = |byte: u8| {
            let mut back = [0];
            socket.send(&[byte]).is_ok() && matches!(socket.recv(&mut back), Ok(1)) && back == [byte]
        };
        ensure!(echo(1) && echo(2), "an allowed datagram was not echoed");
        world.policy("server", &from_pods("b"))?;
        socket.set_read_timeout(Some(SILENCE))?;
        ensure!(!echo(3), "a datagram of a flow that policy forbids now was echoed");
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        world.policy("server", &from_pods("a"))?;
        ensure!(echo(4), "a datagram that policy allows again was not echoed");
        Ok(())
    })
}
