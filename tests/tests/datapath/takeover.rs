//! What is attached stays what it is, whoever starts, stops, crashes or comes back in another mode; and goes without a trace
//! when it is told to.

use std::{fs, net::IpAddr};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc},
};
use weir::datapath::{AttachMode, Datapath, Error, Mode, Options, detach_all};
use weir_common::{
    Addr, Direction,
    layout::{LAYOUT, map},
    reason::Reason,
};

use crate::machine::{Machine, count, names, policy};

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

    wire.nothing_slips_through(|| {
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
    })?;
    ensure!(
        machine.has_clsact()?,
        "our clsact stays without filters: removing it loses packets"
    );
    machine.detach()?;
    ensure!(machine.is_bare()?, "it goes with the last of ours");
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
