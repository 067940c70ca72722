//! Programs that somebody else takes off an interface are missed, and put back by attaching again.

use std::fs;

use anyhow::{Result, ensure};
use weir::datapath::{AttachMode, Datapath};
use weir_common::Direction::{self, Egress, Ingress};
use weir_tests::{hooks::tc, kernel};

use crate::machine::{Machine, POD, Wire, policy};

/// A pod that may send nothing.
fn cut(attach: AttachMode) -> Result<(Machine, Wire, Datapath, u32)> {
    let machine = Machine::new()?;
    let wire = machine.wire()?;
    ensure!(wire.passes()?, "the lab itself");
    let (mut datapath, _) = machine.start(attach)?;
    let id = datapath.allocate_id()?;
    machine.enforce(&mut datapath, id, false)?;
    machine.finish(&mut datapath)?;
    ensure!(wire.is_cut()?);
    Ok((machine, wire, datapath, id))
}

/// What is missing on which hooks of the pod.
fn look(machine: &Machine, datapath: &mut Datapath, id: u32) -> Result<Vec<Direction>> {
    let (found, looked) = machine.node.run(|| Ok(datapath.look(&[id])))?;
    looked?;
    ensure!(found.len() <= 1, "{found:?}");
    ensure!(
        found
            .iter()
            .all(|lost| (lost.id, lost.ifindex) == (id, machine.ifindex)),
        "{found:?}"
    );
    Ok(found.into_iter().flat_map(|lost| lost.directions).collect())
}

/// Something is taken away: it is missed once, and attaching puts it back.
fn mended(
    (machine, wire, datapath, id): (&Machine, &Wire, &mut Datapath, u32),
    lost: &[Direction],
    hooks: (usize, usize),
) -> Result<()> {
    if lost.contains(&Egress) {
        ensure!(wire.passes()?, "nothing was taken away");
    }
    let found = look(machine, datapath, id)?;
    ensure!(found == lost, "{found:?} are missed");
    ensure!(
        look(machine, datapath, id)?.is_empty(),
        "it counts as not attached already"
    );
    machine.node.run(|| Ok(datapath.attach(id)?))?;
    ensure!(wire.is_cut()?, "it is not back");
    let (links, filters) = machine.programs()?;
    ensure!((links.len(), filters.len()) == hooks, "{links:?} {filters:?}");
    ensure!(
        look(machine, datapath, id)?.is_empty(),
        "something is missed that is there"
    );
    Ok(())
}

#[test]
fn filters_are_missed_and_put_back() -> Result<()> {
    let (machine, wire, mut datapath, id) = cut(AttachMode::Tc)?;
    ensure!(look(&machine, &mut datapath, id)?.is_empty());
    let (node, interface) = (machine.node.clone(), machine.interface.clone());
    let mut check = |lost: &[Direction]| mended((&machine, &wire, &mut datapath, id), lost, (0, 2));

    tc(&node, &["qdisc", "del", "dev", &interface, "clsact"])?;
    check(&[Egress, Ingress])?;
    tc(&node, &["filter", "del", "dev", &interface, "ingress"])?;
    check(&[Egress])?;
    tc(&node, &["filter", "del", "dev", &interface, "egress"])?;
    check(&[Ingress])?;
    // Somebody makes the qdisc anew, for something else.
    tc(&node, &["qdisc", "del", "dev", &interface, "clsact"])?;
    tc(&node, &["qdisc", "add", "dev", &interface, "clsact"])?;
    let match_nothing = ["protocol", "ip", "prio", "1", "u32", "match", "u32", "1", "0xffffffff"];
    let other = [&["filter", "add", "dev", &interface, "ingress"][..], &match_nothing].concat();
    tc(&node, &other)?;
    check(&[Egress, Ingress])?;
    let shown = tc(&node, &["filter", "show", "dev", &interface, "ingress"])?;
    ensure!(shown.contains("u32"), "the other filter is gone: {shown}");
    Ok(())
}

#[test]
fn links_are_missed_and_put_back() -> Result<()> {
    let (machine, wire, mut datapath, id) = cut(AttachMode::Tcx)?;
    ensure!(look(&machine, &mut datapath, id)?.is_empty());
    let pin = |side: &str| machine.bpffs().join(format!("links/{}-{side}", machine.ifindex));

    for (sides, lost) in [
        (&["from", "to"][..], &[Egress, Ingress][..]),
        (&["from"], &[Egress]),
        (&["to"], &[Ingress]),
    ] {
        for side in sides {
            kernel::detach_link(&pin(side))?;
            ensure!(pin(side).exists(), "the pin outlives the attachment");
        }
        mended((&machine, &wire, &mut datapath, id), lost, (2, 0))?;
    }
    // A link that nothing holds any more goes.
    fs::remove_file(pin("from"))?;
    mended((&machine, &wire, &mut datapath, id), &[Egress], (2, 0))?;
    ensure!(pin("from").exists(), "it is held again");
    drop(datapath);
    ensure!(wire.is_cut()?, "what was put back stays without an agent");
    Ok(())
}

#[test]
fn filters_in_the_place_of_links_are_not_missed_until_they_are_gone() -> Result<()> {
    let machine = Machine::new()?;
    let wire = machine.wire()?;
    ensure!(wire.passes()?, "the lab itself");
    let (mut datapath, _) = machine.start(AttachMode::Tcx)?;
    machine.finish(&mut datapath)?;
    let id = datapath.allocate_id()?;
    machine.enforce_at_once(&mut datapath, id, false)?;
    ensure!(look(&machine, &mut datapath, id)?.is_empty(), "two filters");
    machine.node.run(|| {
        datapath.settle();
        Ok(())
    })?;
    ensure!(look(&machine, &mut datapath, id)?.is_empty(), "a filter and a link");
    tc(&machine.node, &["qdisc", "del", "dev", &machine.interface, "clsact"])?;
    // Which of the two is a filter yet is not for this test to know.
    let lost = look(&machine, &mut datapath, id)?;
    ensure!(lost.len() == 1, "{lost:?}");
    ensure!(
        datapath.unsettled_since().is_none(),
        "attaching again leaves nothing to settle"
    );
    machine.node.run(|| Ok(datapath.attach(id)?))?;
    let (links, filters) = machine.programs()?;
    ensure!((links.len(), filters.len()) == (2, 0), "{links:?} {filters:?}");
    ensure!(wire.is_cut()? && look(&machine, &mut datapath, id)?.is_empty());
    Ok(())
}

#[test]
fn only_the_current_generation_counts_and_only_where_it_was_attached() -> Result<()> {
    for attach in [AttachMode::Tcx, AttachMode::Tc] {
        let (machine, wire, mut datapath, id) = cut(attach)?;
        let capacity = machine.options(attach).capacity;
        // Between two generations: what is not attached yet is not missed.
        machine.node.run(|| Ok(datapath.regenerate(capacity)?))?;
        ensure!(look(&machine, &mut datapath, id)?.is_empty(), "{attach:?}");
        machine.node.run(|| {
            datapath.execute(&[policy(id, false)])?;
            Ok(datapath.attach(id)?)
        })?;
        machine.finish(&mut datapath)?;
        ensure!(look(&machine, &mut datapath, id)?.is_empty(), "{attach:?}");
        ensure!(wire.is_cut()?);
    }
    Ok(())
}

#[test]
fn an_interface_that_is_gone_is_no_finding() -> Result<()> {
    for attach in [AttachMode::Tcx, AttachMode::Tc] {
        let (mut machine, _wire, mut datapath, id) = cut(attach)?;
        machine.lab.remove_pod(POD)?;
        ensure!(look(&machine, &mut datapath, id)?.is_empty(), "{attach:?}");
        ensure!(
            look(&machine, &mut datapath, 4_000)?.is_empty(),
            "an endpoint that is not known"
        );
    }
    Ok(())
}
