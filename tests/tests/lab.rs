//! The lab itself, without any agent: in every layout and family everybody reaches everybody, and nothing stays.

use std::{
    fs,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use weir_tests::lab::{
    Families, Family, Lab, Layout, PodPlan,
    probe::{Patience, Probe, Prober, Protocol, Servers, Verdict},
};

const PORTS: [(Protocol, u16); 6] = [
    (Protocol::Tcp, 80),
    (Protocol::Tcp, 81),
    (Protocol::Udp, 80),
    (Protocol::Udp, 81),
    (Protocol::Sctp, 80),
    (Protocol::Sctp, 81),
];

/// Two nodes, four pods and an external, all reaching each other over everything.
fn everybody_reaches_everybody(layout: Layout, families: Families) -> Result<()> {
    let began = Instant::now();
    let mut lab = Lab::new(families)?;
    lab.add_node("one", layout)?;
    lab.add_external("client", Ipv4Addr::new(203, 0, 113, 10))?;
    lab.add_pods(&[PodPlan::new("x/a", "one"), PodPlan::new("x/b", "one")])?;
    lab.add_node("two", layout)?;
    lab.add_pods(&[PodPlan::new("y/a", "two"), PodPlan::new("y/b", "two")])?;
    let made = began.elapsed();

    let hosts = ["x/a", "x/b", "y/a", "y/b", "ext/client", "node/one", "node/two"];
    let servers = Servers::start()?;
    for host in hosts {
        servers.serve(host, lab.host(host)?.0, &PORTS)?;
    }
    let mut probes = Vec::new();
    for from in hosts {
        for to in hosts {
            for family in [Family::V4, Family::V6]
                .into_iter()
                .filter(|&family| families.has(family))
            {
                let to_node = to.starts_with("node/");
                let to = lab.address(to, family)?;
                let echo = if family == Family::V4 { 8 } else { 128 };
                // An ICMP type that nobody answers (timestamp reply; router renumbering) counts when it arrives.
                let one_way = if family == Family::V4 { 14 } else { 138 };
                let icmp = [(Protocol::Icmp, echo << 8), (Protocol::Icmp, one_way << 8)];
                // Where a node has several addresses its unbound sockets answer from the one nearest to the asker, so
                // only connections and pings tell something about nodes.
                let unbound = |protocol| matches!(protocol, Protocol::Udp | Protocol::Sctp);
                for (protocol, port) in PORTS.into_iter().chain(icmp) {
                    if to_node && unbound(protocol) {
                        continue;
                    }
                    probes.push(Probe {
                        from: from.to_owned(),
                        to,
                        protocol,
                        port,
                    });
                }
            }
        }
    }
    let began = Instant::now();
    let outcomes = Prober::default().ask(&lab, &servers, &probes, Patience::STUBBORN)?;
    eprintln!(
        "{layout:?} {families:?}: made in {made:?}, {} probes in {:?}",
        probes.len(),
        began.elapsed()
    );
    let failed: Vec<_> = probes
        .iter()
        .zip(&outcomes)
        .filter(|(_, outcome)| outcome.verdict != Verdict::Allow)
        .collect();
    ensure!(
        failed.is_empty(),
        "{} of {} failed: {:#?}",
        failed.len(),
        probes.len(),
        &failed[..failed.len().min(8)]
    );
    Ok(())
}

#[test]
fn routed_v4() -> Result<()> {
    everybody_reaches_everybody(Layout::Routed, Families::V4)
}

#[test]
fn routed_v6() -> Result<()> {
    everybody_reaches_everybody(Layout::Routed, Families::V6)
}

#[test]
fn routed_dual_stack() -> Result<()> {
    everybody_reaches_everybody(Layout::Routed, Families::Dual)
}

#[test]
fn point_to_point_dual_stack() -> Result<()> {
    everybody_reaches_everybody(Layout::PointToPoint, Families::Dual)
}

#[test]
fn bridge_dual_stack() -> Result<()> {
    everybody_reaches_everybody(Layout::Bridge, Families::Dual)
}

#[test]
fn branch_dual_stack() -> Result<()> {
    everybody_reaches_everybody(Layout::Branch, Families::Dual)
}

#[test]
fn silence_is_a_denial_and_a_refusal_is_none() -> Result<()> {
    let mut lab = Lab::new(Families::V4)?;
    lab.add_node("one", Layout::Routed)?;
    lab.add_pods(&[PodPlan::new("x/a", "one"), PodPlan::new("x/b", "one")])?;
    let servers = Servers::start()?;
    servers.serve("x/b", lab.host("x/b")?.0, &[(Protocol::Tcp, 80)])?;
    let there = lab.address("x/b", Family::V4)?;
    // An address that no host has: the node's neighbour discovery on the fabric gets no answer.
    let nowhere = Ipv4Addr::new(172, 18, 0, 99).into();
    let probe = |to, protocol, port| Probe {
        from: "x/a".to_owned(),
        to,
        protocol,
        port,
    };
    let probes = [
        probe(there, Protocol::Tcp, 80),
        probe(there, Protocol::Tcp, 81),
        probe(there, Protocol::Udp, 80),
        probe(nowhere, Protocol::Tcp, 80),
        probe(nowhere, Protocol::Udp, 80),
        probe(nowhere, Protocol::Sctp, 80),
        probe(nowhere, Protocol::Icmp, 8 << 8),
        probe(nowhere, Protocol::Icmp, 14 << 8),
    ];
    let outcomes = Prober::default().ask(&lab, &servers, &probes, Patience::TABLE)?;
    let verdicts: Vec<Verdict> = outcomes.iter().map(|outcome| outcome.verdict).collect();
    let mut expected = vec![Verdict::Allow, Verdict::Refused, Verdict::Refused];
    expected.resize(probes.len(), Verdict::Deny);
    assert_eq!(verdicts, expected);
    Ok(())
}

#[test]
fn a_removed_pod_is_gone_and_its_address_can_be_taken() -> Result<()> {
    for layout in [Layout::Routed, Layout::PointToPoint, Layout::Bridge, Layout::Branch] {
        let mut lab = Lab::new(Families::Dual)?;
        lab.add_node("one", layout)?;
        lab.add_node("two", layout)?;
        lab.add_external("client", Ipv4Addr::new(203, 0, 113, 10))?;
        let address = Some(Ipv4Addr::new(10, 244, 1, 77));
        lab.add_pods(&[
            PodPlan {
                address,
                ..PodPlan::new("x/old", "one")
            },
            PodPlan::new("x/client", "two"),
        ])?;
        let servers = Servers::start()?;
        let ask = |lab: &Lab, from: &str| -> Result<Verdict> {
            let to = Ipv4Addr::new(10, 244, 1, 77).into();
            let probe = Probe {
                from: from.to_owned(),
                to,
                protocol: Protocol::Tcp,
                port: 80,
            };
            Ok(Prober::default().ask(lab, &servers, &[probe], Patience::STUBBORN)?[0].verdict)
        };
        servers.serve("x/old", lab.host("x/old")?.0, &PORTS)?;
        assert_eq!(ask(&lab, "x/client")?, Verdict::Allow, "{layout:?}");
        servers.stop("x/old");
        lab.remove_pod("x/old")?;
        assert_eq!(ask(&lab, "ext/client")?, Verdict::Deny, "{layout:?}");
        lab.add_pods(&[PodPlan {
            address,
            ..PodPlan::new("x/new", "one")
        }])?;
        servers.serve("x/new", lab.host("x/new")?.0, &PORTS)?;
        assert_eq!(ask(&lab, "x/client")?, Verdict::Allow, "{layout:?}");
        assert_eq!(ask(&lab, "ext/client")?, Verdict::Allow, "{layout:?}");
        lab.remove_externals()?;
    }
    Ok(())
}

#[test]
fn nothing_stays_behind() -> Result<()> {
    let lab = Lab::new(Families::V4)?;
    let (directory, bpffs) = (lab.scratch().directory().to_owned(), lab.scratch().bpffs().to_owned());
    assert!(directory.is_dir() && bpffs.is_dir());
    fs::create_dir(bpffs.join("pins"))?;
    drop(lab);
    assert!(!directory.exists() && !bpffs.exists());

    // A panic is no way around it.
    let paths = std::thread::spawn(|| -> Result<()> {
        let lab = Lab::new(Families::V4)?;
        std::panic::panic_any((lab.scratch().directory().to_owned(), lab.scratch().bpffs().to_owned()));
    })
    .join();
    let Err(paths) = paths else {
        panic!("the thread did not panic")
    };
    let (directory, bpffs) = *paths
        .downcast::<(std::path::PathBuf, std::path::PathBuf)>()
        .expect("paths");
    std::thread::sleep(Duration::from_millis(1));
    assert!(!directory.exists() && !bpffs.exists());
    Ok(())
}
