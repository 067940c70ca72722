//! Tables grow, change their layout and are swept, and no connection is lost by it.

use std::{collections::BTreeSet, fs, net::SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use weir::datapath::{AttachMode, Datapath, Error, Options, Swept, clock};
use weir_common::layout::{LAYOUT, map};

use crate::machine::{Machine, PATIENCE, POD, names, policy};

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
