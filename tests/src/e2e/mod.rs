//! Weir in a real cluster, installed from its chart and image: what `cargo xtask e2e` runs.

pub mod conformance;
mod first_packet;
pub mod pods;
pub mod provider;
mod reboot;
mod rights;
pub mod stage;
mod sweep;
mod traffic;
mod uninstall;
pub mod upstream;
mod values;
mod world;

use std::time::Instant;

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

/// What a case is worth on a cluster of which a kubeconfig alone is known: control plane and nodes are not in reach there as
/// those of a cluster of namespaces are.
#[derive(Clone, Copy, Debug)]
enum Elsewhere {
    Whole,
    /// All but this.
    Without(&'static str),
    /// Nothing, for this reason: it is skipped.
    Nothing(&'static str),
}

/// A case: it makes what it needs, and takes it away where it passes.
#[derive(Debug)]
pub struct Case {
    pub name: &'static str,
    pub extent: Extent,
    elsewhere: Elsewhere,
    run: fn(&Stage, Extent) -> Result<()>,
}

/// All cases, in their order. Weir is installed before the first.
pub static CASES: [Case; 11] = [
    Case {
        name: "conformance",
        extent: Extent::Core,
        elsewhere: Elsewhere::Whole,
        run: |stage, extent| {
            let share = if extent == Extent::All { 1 } else { 8 };
            tell("conformance, IPv4", conformance::run(stage, share, Family::V4)?);
            Ok(())
        },
    },
    Case {
        name: "conformance-ipv6",
        extent: Extent::All,
        elsewhere: Elsewhere::Whole,
        run: |stage, _| {
            tell("conformance, IPv6", conformance::run(stage, 4, Family::V6)?);
            Ok(())
        },
    },
    Case {
        name: "rights",
        extent: Extent::Core,
        elsewhere: Elsewhere::Whole,
        run: |stage, _| rights::run(stage),
    },
    Case {
        name: "first-packet",
        extent: Extent::Core,
        elsewhere: Elsewhere::Whole,
        run: |stage, _| first_packet::run(stage),
    },
    Case {
        name: "nothing",
        extent: Extent::All,
        elsewhere: Elsewhere::Whole,
        run: |stage, _| traffic::nothing(stage),
    },
    Case {
        name: "rolling-update",
        extent: Extent::Core,
        elsewhere: Elsewhere::Whole,
        run: |stage, _| traffic::rolling_update(stage),
    },
    Case {
        name: "kill-agents",
        extent: Extent::Core,
        elsewhere: Elsewhere::Whole,
        run: |stage, _| traffic::kill_agents(stage),
    },
    Case {
        name: "control-plane-away",
        extent: Extent::Core,
        elsewhere: Elsewhere::Nothing(
            "it kills API server and etcd, which can be done in a cluster of namespaces alone",
        ),
        run: traffic::control_plane_away,
    },
    Case {
        name: "reboot",
        extent: Extent::Core,
        elsewhere: Elsewhere::Nothing(
            "it ends everything of a node, which can be done in a cluster of namespaces alone",
        ),
        run: |stage, _| reboot::run(stage),
    },
    Case {
        name: "values",
        extent: Extent::Core,
        elsewhere: Elsewhere::Whole,
        run: |stage, _| values::run(stage),
    },
    Case {
        name: "uninstall",
        extent: Extent::Core,
        elsewhere: Elsewhere::Without(
            "a look at what is left on nodes, which can be had in a cluster of namespaces alone",
        ),
        run: |stage, _| uninstall::run(stage),
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

/// The cases of these names, or, without names, all of the extent.
///
/// # Errors
/// If a name is no case's.
pub fn choose(extent: Extent, names: &[String]) -> Result<Vec<&'static Case>> {
    let unknown: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| CASES.iter().all(|case| case.name != *name))
        .collect();
    ensure!(
        unknown.is_empty(),
        "no such case: {}; there are: {}",
        unknown.join(" "),
        CASES.each_ref().map(|case| case.name).join(" ")
    );
    let chosen = |case: &&Case| {
        if names.is_empty() {
            case.extent <= extent
        } else {
            names.iter().any(|name| case.name == name)
        }
    };
    Ok(CASES.iter().filter(chosen).collect())
}

/// Installs Weir and runs these cases, each whatever became of the others.
///
/// # Errors
/// If Weir cannot be installed; which cases failed; if there is none that the cluster is good for.
pub fn run(stage: &Stage, extent: Extent, cases: &[&Case]) -> Result<()> {
    let ours = stage.cluster().is_some();
    let mut results: Vec<String> = Vec::new();
    let mut playable = Vec::new();
    for case in cases {
        match case.elsewhere {
            Elsewhere::Nothing(reason) if !ours => results.push(format!("skipped {}: {reason}", case.name)),
            _ => playable.push(case),
        }
    }
    ensure!(
        !playable.is_empty(),
        "there is nothing to be run: {}",
        results.join("; ")
    );
    let began = Instant::now();
    stage.install(&[])?;
    println!("installed after {:.1?}", began.elapsed());
    let mut failed = 0;
    for case in &playable {
        let name = case.name;
        println!("{name} ...");
        let began = Instant::now();
        let result = sweep::sweep(stage.api()).and_then(|()| (case.run)(stage, extent));
        let took = began.elapsed();
        let line = match (&result, case.elsewhere) {
            (Err(_), _) => format!("FAILED {name} ({took:.1?})"),
            (Ok(()), Elsewhere::Without(part)) if !ours => format!("passed {name} ({took:.1?}), without {part}"),
            (Ok(()), _) => format!("passed {name} ({took:.1?})"),
        };
        println!("{line}");
        if let Err(error) = &result {
            failed += 1;
            println!("{error:#}\n{}", stage.agent_logs());
        }
        results.push(line);
    }
    println!("\n{}", results.join("\n"));
    ensure!(failed == 0, "{failed} of {} cases failed", playable.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{CASES, Extent, choose};

    #[test]
    fn a_wrong_name_among_right_ones_is_told() {
        let names = ["rights", "kill-agent"].map(str::to_owned);
        let error = choose(Extent::Core, &names).expect_err("one is wrong").to_string();
        assert!(
            error.starts_with("no such case: kill-agent; there are: conformance "),
            "{error}"
        );
    }

    #[test]
    fn names_count_whatever_the_extent() {
        let chosen = choose(Extent::Core, &["nothing".to_owned()]).expect("it is a case");
        assert_eq!(chosen.iter().map(|case| case.name).collect::<Vec<_>>(), ["nothing"]);
        let all = choose(Extent::All, &[]).expect("no name is wrong");
        assert_eq!(all.len(), CASES.len());
        assert!(choose(Extent::Core, &[]).expect("no name is wrong").len() < all.len());
    }
}
