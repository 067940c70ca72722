//! Pods' interfaces are found through netlink alone, whatever laid their links.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{sync::mpsc::Receiver, time::timeout};
use weir::{
    endpoint::{Discovery, Event},
    policy::{change::PeerKey, selector::EntityKind},
};
use weir_tests::{
    hooks,
    lab::{Families, Lab, Layout, NetNs, PodPlan, ip::Batch},
};

/// Far more than any event takes; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing must be said where nothing is to be said.
const SILENCE: Duration = Duration::from_millis(300);

fn key(name: &str) -> PeerKey {
    PeerKey {
        kind: EntityKind::Pod,
        namespace: Some(Arc::from("x")),
        name: Arc::from(name),
    }
}

/// Has a namespace watched, and does something with what is found there. All on one thread.
fn discover(netns: &NetNs, work: impl AsyncFnOnce(Discovery, Receiver<Event>) -> Result<()> + Send) -> Result<()> {
    netns.run(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(async {
                let (discovery, events) = Discovery::spawn()?;
                work(discovery, events).await
            })
    })
}

/// The next event about pods.
async fn next(events: &mut Receiver<Event>) -> Result<Event> {
    loop {
        let event = timeout(PATIENCE, events.recv()).await.context("no event came")?;
        match event.context("discovery has ended")? {
            Event::NodeAddresses(_) | Event::Unhooked { .. } => {}
            event => return Ok(event),
        }
    }
}

/// The pod's interface, once both addresses lead to it; what is said before that is only of what is missing.
async fn found(events: &mut Receiver<Event>) -> Result<(u32, String)> {
    loop {
        match next(events).await? {
            Event::Found {
                ifindex,
                name,
                layer3,
                unlocated,
                ..
            } => {
                ensure!(!layer3, "a veth has Ethernet headers");
                if unlocated.is_empty() {
                    return Ok((ifindex, name));
                }
            }
            Event::Missing { .. } => {}
            other => bail!("unexpected: {other:?}"),
        }
    }
}

async fn silence(events: &mut Receiver<Event>) -> Result<()> {
    match timeout(SILENCE, next(events)).await {
        Err(_) => Ok(()),
        Ok(event) => bail!("unexpected: {:?}", event?),
    }
}

fn index_of(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("interface {name}"))
}

/// A dual-stack pod is missed, found when its link is made, lost with it, and found again with a new one.
fn comes_goes_and_comes_again(layout: Layout) -> Result<()> {
    let mut lab = Lab::new(Families::Dual)?;
    lab.add_node("one", layout)?;
    lab.add_pods(&[PodPlan::new("x/other", "one")])?;
    let node = Arc::clone(&lab.node("one")?.netns);
    let address = Ipv4Addr::new(10, 244, 1, 77);
    let plan = || PodPlan {
        address: Some(address),
        ..PodPlan::new("x/a", "one")
    };
    discover(&node, async |discovery, mut events| {
        let both = [IpAddr::V4(address), weir_tests::lab::address::twin(address).into()];
        discovery.watch(key("a"), both.to_vec());
        match next(&mut events).await? {
            Event::Missing { pod, reason } => {
                ensure!(pod == key("a"));
                ensure!(reason.contains(&address.to_string()), "{reason}");
            }
            other => bail!("unexpected: {other:?}"),
        }
        let mut last = 0;
        for _ in 0..2 {
            lab.add_pods(&[plan()])?;
            let (ifindex, name) = found(&mut events).await?;
            ensure!(
                name == lab.pod("x/a")?.interface && ifindex == index_of(&name)?,
                "{name}"
            );
            ensure!(ifindex != last, "a new interface has a new index");
            last = ifindex;
            silence(&mut events).await?;
            lab.remove_pod("x/a")?;
            match next(&mut events).await? {
                Event::Lost { pod, ifindex } => ensure!(pod == key("a") && ifindex == last),
                other => bail!("unexpected: {other:?}"),
            }
            ensure!(matches!(next(&mut events).await?, Event::Missing { .. }));
        }
        discovery.forget(key("a"));
        lab.add_pods(&[plan()])?;
        silence(&mut events).await
    })
}

#[test]
fn routed() -> Result<()> {
    comes_goes_and_comes_again(Layout::Routed)
}

#[test]
fn point_to_point() -> Result<()> {
    comes_goes_and_comes_again(Layout::PointToPoint)
}

#[test]
fn bridge() -> Result<()> {
    comes_goes_and_comes_again(Layout::Bridge)
}

#[test]
fn routes_behind_rules() -> Result<()> {
    comes_goes_and_comes_again(Layout::Branch)
}

/// A namespace of its own, and what `commands` of `ip` make in it.
fn machine(commands: &[&str]) -> Result<NetNs> {
    let netns = NetNs::new()?;
    run(&netns, commands)?;
    Ok(netns)
}

/// A namespace of its own with an uplink (an ifb without other use), and what `commands` make.
fn machine_with_uplink(commands: &[&str]) -> Result<NetNs> {
    let netns = machine(&[
        "link add up0 type ifb",
        "link set up0 up",
        "addr add 192.0.2.1/24 dev up0",
    ])?;
    run(&netns, commands)?;
    Ok(netns)
}

/// Two links of pods whose other ends are here too.
const VETHS: [&str; 4] = [
    "link add v1 type veth peer name p1",
    "link add v2 type veth peer name p2",
    "link set v1 up",
    "link set v2 up",
];

/// A node whose pods hang on a bridge.
fn bridged(pods: &[&str]) -> Result<(Lab, Arc<NetNs>)> {
    let mut lab = Lab::new(Families::V4)?;
    lab.add_node("one", Layout::Bridge)?;
    let pods: Vec<PodPlan> = pods.iter().map(|pod| PodPlan::new(pod, "one")).collect();
    lab.add_pods(&pods)?;
    let node = Arc::clone(&lab.node("one")?.netns);
    Ok((lab, node))
}

fn run(netns: &NetNs, commands: &[&str]) -> Result<()> {
    let mut batch = Batch::default();
    for command in commands {
        batch.add(command);
    }
    batch.run(netns)
}

#[test]
fn an_index_that_comes_again_is_another_interface() -> Result<()> {
    let netns = machine(&[
        "link add v1 index 77 type veth peer name p1",
        "link set v1 up",
        "link set p1 up",
        "route add 10.9.0.1/32 dev v1",
    ])?;
    discover(&netns, async |discovery, mut events| {
        discovery.watch(key("a"), vec![IpAddr::from([10, 9, 0, 1])]);
        ensure!(found(&mut events).await? == (77, "v1".into()));
        run(
            &netns,
            &[
                "link del v1",
                "link add v2 index 77 type veth peer name p2",
                "link set v2 up",
            ],
        )?;
        ensure!(matches!(next(&mut events).await?, Event::Lost { ifindex: 77, .. }));
        ensure!(matches!(next(&mut events).await?, Event::Missing { .. }));
        silence(&mut events).await
    })
}

#[test]
fn a_route_that_flaps_does_not_lose_the_interface_but_one_that_moves_does() -> Result<()> {
    let netns = machine(&VETHS)?;
    run(&netns, &["route add 10.9.0.1/32 dev v1"])?;
    discover(&netns, async |discovery, mut events| {
        discovery.watch(key("a"), vec![IpAddr::from([10, 9, 0, 1])]);
        let (first, _) = found(&mut events).await?;
        run(&netns, &["route del 10.9.0.1/32", "route add 10.9.0.1/32 dev v1"])?;
        silence(&mut events).await?;
        run(&netns, &["route del 10.9.0.1/32"])?;
        silence(&mut events).await?;
        run(&netns, &["route replace 10.9.0.1/32 dev v2"])?;
        ensure!(matches!(next(&mut events).await?, Event::Lost { ifindex, .. } if ifindex == first));
        ensure!(found(&mut events).await?.1 == "v2");
        Ok(())
    })
}

#[test]
fn addresses_that_lead_to_different_interfaces_are_reported_and_the_uplink_is_refused() -> Result<()> {
    let netns = machine_with_uplink(&VETHS)?;
    run(
        &netns,
        &[
            "route add 10.9.0.1/32 dev v1",
            "route add fd00:9::1/128 dev v2",
            "route add 10.9.0.2/32 via 192.0.2.9",
        ],
    )?;
    discover(&netns, async |discovery, mut events| {
        let both = vec![IpAddr::from([10, 9, 0, 1]), "fd00:9::1".parse()?];
        discovery.watch(key("a"), both);
        match next(&mut events).await? {
            Event::Missing { reason, .. } => ensure!(reason.contains("v1") && reason.contains("v2"), "{reason}"),
            other => bail!("unexpected: {other:?}"),
        }
        run(
            &netns,
            &["route replace fd00:9::1/128 dev v1", "route del fd00:9::1/128 dev v2"],
        )
        .or_else(|_| run(&netns, &["route replace fd00:9::1/128 dev v1"]))?;
        ensure!(found(&mut events).await?.1 == "v1");
        discovery.watch(key("b"), vec![IpAddr::from([10, 9, 0, 2])]);
        match next(&mut events).await? {
            Event::Missing { pod, reason } => ensure!(
                pod == key("b") && reason.contains("up0") && reason.contains("192.0.2.9"),
                "{reason}"
            ),
            other => bail!("unexpected: {other:?}"),
        }
        Ok(())
    })
}

#[test]
fn a_bridge_port_that_claims_the_address_of_another_pod_does_not_get_its_policy() -> Result<()> {
    let (lab, node) = bridged(&["x/a", "x/evil"])?;
    let victim = lab.pod("x/a")?.addresses.v4.context("v4")?;
    discover(&node, async |discovery, mut events| {
        discovery.watch(key("a"), vec![victim.into()]);
        let (_, name) = found(&mut events).await?;
        ensure!(name == lab.pod("x/a")?.interface);
        // The forwarding entry moves, as it does when the other pod sends from the victim's link-layer address.
        let evil = &lab.pod("x/evil")?.interface;
        let mut show = std::process::Command::new("ip");
        show.args(["-o", "neigh", "show", &victim.to_string()]);
        lab.node("one")?.netns.command(&mut show)?;
        let shown = String::from_utf8(show.output()?.stdout)?;
        let mac = shown
            .split_whitespace()
            .skip_while(|word| *word != "lladdr")
            .nth(1)
            .context("the bridge knows the victim")?;
        let mut replace = std::process::Command::new("bridge");
        replace.args(["fdb", "replace", mac, "dev", evil, "master", "dynamic"]);
        lab.node("one")?.netns.command(&mut replace)?;
        ensure!(replace.status()?.success(), "bridge fdb replace");
        silence(&mut events).await
    })
}

#[test]
fn a_quiet_pod_that_its_bridge_has_forgotten_keeps_the_interface_it_had() -> Result<()> {
    let (lab, node) = bridged(&["x/a"])?;
    let address: IpAddr = lab.pod("x/a")?.addresses.v4.context("v4")?.into();
    // It does not answer any more, but it is there.
    let pod = Arc::clone(&lab.pod("x/a")?.netns);
    run(&pod, &["link set eth0 arp off"])?;
    run(&node, &["neigh flush all"])?;
    discover(&node, async |discovery, mut events| {
        let known = index_of(&lab.pod("x/a")?.interface)?;
        discovery.watch(key("a"), vec![address]);
        discovery.assume(key("a"), known);
        match next(&mut events).await? {
            Event::Found { ifindex, unlocated, .. } => {
                ensure!(ifindex == known && unlocated.len() == 1, "{unlocated:?}");
            }
            other => bail!("unexpected: {other:?}"),
        }
        silence(&mut events).await?;
        // What is assumed of an interface that is gone is worth nothing.
        discovery.watch(key("b"), vec![IpAddr::from([10, 99, 0, 1])]);
        discovery.assume(key("b"), 4_000);
        ensure!(matches!(next(&mut events).await?, Event::Missing { pod, .. } if pod == key("b")));
        Ok(())
    })
}

#[test]
fn what_is_removed_from_hooks_is_told() -> Result<()> {
    let netns = machine_with_uplink(&["link add v1 type veth peer name p1"])?;
    discover(&netns, async |_discovery, mut events| {
        let index = index_of("v1")?;
        let mut told = async || -> Result<u32> {
            loop {
                match timeout(PATIENCE, events.recv()).await.context("nothing is told")? {
                    Some(Event::Unhooked { ifindex }) => return Ok(ifindex),
                    Some(_) => {}
                    None => bail!("discovery has ended"),
                }
            }
        };
        let qdisc = |verb| hooks::tc(&netns, &["qdisc", verb, "dev", "v1", "clsact"]);
        let place = ["dev", "v1", "egress", "prio", "3"];
        let all = ["protocol", "ip", "u32", "match", "u32", "0", "0"];
        qdisc("add")?;
        hooks::tc(&netns, &[&["filter", "add"][..], &place, &all].concat())?;
        hooks::tc(&netns, &[&["filter", "del"][..], &place].concat())?;
        ensure!(told().await? == index);
        qdisc("del")?;
        ensure!(told().await? == index);
        Ok(())
    })
}

#[test]
fn a_storm_of_routes_hides_no_pod() -> Result<()> {
    let netns = machine_with_uplink(&[])?;
    discover(&netns, async |discovery, mut events| {
        discovery.watch(key("a"), vec![IpAddr::from([10, 9, 0, 1])]);
        ensure!(matches!(next(&mut events).await?, Event::Missing { .. }));
        let mut storm = Batch::default();
        for n in 0..20_000_u32 {
            let [_, a, b, c] = (n << 4).to_be_bytes();
            storm.add(format!("route add 20.{a}.{b}.{c}/30 via 192.0.2.9"));
        }
        storm.add("link add v1 type veth peer name p1");
        storm.add("link set v1 up");
        storm.add("route add 10.9.0.1/32 dev v1");
        // The loop that listens runs on this thread: it is kept from listening meanwhile, so its socket overflows too.
        storm.run(&netns)?;
        ensure!(found(&mut events).await?.1 == "v1");
        Ok(())
    })
}

#[test]
fn the_nodes_own_addresses_are_told_and_kept_up_to_date() -> Result<()> {
    let netns = machine_with_uplink(&[])?;
    discover(&netns, async |_discovery, mut events| {
        let told = |event: Option<Event>| match event {
            Some(Event::NodeAddresses(addresses)) => Ok(addresses),
            other => bail!("unexpected: {other:?}"),
        };
        let one: IpAddr = [192, 0, 2, 1].into();
        let two: IpAddr = "2001:db8::1".parse()?;
        ensure!(told(timeout(PATIENCE, events.recv()).await?)? == [one]);
        run(&netns, &["addr add 2001:db8::1/64 dev up0 nodad"])?;
        ensure!(told(timeout(PATIENCE, events.recv()).await?)? == [one, two]);
        run(&netns, &["addr del 192.0.2.1/24 dev up0"])?;
        ensure!(told(timeout(PATIENCE, events.recv()).await?)? == [two]);
        Ok(())
    })
}
