//! What is attached stays what it is, whoever starts, stops, crashes or comes back in another mode; and goes
//! without a trace when it is told to.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc},
};
use weir::{
    datapath::{AttachMode, Datapath, Error, Inherited, InterfaceBinding, Mode, Options, Swept, clock, detach_all},
    policy::plan::{EndpointPolicy, Op},
};
use weir_common::{
    Addr, Direction,
    layout::{LAYOUT, map},
    policy::{Decision, DirectionPolicy, Row, Slot},
    reason::Reason,
};
use weir_tests::lab::{Families, Family, Lab, Layout, NetNs, PodPlan};

const POD: &str = "x/a";
const PEER: &str = "x/b";
const PORT: u16 = 4242;
/// How long a packet may take where it must arrive, and how long one is waited for that must not.
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(100);

/// Both are moved into threads of their own.
const _: fn() = || {
    fn can_move<T: Send>() {}
    can_move::<Datapath>();
    can_move::<weir::datapath::Sweeper>();
};

/// A node with two pods, of which the first gets an interface of ours.
struct Machine {
    lab: Lab,
    node: Arc<NetNs>,
    ifindex: u32,
    interface: String,
    address: IpAddr,
}

impl Machine {
    fn new() -> Result<Self> {
        let mut lab = Lab::new(Families::V4)?;
        lab.add_node("one", Layout::Routed)?;
        lab.add_pods(&[PodPlan::new(POD, "one"), PodPlan::new(PEER, "one")])?;
        let node = Arc::clone(&lab.node("one")?.netns);
        let interface = lab.pod(POD)?.interface.clone();
        let ifindex = node.run(|| Ok(nix::net::if_::if_nametoindex(interface.as_str())?))?;
        let address = lab.address(POD, Family::V4)?;
        Ok(Self {
            lab,
            node,
            ifindex,
            interface,
            address,
        })
    }

    fn options(&self, attach: AttachMode) -> Options {
        Options {
            attach,
            connections: 4_096,
            unconfirmed: 1_024,
            ..Options::new(self.bpffs(), self.run_dir())
        }
    }

    fn bpffs(&self) -> std::path::PathBuf {
        self.lab.scratch().bpffs().join("weir")
    }

    fn run_dir(&self) -> std::path::PathBuf {
        self.lab.directory().join("run")
    }

    /// Starts as an agent in the node's namespace would.
    fn start(&self, attach: AttachMode) -> Result<(Datapath, Inherited)> {
        self.start_with(self.options(attach))
    }

    fn start_with(&self, options: Options) -> Result<(Datapath, Inherited)> {
        self.node.run(|| Ok(Datapath::start(options)?))
    }

    /// Binds the pod to its interface, gives it a policy and attaches it.
    fn enforce(&self, datapath: &mut Datapath, id: u32, allow: bool) -> Result<()> {
        self.node.run(|| {
            datapath.set_interface(self.binding(id))?;
            datapath.execute(&[policy(id, allow)])?;
            datapath.attach(id)?;
            Ok(())
        })
    }

    fn binding(&self, id: u32) -> InterfaceBinding {
        InterfaceBinding {
            id,
            ifindex: self.ifindex,
            name: self.interface.clone(),
            addresses: vec![self.address],
            ..InterfaceBinding::default()
        }
    }

    fn finish(&self, datapath: &mut Datapath) -> Result<()> {
        self.node.run(|| Ok(datapath.finish_first_sync()?))
    }

    fn detach(&self) -> Result<weir::datapath::Report> {
        self.node.run(|| Ok(detach_all(&self.bpffs(), &self.run_dir())?))
    }

    fn socket(&self, pod: &str) -> Result<UdpSocket> {
        let address = self.lab.address(pod, Family::V4)?;
        self.lab
            .pod(pod)?
            .netns
            .run(|| Ok(UdpSocket::bind(SocketAddr::new(address, 0))?))
    }

    fn wire(&self) -> Result<Wire> {
        let address = self.lab.address(PEER, Family::V4)?;
        let receiver = self
            .lab
            .pod(PEER)?
            .netns
            .run(|| Ok(UdpSocket::bind(SocketAddr::new(address, PORT))?))?;
        Ok(Wire {
            sender: self.socket(POD)?,
            receiver,
            to: SocketAddr::new(address, PORT),
        })
    }

    /// What `tc` says in the node's namespace.
    fn tc(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tc");
        command.args(arguments);
        self.node.command(&mut command)?;
        Ok(String::from_utf8_lossy(&command.output()?.stdout).into_owned())
    }

    fn has_clsact(&self) -> Result<bool> {
        Ok(self.tc(&["qdisc", "show", "dev", &self.interface])?.contains("clsact"))
    }

    /// Names of the programs on the interface: of TCX links, and of clsact filters as `tc` shows them.
    fn programs(&self) -> Result<(Vec<String>, Vec<String>)> {
        let tcx = self.node.run(|| {
            let mut names = Vec::new();
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                let (_, programs) = SchedClassifier::query_tcx(&self.interface, hook)?;
                names.extend(
                    programs
                        .iter()
                        .filter_map(|program| program.name_as_str().map(str::to_owned)),
                );
            }
            Ok(names)
        })?;
        let mut filters = Vec::new();
        for hook in ["ingress", "egress"] {
            let shown = self.tc(&["filter", "show", "dev", &self.interface, hook])?;
            let mut names: Vec<String> = Vec::new();
            names.extend(
                shown
                    .split_whitespace()
                    .filter(|word| word.starts_with("weir_"))
                    .map(str::to_owned),
            );
            // The filter's name and the program's are the same.
            names.dedup();
            filters.append(&mut names);
        }
        Ok((tcx, filters))
    }

    /// Nothing of ours is on the interface.
    fn is_bare(&self) -> Result<bool> {
        let (tcx, filters) = self.programs()?;
        Ok(tcx.is_empty() && filters.is_empty() && !self.has_clsact()?)
    }
}

/// A sender in the pod, a receiver in its peer.
struct Wire {
    sender: UdpSocket,
    receiver: UdpSocket,
    to: SocketAddr,
}

impl Wire {
    /// A packet comes through, possibly after some that were lost while a neighbour was resolved.
    fn passes(&self) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.one(SILENCE)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_cut(&self) -> Result<bool> {
        Ok(!self.one(SILENCE)? && !self.one(SILENCE)?)
    }

    fn one(&self, wait: Duration) -> Result<bool> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let payload = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        self.sender.send_to(&payload, self.to)?;
        self.receiver.set_read_timeout(Some(wait))?;
        let mut buffer = [0; 16];
        loop {
            match self.receiver.recv_from(&mut buffer) {
                // One that was late belongs to an earlier question.
                Ok((4, _)) if buffer[..4] == payload => return Ok(true),
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn policy(endpoint: u32, allow: bool) -> Op {
    let everything = DirectionPolicy {
        table: 0,
        default_row: Row {
            base: [Decision::new(allow, false, 0); Slot::COUNT],
            ..Row::default()
        },
    };
    Op::SetPolicy(EndpointPolicy {
        endpoint,
        egress: everything,
        ingress: everything,
        egress_isolated: true,
        ingress_isolated: true,
        ..EndpointPolicy::default()
    })
}

fn names(dir: &Path) -> Result<BTreeSet<String>> {
    fs::read_dir(dir)
        .with_context(|| dir.display().to_string())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

fn count(datapath: &Datapath, reason: Reason, direction: Direction) -> Result<u64> {
    let counters = datapath.counters()?;
    let found = counters
        .packets
        .iter()
        .find(|(r, d, _)| (*r, *d) == (reason, direction));
    Ok(found.map_or(0, |(_, _, counter)| counter.packets))
}

/// Stop, restart and takeover: the verdict stays, is counted throughout, and flips with the new policy.
fn survives_restarts(attach: AttachMode, mode: Mode) -> Result<()> {
    let machine = Machine::new()?;
    let wire = machine.wire()?;
    ensure!(wire.passes()?, "the lab itself");

    let (mut first, inherited) = machine.start(attach)?;
    ensure!(first.mode() == mode);
    ensure!(inherited.endpoints.is_empty());
    let id = first.allocate_id()?;
    machine.enforce(&mut first, id, true)?;
    machine.finish(&mut first)?;
    ensure!(wire.passes()?, "allowed");
    ensure!(count(&first, Reason::Allowed, Direction::Egress)? > 0, "counted");
    machine.node.run(|| Ok(first.execute(&[policy(id, false)])?))?;
    ensure!(wire.is_cut()?, "an open flow that is no longer allowed");
    drop(first);
    ensure!(wire.is_cut()?, "enforced without an agent");

    let (mut second, inherited) = machine.start(attach)?;
    let [old] = inherited.endpoints[..] else {
        bail!("one endpoint is inherited: {inherited:?}")
    };
    ensure!((old.id, old.ifindex) == (id, machine.ifindex));
    ensure!(IpAddr::from(old.addr4) == machine.address && old.addr6 == Addr::UNSPECIFIED);
    let before = count(&second, Reason::PolicyDenied, Direction::Egress)?;
    ensure!(wire.is_cut()?, "enforced by the old generation");
    let after = count(&second, Reason::PolicyDenied, Direction::Egress)?;
    ensure!(after > before, "counted by the old generation, {before} -> {after}");
    ensure!(second.allocate_id()? != id, "an inherited id is not given away");
    machine.enforce(&mut second, id, true)?;
    ensure!(wire.passes()?, "allowed by the new generation");
    ensure!(
        names(&machine.bpffs())?.len() == 4 + usize::from(mode == Mode::Tc),
        "both generations are pinned"
    );
    machine.finish(&mut second)?;
    let expected = [format!("gen-{LAYOUT}-2"), format!("state-{LAYOUT}-1"), "links".into()];
    let found = names(&machine.bpffs())?;
    ensure!(
        expected.iter().all(|name| found.contains(name)) && !found.contains(&format!("gen-{LAYOUT}-1")),
        "{found:?}"
    );
    ensure!(wire.passes()?, "the old generation's end changes nothing");

    drop(second);
    let report = machine.detach()?;
    ensure!(report.interfaces == [machine.interface.clone()], "{report:?}");
    ensure!(report.left.is_empty(), "{report:?}");
    ensure!(
        !machine.bpffs().exists() && machine.is_bare()?,
        "{:?}",
        machine.programs()?
    );
    ensure!(wire.passes()?, "nothing is enforced any more");
    ensure!(machine.detach()?.is_empty(), "nothing is left to detach");
    Ok(())
}

#[test]
fn tcx_survives_restarts_and_goes_without_a_trace() -> Result<()> {
    survives_restarts(AttachMode::Tcx, Mode::Tcx)
}

#[test]
fn tc_survives_restarts_and_goes_without_a_trace() -> Result<()> {
    survives_restarts(AttachMode::Tc, Mode::Tc)
}

/// While the pod may send nothing, packets are sent all the time; through all takeovers and mode switches none may pass.
#[test]
fn no_packet_slips_through_takeovers_and_mode_switches() -> Result<()> {
    let machine = Machine::new()?;
    let wire = machine.wire()?;
    ensure!(wire.passes()?, "the lab itself");
    let (mut datapath, _) = machine.start(AttachMode::Tcx)?;
    let id = datapath.allocate_id()?;
    machine.enforce(&mut datapath, id, false)?;
    machine.finish(&mut datapath)?;
    ensure!(wire.is_cut()?);

    let stop = Arc::new(AtomicBool::new(false));
    let flood = {
        let (stop, sender, to) = (Arc::clone(&stop), wire.sender.try_clone()?, wire.to);
        thread::spawn(move || {
            let mut sent = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                sent += u64::from(sender.send_to(b"flood", to).is_ok());
            }
            sent
        })
    };
    let switch = || -> Result<()> {
        drop(datapath);
        for attach in [AttachMode::Tc, AttachMode::Tc, AttachMode::Tcx, AttachMode::Auto] {
            let (mut next, inherited) = machine.start(attach)?;
            ensure!(inherited.endpoints.len() == 1, "{attach:?}: {inherited:?}");
            machine.enforce(&mut next, id, false)?;
            machine.finish(&mut next)?;
            let (tcx, filters) = machine.programs()?;
            let expected = if attach == AttachMode::Tc { (0, 2) } else { (2, 0) };
            ensure!(
                (tcx.len(), filters.len()) == expected,
                "{attach:?}: {tcx:?} {filters:?}"
            );
        }
        Ok(())
    };
    let switched = switch();
    stop.store(true, Ordering::Relaxed);
    let sent = flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))?;
    switched?;
    ensure!(sent > 1_000, "only {sent} packets were sent");
    wire.receiver.set_read_timeout(Some(SILENCE))?;
    let leaked = wire.receiver.recv_from(&mut [0; 16]);
    ensure!(leaked.is_err(), "a packet of {sent} slipped through");
    ensure!(!machine.has_clsact()?, "our clsact went with its filters");
    machine.detach()?;
    Ok(())
}

/// Programs of others stay where they are, through attach, status and detach.
fn leaves_others_alone(attach: AttachMode) -> Result<()> {
    let machine = Machine::new()?;
    // The same object serves as somebody else's: without endpoints it lets everything pass.
    let foreign = machine.node.run(|| {
        let mut foreign = Ebpf::load(weir::object::BYTES)?;
        let program: &mut SchedClassifier = foreign.program_mut("weir_from_pod").context("program")?.try_into()?;
        program.load()?;
        if attach == AttachMode::Tc {
            tc::qdisc_add_clsact(&machine.interface)?;
            program.attach_with_options(
                &machine.interface,
                TcAttachType::Ingress,
                tc::TcAttachOptions::Netlink(tc::NlOptions::default()),
            )?;
        } else {
            program.attach_with_options(
                &machine.interface,
                TcAttachType::Ingress,
                tc::TcAttachOptions::TcxOrder(LinkOrder::default()),
            )?;
        }
        Ok(foreign)
    })?;
    let (mut datapath, _) = machine.start(attach)?;
    let id = datapath.allocate_id()?;
    machine.enforce(&mut datapath, id, false)?;
    machine.finish(&mut datapath)?;
    let others = machine.node.run(|| Ok(datapath.foreign_programs(machine.ifindex)?))?;
    let [other] = &others[..] else {
        bail!("one program is not ours: {others:?}")
    };
    ensure!(
        other.direction == Direction::Egress && other.name == "weir_from_pod",
        "{other:?}"
    );
    ensure!(machine.wire()?.is_cut()?, "ours is enforced beside it");
    drop(datapath);
    machine.detach()?;
    let (tcx, filters) = machine.programs()?;
    let left = if attach == AttachMode::Tc { &filters } else { &tcx };
    ensure!(
        left == &["weir_from_pod"] && tcx.len() + filters.len() == 1,
        "{tcx:?} {filters:?}"
    );
    ensure!(
        machine.has_clsact()? == (attach == AttachMode::Tc),
        "a clsact qdisc of others stays"
    );
    machine.node.run(|| {
        drop(foreign);
        Ok(())
    })
}

#[test]
fn tcx_leaves_others_alone() -> Result<()> {
    leaves_others_alone(AttachMode::Tcx)
}

#[test]
fn tc_leaves_others_alone() -> Result<()> {
    leaves_others_alone(AttachMode::Tc)
}

#[test]
fn a_map_of_another_shape_is_refused_and_left_as_it_is() -> Result<()> {
    let machine = Machine::new()?;
    let (datapath, _) = machine.start(AttachMode::Auto)?;
    let [_, state] = datapath.pinned();
    drop(datapath);
    // The fragment map under the name of the connection map: another key, another value.
    let path = state.join(map::CONNECTIONS);
    fs::remove_file(&path)?;
    aya::maps::MapData::from_pin(state.join(map::FRAGMENTS))?.pin(&path)?;
    let Err(error) = machine
        .node
        .run(|| Ok(Datapath::start(machine.options(AttachMode::Auto))))?
    else {
        bail!("it was taken")
    };
    ensure!(matches!(error, Error::ForeignShape { .. }), "{error}");
    let text = error.to_string();
    ensure!(text.contains("CONNECTIONS") && text.contains("weir detach"), "{text}");
    ensure!(path.exists(), "it is left for somebody to look at");
    machine.detach()?;
    machine.start(AttachMode::Auto)?;
    Ok(())
}

#[test]
fn a_second_agent_is_refused_by_run_directory_and_by_bpffs() -> Result<()> {
    let machine = Machine::new()?;
    let (_datapath, _) = machine.start(AttachMode::Auto)?;
    let Err(error) = Datapath::start(machine.options(AttachMode::Auto)) else {
        bail!("two agents")
    };
    ensure!(
        matches!(error, Error::RunDirInUse { pid: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    let elsewhere = Options {
        run_dir: machine.lab.directory().join("elsewhere"),
        ..machine.options(AttachMode::Auto)
    };
    let Err(error) = Datapath::start(elsewhere) else {
        bail!("two agents")
    };
    ensure!(matches!(error, Error::BpffsInUse { .. }), "{error}");
    let Err(error) = detach_all(&machine.bpffs(), &machine.run_dir()) else {
        bail!("detached under a running agent")
    };
    ensure!(error.to_string().contains(&std::process::id().to_string()), "{error}");
    Ok(())
}

#[test]
fn a_directory_that_is_no_bpffs_is_refused_with_the_remedy() -> Result<()> {
    let machine = Machine::new()?;
    let options = Options {
        bpffs: machine.lab.directory().join("not-bpffs"),
        ..machine.options(AttachMode::Auto)
    };
    let Err(error) = Datapath::start(options) else {
        bail!("not a bpffs")
    };
    ensure!(matches!(error, Error::NotBpffs { .. }), "{error}");
    Ok(())
}

#[test]
fn an_interface_that_goes_takes_its_endpoint_along_and_its_index_inherits_nothing() -> Result<()> {
    let mut machine = Machine::new()?;
    let (mut datapath, _) = machine.start(AttachMode::Auto)?;
    let id = datapath.allocate_id()?;
    machine.enforce(&mut datapath, id, false)?;
    machine.finish(&mut datapath)?;
    drop(datapath);
    machine.lab.remove_pod(POD)?;
    let name = machine.interface.clone();
    let index = machine.ifindex.to_string();
    for arguments in [
        ["link", "add", &name, "index", &index, "type", "veth"].as_slice(),
        ["link", "set", &name, "up"].as_slice(),
    ] {
        let mut command = Command::new("ip");
        command.args(arguments);
        machine.node.command(&mut command)?;
        ensure!(command.status()?.success(), "ip {arguments:?}");
    }
    let (mut datapath, inherited) = machine.start(AttachMode::Auto)?;
    ensure!(
        inherited.endpoints.is_empty(),
        "another interface under the old index: {inherited:?}"
    );
    ensure!(datapath.allocate_id()? != id || datapath_is_forgotten(&datapath, id)?);
    machine.finish(&mut datapath)?;
    ensure!(machine.is_bare()?);
    ensure!(
        names(&machine.bpffs().join("links"))?.is_empty(),
        "no pin of the old interface"
    );
    Ok(())
}

#[test]
fn an_interface_that_changes_hands_or_comes_anew_is_enforced_for_its_endpoint() -> Result<()> {
    let mut machine = Machine::new()?;
    let wire = machine.wire()?;
    let (mut datapath, _) = machine.start(AttachMode::Auto)?;
    let first = datapath.allocate_id()?;
    machine.enforce(&mut datapath, first, false)?;
    machine.finish(&mut datapath)?;
    drop(datapath);

    // Another pod has the interface now: a new endpoint takes it over from an inherited one, then from a living one.
    let (mut datapath, _) = machine.start(AttachMode::Auto)?;
    let second = datapath.allocate_id()?;
    ensure!(second != first);
    machine.enforce(&mut datapath, second, false)?;
    machine.finish(&mut datapath)?;
    ensure!(
        wire.is_cut()?,
        "the first sync does not take the new endpoint's programs away"
    );
    let third = datapath.allocate_id()?;
    machine.enforce(&mut datapath, third, true)?;
    ensure!(wire.passes()?);
    machine.node.run(|| Ok(datapath.remove_endpoint(second)?))?;
    machine.node.run(|| Ok(datapath.execute(&[policy(third, false)])?))?;
    ensure!(
        wire.is_cut()?,
        "the late end of the old endpoint does not touch the new one"
    );

    // The interface goes while the agent runs; the policy waits for the next one.
    machine.lab.remove_pod(POD)?;
    machine.node.run(|| Ok(datapath.clear_interface(third)?))?;
    ensure!(names(&machine.bpffs().join("links"))?.is_empty());
    machine.lab.add_pods(&[PodPlan {
        address: wire.sender.local_addr().ok().and_then(|address| match address.ip() {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        }),
        ..PodPlan::new(POD, "one")
    }])?;
    machine.interface.clone_from(&machine.lab.pod(POD)?.interface);
    machine.ifindex = machine
        .node
        .run(|| Ok(nix::net::if_::if_nametoindex(machine.interface.as_str())?))?;
    let wire = Wire {
        sender: machine.socket(POD)?,
        receiver: wire.receiver,
        to: wire.to,
    };
    ensure!(wire.passes()?, "not attached yet");
    machine.node.run(|| {
        datapath.set_interface(machine.binding(third))?;
        Ok(datapath.attach(third)?)
    })?;
    ensure!(wire.is_cut()?, "the policy was kept");
    Ok(())
}

fn datapath_is_forgotten(datapath: &Datapath, id: u32) -> Result<bool> {
    let mut named = false;
    datapath.connections(|key, _, _| named |= key.endpoint() == id)?;
    Ok(!named)
}

#[test]
fn pods_that_are_gone_are_detached_by_the_first_sync_only() -> Result<()> {
    let machine = Machine::new()?;
    let wire = machine.wire()?;
    ensure!(wire.passes()?);
    let (mut datapath, _) = machine.start(AttachMode::Auto)?;
    let id = datapath.allocate_id()?;
    machine.enforce(&mut datapath, id, false)?;
    machine.finish(&mut datapath)?;
    drop(datapath);
    let (mut datapath, inherited) = machine.start(AttachMode::Auto)?;
    ensure!(
        inherited.endpoints.len() == 1 && wire.is_cut()?,
        "before the first sync everything stays"
    );
    fs::create_dir(machine.bpffs().join("notours"))?;
    machine.finish(&mut datapath)?;
    ensure!(machine.is_bare()? && wire.passes()?, "nobody claimed it");
    drop(datapath);
    let report = machine.detach()?;
    ensure!(report.left == [machine.bpffs().join("notours")], "{report:?}");
    Ok(())
}

/// What the connection table holds: (endpoint, local port, confirmed).
fn entries(datapath: &Datapath) -> Result<BTreeSet<(u32, u16, bool)>> {
    let mut found = BTreeSet::new();
    datapath.connections(|key, _, confirmed| {
        found.insert((key.endpoint(), key.local_port, confirmed));
    })?;
    Ok(found)
}

#[test]
fn connections_are_carried_over_into_tables_of_another_size() -> Result<()> {
    let machine = Machine::new()?;
    let wire = machine.wire()?;
    let (mut datapath, _) = machine.start(AttachMode::Auto)?;
    let id = datapath.allocate_id()?;
    machine.enforce(&mut datapath, id, true)?;
    machine.finish(&mut datapath)?;
    ensure!(wire.passes()?);
    // An answer confirms the flow.
    let from = SocketAddr::new(machine.address, wire.sender.local_addr()?.port());
    wire.receiver.send_to(b"answer", from)?;
    let other = machine.socket(POD)?;
    other.send_to(b"unanswered", wire.to)?;
    wire.sender.set_read_timeout(Some(PATIENCE))?;
    wire.sender.recv_from(&mut [0; 16]).context("the answer")?;
    let confirmed = (id, wire.sender.local_addr()?.port(), true);
    let unconfirmed = (id, other.local_addr()?.port(), false);
    let before = entries(&datapath)?;
    ensure!(
        before.contains(&confirmed) && before.contains(&unconfirmed),
        "{before:?}"
    );
    drop(datapath);

    let options = Options {
        connections: 8_192,
        unconfirmed: 2_048,
        ..machine.options(AttachMode::Auto)
    };
    let (mut datapath, _) = machine.start_with(options)?;
    let carried = entries(&datapath)?;
    ensure!(
        carried.contains(&confirmed) && carried.contains(&unconfirmed),
        "{carried:?}"
    );
    // The old programs go on with the old map until the flip; what they add is carried over at the end.
    let late = machine.socket(POD)?;
    late.send_to(b"late", wire.to)?;
    let late = (id, late.local_addr()?.port(), false);
    ensure!(!entries(&datapath)?.contains(&late));
    machine.enforce(&mut datapath, id, true)?;
    machine.finish(&mut datapath)?;
    ensure!(entries(&datapath)?.contains(&late), "{:?}", entries(&datapath)?);
    ensure!(names(&machine.bpffs())?.contains(&format!("state-{LAYOUT}-2")));
    ensure!(!names(&machine.bpffs())?.contains(&format!("state-{LAYOUT}-1")));
    let usage = datapath.map_usage()?;
    let connections = usage
        .iter()
        .find(|usage| usage.name == map::CONNECTIONS)
        .context("usage")?;
    ensure!(
        connections.capacity == 8_192 && connections.memory.is_some_and(|bytes| bytes > 8_192 * 144),
        "{connections:?}"
    );
    Ok(())
}

#[test]
fn pins_of_another_layout_are_never_opened_as_ours() -> Result<()> {
    let machine = Machine::new()?;
    let wire = machine.wire()?;
    let (mut datapath, _) = machine.start(AttachMode::Auto)?;
    let id = datapath.allocate_id()?;
    machine.enforce(&mut datapath, id, false)?;
    machine.finish(&mut datapath)?;
    drop(datapath);
    for kind in ["state", "gen"] {
        let name = |layout: u32| machine.bpffs().join(format!("{kind}-{layout}-1"));
        fs::rename(name(LAYOUT), name(4_000_000))?;
    }
    let (mut datapath, inherited) = machine.start(AttachMode::Auto)?;
    ensure!(
        inherited.endpoints.is_empty() && entries(&datapath)?.is_empty(),
        "{inherited:?}"
    );
    ensure!(wire.is_cut()?, "what it left goes on");
    let id = datapath.allocate_id()?;
    machine.enforce(&mut datapath, id, true)?;
    ensure!(wire.passes()?);
    machine.finish(&mut datapath)?;
    let found = names(&machine.bpffs())?;
    ensure!(found.iter().all(|name| !name.contains("4000000")), "{found:?}");
    Ok(())
}

#[test]
fn maps_grow_into_a_new_generation_without_a_gap() -> Result<()> {
    let machine = Machine::new()?;
    let wire = machine.wire()?;
    let (mut datapath, _) = machine.start(AttachMode::Auto)?;
    let id = datapath.allocate_id()?;
    machine.enforce(&mut datapath, id, false)?;
    machine.finish(&mut datapath)?;
    let full = Options::new(machine.bpffs(), machine.run_dir()).capacity;
    let more = weir::policy::plan::Capacity {
        rows: full.rows * 2,
        ..full
    };
    machine.node.run(|| Ok(datapath.regenerate(more)?))?;
    ensure!(wire.is_cut()?, "the old generation goes on");
    machine.node.run(|| {
        let Err(error) = datapath.attach(id) else {
            bail!("attached without a policy")
        };
        ensure!(matches!(error, Error::EndpointIncomplete { .. }), "{error}");
        datapath.execute(&[policy(id, true)])?;
        datapath.attach(id)?;
        datapath.finish_first_sync()?;
        Ok(())
    })?;
    ensure!(wire.passes()?, "the new generation's policy");
    let usage = datapath.map_usage()?;
    let of = |name: &str| {
        usage
            .iter()
            .find(|usage| usage.name == name)
            .map(|usage| (usage.entries, usage.capacity))
    };
    ensure!(of(map::ROWS) == Some((Some(0), full.rows as u32 * 2)), "{usage:?}");
    ensure!(of(map::ENDPOINTS).and_then(|(entries, _)| entries) == Some(1));
    ensure!(!names(&machine.bpffs())?.contains(&format!("gen-{LAYOUT}-1")));
    Ok(())
}

#[test]
fn sweeps_end_what_expired_or_lost_its_endpoint_and_count_evictions() -> Result<()> {
    let machine = Machine::new()?;
    let wire = machine.wire()?;
    let options = Options {
        unconfirmed: 64,
        ..machine.options(AttachMode::Auto)
    };
    let (mut datapath, _) = machine.start_with(options)?;
    let id = datapath.allocate_id()?;
    machine.enforce(&mut datapath, id, true)?;
    machine.finish(&mut datapath)?;
    let mut sweeper = datapath.sweeper()?;
    ensure!(wire.passes()?);
    let report = sweeper.sweep(clock(), |_| {})?;
    ensure!(report.unconfirmed > 0 && report.evicted_unconfirmed == 0, "{report:?}");

    for port in 10_000..11_000 {
        wire.sender.send_to(b"x", SocketAddr::new(wire.to.ip(), port))?;
    }
    let report = sweeper.sweep(clock(), |_| {})?;
    // Per-CPU free lists of an LRU map hold some entries back.
    ensure!(
        report.unconfirmed <= 64 && report.evicted_unconfirmed >= 900,
        "{report:?}"
    );
    ensure!(report.evicted_connections == 0, "{report:?}");
    let usage = datapath.map_usage()?;
    let live = usage
        .iter()
        .find(|usage| usage.name == map::UNCONFIRMED)
        .context("usage")?;
    ensure!(live.entries == Some(report.unconfirmed), "{live:?}");

    // Everything has expired in an hour.
    let mut ended = 0;
    let report = sweeper.sweep(clock() + 3_600_000_000_000, |swept| {
        if let Swept::Connection { ended: true, .. } = swept {
            ended += 1;
        }
    })?;
    ensure!(
        report.unconfirmed == 0 && ended > 0 && report.ended == ended,
        "{report:?}"
    );
    ensure!(entries(&datapath)?.is_empty());
    let evicted = report.evicted_unconfirmed;

    ensure!(wire.passes()?, "a new flow");
    ensure!(!entries(&datapath)?.is_empty());
    machine.node.run(|| Ok(datapath.remove_endpoint(id)?))?;
    ensure!(machine.is_bare()?);
    ensure!(datapath.allocate_id()? != id, "its entries still name it");
    let report = sweeper.sweep(clock(), |_| {})?;
    ensure!(report.ended > 0 && entries(&datapath)?.is_empty(), "{report:?}");
    ensure!(
        report.evicted_unconfirmed == evicted,
        "what sweeps delete is no eviction: {report:?}"
    );
    Ok(())
}
