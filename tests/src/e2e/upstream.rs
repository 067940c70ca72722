//! Kubernetes' own NetworkPolicy suite (`test/e2e/network/netpol`), as it is.

use std::{
    fs::{self, File},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use super::stage::Stage;

/// What is run.
const FOCUS: &str = "Netpol ";

/// Specs that need what Weir does not have yet. The suite reaches servers through ClusterIPs, and Weir sees those before
/// kube-proxy has chosen a pod, so egress rules that name pods or their addresses do not match (two specs have such rules
/// without saying so in their names); and SCTP through Services takes a kernel module.
const SKIPPED: [&str; 5] = [
    "egress",
    "Egress",
    "an IP overlapping both",
    "NamespaceSelector with MatchExpressions using default ns label",
    "SCTP",
];

/// How many specs run then: of the 50 that [`FOCUS`] chooses in Kubernetes 1.34, 17 match [`SKIPPED`] (10 `egress` or `Egress`,
/// one each of the next two, 5 `SCTP`). Fewer would mean that something has kept specs from running.
const RUN: usize = 33;

/// What became of the suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// Specs.
    passed: Vec<String>,
    /// Specs, and what is done before and after all of them.
    failed: Vec<String>,
}

/// Runs the suite without what [`SKIPPED`] says. It fails where the suite cannot be built or started, and where it ends as failed
/// though nothing in its report is.
fn run(stage: &Stage) -> Result<Outcome> {
    let suite = stage.binaries().upstream_suite()?;
    let scratch = tempfile::tempdir().context("make a temporary directory")?;
    let log = scratch.path().join("log");
    let file = File::create(&log).context("make a log")?;
    let mut command = Command::new(suite);
    command
        .env("KUBECONFIG", stage.kubeconfig())
        .args([
            "--provider=skeleton",
            "--disable-log-dump",
            "--ginkgo.no-color",
            "--ginkgo.succinct",
        ])
        .arg(format!("--num-nodes={}", stage.nodes()?.len()))
        .arg(format!("--kubeconfig={}", stage.kubeconfig().display()))
        .arg(format!("--ginkgo.focus={FOCUS}"))
        .arg(format!("--ginkgo.skip={}", SKIPPED.join("|")))
        .arg(format!(
            "--ginkgo.junit-report={}",
            scratch.path().join("report.xml").display()
        ))
        .stdin(Stdio::null())
        .stderr(file.try_clone().context("duplicate a descriptor")?)
        .stdout(file);
    let status = command.status().context("start Kubernetes' e2e suite")?;
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let Ok(report) = fs::read_to_string(scratch.path().join("report.xml")) else {
        bail!("Kubernetes' suite ended with {status} and no report:\n{}", said());
    };
    let outcome = read(&report);
    if !outcome.failed.is_empty() {
        println!("{}", said());
    }
    ensure!(
        status.success() || !outcome.failed.is_empty(),
        "Kubernetes' suite ended with {status}, though its report tells no failure:\n{}",
        said()
    );
    Ok(outcome)
}

/// Installs Weir, runs the suite and tells what became of it.
///
/// # Errors
/// If a spec fails, or the suite itself; if not as many specs run as there are.
pub fn play(stage: &Stage) -> Result<()> {
    stage.install(&[])?;
    let Outcome { passed, failed } = run(stage)?;
    for name in &passed {
        println!("passed {name}");
    }
    for name in &failed {
        println!("FAILED {name}");
    }
    println!("{} specs passed, {} failures", passed.len(), failed.len());
    ensure!(failed.is_empty(), "Kubernetes' suite failed: {}", failed.join("; "));
    ensure!(
        passed.len() == RUN,
        "{} specs of Kubernetes' suite ran, not {RUN}; if another version has others, RUN and SKIPPED are to be looked through",
        passed.len()
    );
    Ok(())
}

/// A JUnit report as Ginkgo writes it: one `<testcase name= status=>` for each spec, `[It]`, and for each thing that is done
/// around all of them, such as `[SynchronizedAfterSuite]`.
fn read(report: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for element in report.split("<testcase ").skip(1) {
        let head = element.split('>').next().unwrap_or_default();
        let attribute = |name: &str| {
            let (_, from) = head.split_once(&format!("{name}=\""))?;
            from.split('"').next()
        };
        let name = attribute("name").unwrap_or_default();
        let spec = name.starts_with("[It]");
        let name = name
            .replace("&#34;", "\"")
            .replace("&quot;", "\"")
            .replace("&#39;", "'")
            .replace("&amp;", "&");
        match attribute("status") {
            Some("passed") if spec => outcome.passed.push(name),
            Some("passed") => {}
            Some("skipped" | "pending") | None => {}
            Some(_) => outcome.failed.push(name),
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn a_report_of_ginkgo_is_read() {
        let outcome = read(concat!(
            r#"<testsuites><testsuite><testcase name="[SynchronizedBeforeSuite]" status="passed" time="1"></testcase>"#,
            r#"<testcase name="[It] a &#34;b&#34;" classname="x" status="passed" time="2"><system-err>x > y</system-err></testcase>"#,
            r#"<testcase name="[It] c" status="failed" time="2"></testcase>"#,
            r#"<testcase name="[It] d" status="skipped" time="0"></testcase>"#,
            r#"<testcase name="[SynchronizedAfterSuite]" status="panicked" time="1"></testcase></testsuite></testsuites>"#,
        ));
        assert_eq!(outcome.passed, ["[It] a \"b\""]);
        assert_eq!(outcome.failed, ["[It] c", "[SynchronizedAfterSuite]"]);
    }
}
