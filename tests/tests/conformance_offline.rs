//! All reachability cases against the naive evaluator and the compiled decisions, without packets: any user can run it.

use std::path::Path;

use anyhow::{Context, Result};
use weir_tests::conformance::{Suite, offline};

#[test]
fn every_case_as_evaluated_and_as_compiled() -> Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let suite = Suite::load(&directory, &["upstream-e2e", "cyclonus", "calico"])?;
    let (mut cases, mut probes) = (0, 0);
    let mut wrong = Vec::new();
    for (cluster, group) in &suite.groups {
        for case in group {
            let (asked, failed) = offline::play(cluster, case).with_context(|| case.name.clone())?;
            cases += 1;
            probes += asked;
            wrong.extend(failed);
        }
    }
    let shown: Vec<&str> = wrong.iter().take(30).map(String::as_str).collect();
    assert!(
        wrong.is_empty(),
        "{} of {probes} probes:\n{}",
        wrong.len(),
        shown.join("\n")
    );
    assert!(
        cases >= 220 && probes > 10_000,
        "{cases} cases, {probes} probes; skipped {:?}",
        suite.skipped
    );
    Ok(())
}
