//! Manifests where inotify reaches its limits: changes are seen all the same.

use std::{
    env, fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError};
use weir::{
    metrics::Arrivals,
    source::{
        SourceEvent,
        manifests::{Config, ManifestSource},
    },
};
use weir_tests::{
    lab::{
        Family,
        probe::{Protocol, Verdict},
    },
    world::{Plan, World},
};

/// What takes milliseconds where nothing is missed, and a second where it is.
const PATIENCE: Duration = Duration::from_secs(20);

/// Set in the process whose limits are its own.
const INSIDE: &str = "WEIR_TEST_OWN_LIMITS";

/// Runs a test of this file again, in a user namespace of its own: there it can set limits that concern nobody else.
/// False: this is that run.
fn outside(test: &str) -> Result<bool> {
    if env::var_os(INSIDE).is_some() {
        return Ok(false);
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--"])
        .arg(env::current_exe()?)
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .context("run unshare")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(true)
}

/// Limits of this user namespace (user_namespaces(7), sysctl user.*).
fn limit(what: &str, number: u32) -> Result<()> {
    let path = format!("/proc/sys/user/{what}");
    fs::write(&path, number.to_string()).with_context(|| format!("write {path}"))
}

fn namespace(directory: &Path, name: &str) -> Result<()> {
    let text = format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
    Ok(fs::write(directory.join(format!("{name}.yaml")), text)?)
}

/// Takes events until one is as wanted.
fn until(events: &mut UnboundedReceiver<SourceEvent>, what: &str, wanted: impl Fn(&SourceEvent) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match events.try_recv() {
            Ok(event) if wanted(&event) => return Ok(()),
            Ok(_) => {}
            Err(TryRecvError::Disconnected) => anyhow::bail!("the source has ended before {what}"),
            Err(TryRecvError::Empty) => {
                ensure!(Instant::now() < deadline, "{what} never came");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn applies(name: &str) -> impl Fn(&SourceEvent) -> bool {
    move |event| matches!(event, SourceEvent::Apply(object) if *object.key().name == *name)
}

fn warns(event: &SourceEvent) -> bool {
    let SourceEvent::Problems { problems, .. } = event else {
        return false;
    };
    problems
        .iter()
        .any(|problem| problem.message.contains("only once a second") && problem.remedy.contains("max_user_watches"))
}

fn solved(event: &SourceEvent) -> bool {
    matches!(event, SourceEvent::Problems { problems, .. } if problems.is_empty())
}

/// Directories of manifests, and a source that reads them with a limit in force.
fn limited(
    what: &str,
    number: u32,
    test: impl FnOnce(&Path, &mut UnboundedReceiver<SourceEvent>) -> Result<()>,
) -> Result<()> {
    let home = tempfile::tempdir()?;
    let manifests = home.path().join("manifests");
    for directory in ["a", "b", "c", "d"] {
        fs::create_dir_all(manifests.join(directory))?;
        namespace(&manifests.join(directory), &format!("first-{directory}"))?;
    }
    limit(what, number)?;
    let config = Config {
        directory: manifests.clone(),
        run_dir: home.path().join("run"),
    };
    let (_source, mut events) = ManifestSource::start(&config, Arrivals::default())?;
    let everything = |event: &SourceEvent| matches!(event, SourceEvent::Reset(objects) if objects.len() == 4);
    until(&mut events, "the first list", everything)?;
    until(&mut events, "a warning", warns)?;
    test(&manifests, &mut events)
}

#[test]
fn directories_beyond_the_limit_of_watches_are_looked_at_every_second() -> Result<()> {
    if outside("directories_beyond_the_limit_of_watches_are_looked_at_every_second")? {
        return Ok(());
    }
    limited("max_inotify_watches", 2, |manifests, events| {
        for directory in ["a", "b", "c", "d"] {
            namespace(&manifests.join(directory), &format!("second-{directory}"))?;
            until(events, directory, applies(&format!("second-{directory}")))?;
        }
        limit("max_inotify_watches", 1000)?;
        until(events, "the end of the warning", solved)?;
        namespace(&manifests.join("d"), "third")?;
        until(events, "a change that is watched again", applies("third"))
    })
}

#[test]
fn without_inotify_everything_is_looked_at_every_second() -> Result<()> {
    if outside("without_inotify_everything_is_looked_at_every_second")? {
        return Ok(());
    }
    limited("max_inotify_instances", 0, |manifests, events| {
        namespace(manifests, "second")?;
        until(events, "a change", applies("second"))?;
        limit("max_inotify_instances", 10)?;
        until(events, "the end of the warning", solved)?;
        namespace(manifests, "third")?;
        until(events, "a change that is watched again", applies("third"))
    })
}

const DENY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: x}
spec:
  podSelector: {matchLabels: {pod: server}}
  policyTypes: [Ingress]
";

/// Stops all threads of a process. The signal alone says only that they will be stopped: until then they go on reading.
fn stop(pid: Pid) -> Result<()> {
    kill(pid, Signal::SIGSTOP)?;
    let deadline = Instant::now() + PATIENCE;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let file = thread?.path().join("stat");
        // The state follows the name, which is in parentheses and may hold some itself (proc_pid_stat(5)).
        while !fs::read_to_string(&file)?
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
        {
            ensure!(Instant::now() < deadline, "{} does not stop", file.display());
            thread::sleep(Duration::from_millis(1));
        }
    }
    Ok(())
}

/// More changes than the kernel keeps for a reader: those after them are lost, and found again.
#[test]
fn a_change_that_inotify_lost_is_found_again() -> Result<()> {
    World::new(&Plan::one_node(&["x/server", "x/a"]))?.check(|world| {
        let verdict = |world: &mut World| world.verdict("x/a", "x/server", Family::V4, Protocol::Tcp, 80);
        ensure!(verdict(world)? == Verdict::Allow, "open without a policy");
        let queue: u32 = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events")?
            .trim()
            .parse()?;
        let pid = Pid::from_raw(world.agent("node-1")?.pid().context("it runs")?.try_into()?);
        stop(pid)?;
        let names = ["noise-a", "noise-b"].map(|name| world.manifests.directory().join(name));
        fs::write(&names[0], "")?;
        // Each tells two events: from where, and to where.
        for round in 0..queue as usize / 2 + 10 {
            fs::rename(&names[round % 2], &names[(round + 1) % 2])?;
        }
        world.manifests.text("policy", DENY)?;
        kill(pid, Signal::SIGCONT)?;
        // Nobody asks the agent to look: it must find out by itself.
        let deadline = Instant::now() + PATIENCE;
        while verdict(world)? != Verdict::Deny {
            ensure!(Instant::now() < deadline, "the policy is never enforced");
        }
        let log = world.agent("node-1")?.log_tail(200);
        ensure!(
            log.contains("more changes than inotify can queue"),
            "nothing was lost:\n{log}"
        );
        Ok(())
    })
}
