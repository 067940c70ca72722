//! Interfaces come, go and change hands, and each is enforced for its endpoint.

use std::{fs, net::IpAddr, process::Command};

use anyhow::{Context as _, Result, ensure};
use weir::datapath::{AttachMode, Datapath};
use weir_tests::lab::PodPlan;

use crate::machine::{Machine, POD, Wire, names, policy};

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

#[test]
fn what_cannot_be_detached_keeps_nothing_else_and_all_of_it_is_told() -> Result<()> {
    let machine = Machine::new()?;
    let wire = machine.wire()?;
    let (mut datapath, _) = machine.start(AttachMode::Auto)?;
    let id = datapath.allocate_id()?;
    machine.enforce(&mut datapath, id, false)?;
    machine.finish(&mut datapath)?;
    drop(datapath);
    ensure!(wire.is_cut()?);
    // In the place of pins of an interface that comes first, what is none.
    let broken = ["1-from", "1-to"].map(|name| machine.bpffs().join("links").join(name));
    for path in &broken {
        fs::create_dir(path)?;
    }
    let error = machine.detach().err().context("it says that all is done")?.to_string();
    for path in &broken {
        ensure!(error.contains(&path.display().to_string()), "{error}");
    }
    ensure!(
        machine.is_bare()? && wire.passes()?,
        "another interface was not detached"
    );
    // Mended, it is done again.
    for path in &broken {
        fs::remove_dir(path)?;
    }
    machine.detach()?;
    ensure!(!machine.bpffs().exists(), "pins are left");
    Ok(())
}
