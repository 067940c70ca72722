//! Pods that their runtime waits with are enforced by filters at once and by links soon after, with no packet between.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weir::datapath::{AttachMode, Datapath};

use crate::machine::{Machine, POD, Wire, names};

/// A pod that may send nothing, attached in a hurry.
fn hurried(attach: AttachMode) -> Result<(Machine, Wire, Datapath, u32)> {
    let machine = Machine::new()?;
    let wire = machine.wire()?;
    ensure!(wire.passes()?, "the lab itself");
    let (mut datapath, _) = machine.start(attach)?;
    machine.finish(&mut datapath)?;
    let id = datapath.allocate_id()?;
    machine.enforce_at_once(&mut datapath, id, false)?;
    Ok((machine, wire, datapath, id))
}

/// Programs on the interface: of links, and of filters.
fn hooks(machine: &Machine) -> Result<(usize, usize)> {
    let (links, filters) = machine.programs()?;
    Ok((links.len(), filters.len()))
}

fn settle(machine: &Machine, datapath: &mut Datapath) -> Result<()> {
    machine.node.run(|| {
        datapath.settle();
        Ok(())
    })
}

#[test]
fn links_take_the_place_of_filters_and_nothing_slips_through() -> Result<()> {
    let (machine, wire, mut datapath, id) = hurried(AttachMode::Tcx)?;
    ensure!(
        wire.is_cut()? && hooks(&machine)? == (0, 2),
        "{:?}",
        machine.programs()?
    );
    // Long after a pod has started, a qdisc is not removed any more.
    std::thread::sleep(Duration::from_millis(300));
    wire.nothing_slips_through(|| {
        for expected in [(1, 1), (2, 0)] {
            ensure!(datapath.unsettled_since().is_some(), "not settled before {expected:?}");
            settle(&machine, &mut datapath)?;
            ensure!(hooks(&machine)? == expected, "{:?}", machine.programs()?);
        }
        Ok(())
    })?;
    ensure!(datapath.unsettled_since().is_none() && machine.has_clsact()?);
    drop(datapath);

    // The next agent finds links, and leaves the queue alone.
    let (mut datapath, inherited) = machine.start(AttachMode::Tcx)?;
    ensure!(inherited.endpoints.len() == 1, "{inherited:?}");
    wire.nothing_slips_through(|| machine.enforce(&mut datapath, id, false))?;
    machine.finish(&mut datapath)?;
    ensure!(hooks(&machine)? == (2, 0) && machine.has_clsact()?);
    drop(datapath);
    machine.detach()?;
    // It does nothing, and goes with its interface: to remove it would lose packets.
    ensure!(hooks(&machine)? == (0, 0) && machine.has_clsact()?);
    ensure!(!machine.bpffs().exists() && wire.passes()?);
    Ok(())
}

#[test]
fn an_interface_that_is_settled_soon_has_no_queue_left() -> Result<()> {
    let machine = Machine::new()?;
    let (mut datapath, _) = machine.start(AttachMode::Tcx)?;
    machine.finish(&mut datapath)?;
    let id = datapath.allocate_id()?;
    // A machine that is too slow for it proves nothing: once more.
    for _ in 0..20 {
        let began = Instant::now();
        machine.enforce_at_once(&mut datapath, id, true)?;
        settle(&machine, &mut datapath)?;
        settle(&machine, &mut datapath)?;
        ensure!(datapath.unsettled_since().is_none() && hooks(&machine)? == (2, 0));
        if began.elapsed() < Duration::from_millis(300) {
            ensure!(!machine.has_clsact()?, "a clsact qdisc is left");
            ensure!(names(&machine.bpffs().join("qdiscs"))?.is_empty());
            return Ok(());
        }
        machine.node.run(|| Ok(datapath.clear_interface(id)?))?;
        ensure!(machine.is_bare()?);
    }
    anyhow::bail!("this machine never attaches within 300 ms")
}

#[test]
fn an_agent_that_dies_half_way_leaves_everything_enforced() -> Result<()> {
    for settled in [0, 1] {
        let (machine, wire, mut datapath, id) = hurried(AttachMode::Tcx)?;
        for _ in 0..settled {
            settle(&machine, &mut datapath)?;
        }
        ensure!(hooks(&machine)? == (settled, 2 - settled));
        drop(datapath);
        ensure!(wire.is_cut()?, "nobody runs, and nobody enforces");
        let (mut datapath, inherited) = machine.start(AttachMode::Tcx)?;
        ensure!(
            inherited.endpoints.iter().map(|old| old.id).eq([id]),
            "{settled} hooks settled: {inherited:?}"
        );
        wire.nothing_slips_through(|| machine.enforce(&mut datapath, id, false))?;
        machine.finish(&mut datapath)?;
        ensure!(hooks(&machine)? == (2, 0), "{:?}", machine.programs()?);
        // An agent that dies again, of which nobody takes over.
        drop(datapath);
        machine.detach()?;
        ensure!(machine.is_bare()?);
    }
    Ok(())
}

#[test]
fn an_interface_that_goes_before_it_is_settled_leaves_nothing() -> Result<()> {
    let (mut machine, _wire, mut datapath, id) = hurried(AttachMode::Tcx)?;
    machine.lab.remove_pod(POD)?;
    settle(&machine, &mut datapath)?;
    ensure!(datapath.unsettled_since().is_none(), "nothing can be settled");
    machine.node.run(|| Ok(datapath.clear_interface(id)?))?;
    for kind in ["links", "qdiscs"] {
        ensure!(names(&machine.bpffs().join(kind))?.is_empty(), "{kind} are left");
    }
    Ok(())
}

#[test]
fn without_links_filters_are_final() -> Result<()> {
    let (machine, wire, datapath, _) = hurried(AttachMode::Tc)?;
    ensure!(wire.is_cut()? && hooks(&machine)? == (0, 2));
    ensure!(datapath.unsettled_since().is_none(), "there is nothing to be done");
    Ok(())
}

#[test]
fn a_hook_that_takes_no_filter_gets_its_link_at_once() -> Result<()> {
    let machine = Machine::new()?;
    let wire = machine.wire()?;
    // As the bandwidth plugin makes it: it stands where clsact would, and has no hook for what the pod receives.
    machine.tc(&["qdisc", "add", "dev", &machine.interface, "ingress"])?;
    ensure!(
        machine
            .tc(&["qdisc", "show", "dev", &machine.interface])?
            .contains("ingress")
    );
    let (mut datapath, _) = machine.start(AttachMode::Tcx)?;
    machine.finish(&mut datapath)?;
    let id = datapath.allocate_id()?;
    machine.enforce_at_once(&mut datapath, id, false)?;
    ensure!(wire.is_cut()?, "the pod may send nothing");
    ensure!(datapath.unsettled_since().is_none() && hooks(&machine)? == (2, 0));
    drop(datapath);

    // Without links it cannot be enforced, and that is said.
    let (mut datapath, _) = machine.start(AttachMode::Tc)?;
    let Err(error) = machine.enforce(&mut datapath, id, false) else {
        anyhow::bail!("a hook for what the pod receives was found where there is none")
    };
    ensure!(error.to_string().contains("clsact"), "{error}");
    ensure!(wire.is_cut()?, "the links are there still");
    drop(datapath);
    machine.detach()?;
    ensure!(
        machine
            .tc(&["qdisc", "show", "dev", &machine.interface])?
            .contains("ingress")
    );
    Ok(())
}
