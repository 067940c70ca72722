//! Weir in a real cluster, installed from its chart and image: what `cargo xtask e2e` runs.

pub mod conformance;
mod first_packet;
pub mod pods;
pub mod provider;
mod rights;
pub mod stage;
mod sweep;
mod traffic;
pub mod upstream;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::lab::Family;

pub use stage::Stage;

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// What continuous integration runs.
    Core,
    All,
}

/// A case: it makes what it needs, and takes it away where it passes.
pub struct Case {
    pub name: &'static str,
    pub extent: Extent,
    run: fn(&Stage, Extent) -> Result<()>,
}

/// All cases, in their order. Weir is installed before the first.
pub const CASES: [Case; 9] = [
    Case {
        name: "conformance",
        extent: Extent::Core,
        run: |stage, extent| {
            let share = if extent == Extent::All { 1 } else { 8 };
            tell("conformance, IPv4", conformance::run(stage, share, Family::V4)?);
            Ok(())
        },
    },
    Case {
        name: "conformance-ipv6",
        extent: Extent::All,
        run: |stage, _| {
            tell("conformance, IPv6", conformance::run(stage, 4, Family::V6)?);
            Ok(())
        },
    },
    Case {
        name: "rights",
        extent: Extent::Core,
        run: |stage, _| rights::run(stage),
    },
    Case {
        name: "first-packet",
        extent: Extent::Core,
        run: |stage, _| first_packet::run(stage),
    },
    Case {
        name: "nothing",
        extent: Extent::All,
        run: |stage, _| traffic::nothing(stage),
    },
    Case {
        name: "rolling-update",
        extent: Extent::Core,
        run: |stage, _| traffic::rolling_update(stage),
    },
    Case {
        name: "kill-agents",
        extent: Extent::Core,
        run: |stage, _| traffic::kill_agents(stage),
    },
    Case {
        name: "control-plane-away",
        extent: Extent::Core,
        run: |stage, _| traffic::control_plane_away(stage),
    },
    Case {
        name: "uninstall",
        extent: Extent::Core,
        run: |stage, _| traffic::uninstall(stage),
    },
];

fn tell(what: &str, tally: conformance::Tally) {
    let conformance::Tally {
        cases,
        steps,
        probes,
        skipped,
    } = tally;
    println!("  {what}: {cases} cases, {steps} steps, {probes} probes; {skipped} cases skipped");
}

/// Installs Weir and runs the cases of these names (none: all of the extent), each whatever became of
/// the others.
///
/// # Errors
/// If Weir cannot be installed; which cases failed.
pub fn run(stage: &Stage, extent: Extent, filters: &[String]) -> Result<()> {
    let began = Instant::now();
    stage.install(&[])?;
    println!("installed after {:.1?}", began.elapsed());
    let chosen = CASES.iter().filter(|case| {
        if filters.is_empty() {
            case.extent <= extent
        } else {
            filters.iter().any(|filter| case.name == filter)
        }
    });
    let mut results: Vec<(&str, Duration, bool)> = Vec::new();
    for case in chosen {
        println!("{} ...", case.name);
        let began = Instant::now();
        let result = sweep::sweep(stage.api()).and_then(|()| (case.run)(stage, extent));
        let took = began.elapsed();
        match &result {
            Ok(()) => println!("{} passed ({took:.1?})", case.name),
            Err(error) => println!("{} FAILED ({took:.1?}): {error:#}\n{}", case.name, stage.agent_logs()),
        }
        results.push((case.name, took, result.is_ok()));
    }
    ensure!(
        !results.is_empty(),
        "there is no such case; there are: {}",
        CASES.map(|case| case.name).join(" ")
    );
    println!();
    for (name, took, passed) in &results {
        println!("{} {name} ({took:.1?})", if *passed { "passed" } else { "FAILED" });
    }
    let failed = results.iter().filter(|(.., passed)| !passed).count();
    ensure!(failed == 0, "{failed} of {} cases failed", results.len());
    Ok(())
}
