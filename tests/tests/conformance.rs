//! All reachability cases on real packets, in every setting: how programs are attached, how many nodes, which family.
//!
//! Normally two settings run everything and the others a share, so that each hook, node count and family meets every
//! case; with `WEIR_THOROUGH` all settings run everything. `WEIR_CONFORMANCE` names the cases to run (a part of the
//! name), for work on one of them. A directory of more cases (`WEIR_CONFORMANCE_EXTRA`, or `../shared/conformance`
//! beside the repository) is used where it is there.

use std::{
    env,
    io::Write as _,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};
use weir_tests::{
    conformance::{Runner, Setting, Suite, Tally},
    lab::{Family, agent::Attach},
};

/// Folders of the cases that lie elsewhere because their text may not be copied.
const EXTRA: [&str; 1] = ["recipes"];

fn cases() -> Result<Suite> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut suite = Suite::load(&own.join("conformance"), &["upstream-e2e", "cyclonus", "calico"])?;
    if let Some(directory) = extra(own) {
        let folders: Vec<&str> = EXTRA
            .into_iter()
            .filter(|folder| directory.join(folder).is_dir())
            .collect();
        suite.extend(Suite::load(&directory, &folders)?);
    }
    if let Ok(part) = env::var("WEIR_CONFORMANCE") {
        suite = suite.named(&part);
    }
    Ok(suite)
}

fn extra(own: &Path) -> Option<PathBuf> {
    let directory = match env::var_os("WEIR_CONFORMANCE_EXTRA") {
        Some(directory) => PathBuf::from(directory),
        None => own.join("../../shared/conformance"),
    };
    directory.is_dir().then_some(directory)
}

/// Runs every `share`-th case.
fn run(attach: Attach, nodes: usize, family: Family, share: usize) -> Result<()> {
    let began = Instant::now();
    let setting = Setting { attach, nodes, family };
    let share = if env::var_os("WEIR_THOROUGH").is_some() || env::var_os("WEIR_CONFORMANCE").is_some() {
        1
    } else {
        share
    };
    let suite = cases()?.every(share);
    let mut tally = Tally::default();
    let mut failures = Vec::new();
    let mut logs = String::new();
    for (cluster, cases) in &suite.groups {
        let mut runner = Runner::new(cluster, setting)?;
        for case in cases {
            if let Err(error) = runner.play(case) {
                let failure = format!("{setting}: {}: {error:#}\n{}", case.name, runner.logs());
                // At once too: the other settings may take minutes.
                writeln!(std::io::stderr(), "conformance, {failure}")?;
                panic!("{failure}");
            }
        }
        let log = runner.logs();
        let (done, wrong) = runner.finish();
        tally.add(done);
        if !wrong.is_empty() {
            logs += &log;
        }
        failures.extend(wrong);
    }
    // Past the test harness, which shows the output of failed tests only.
    writeln!(
        std::io::stderr(),
        "conformance, {setting}: {tally}; {} cases skipped; {} steps wrong; {:.1?}",
        suite.skipped.len(),
        failures.len(),
        began.elapsed()
    )
    .context("write the tally")?;
    assert!(tally.cases > 0 && tally.probes > 0, "no case was run");
    let shown: String = failures.iter().take(20).map(ToString::to_string).collect();
    assert!(
        failures.is_empty(),
        "{setting}: {} steps wrong\n{shown}\n{logs}",
        failures.len()
    );
    Ok(())
}

#[test]
fn tcx_one_node_v4() -> Result<()> {
    run(Attach::Tcx, 1, Family::V4, 1)
}

#[test]
fn tcx_two_nodes_v6() -> Result<()> {
    run(Attach::Tcx, 2, Family::V6, 1)
}

#[test]
fn tc_two_nodes_v4() -> Result<()> {
    run(Attach::Tc, 2, Family::V4, 4)
}

#[test]
fn tc_one_node_v6() -> Result<()> {
    run(Attach::Tc, 1, Family::V6, 4)
}

#[test]
fn tcx_one_node_v6() -> Result<()> {
    run(Attach::Tcx, 1, Family::V6, 20)
}

#[test]
fn tcx_two_nodes_v4() -> Result<()> {
    run(Attach::Tcx, 2, Family::V4, 20)
}

#[test]
fn tc_one_node_v4() -> Result<()> {
    run(Attach::Tc, 1, Family::V4, 20)
}

#[test]
fn tc_two_nodes_v6() -> Result<()> {
    run(Attach::Tc, 2, Family::V6, 20)
}
