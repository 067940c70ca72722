//! Hours of an agent's life in minutes: pods under traffic while everything around them changes, fails and comes back.
//!
//! | file | what |
//! |---|---|
//! | `policies` | policies drawn at random |
//! | `changes` | what is done to pods, labels, namespaces and policies |
//! | `faults` | what fails, and how it comes back |
//! | `expected` | what must be so, of the API server's own words |
//! | `check` | whether it is so: on the wire, and in the agents' tables |
//! | `resources` | memory, descriptors and map entries, before and after |
//!
//! The run is made of rounds. In each, thousands of pods of another node come, change and go, with statuses late and out of
//! order, while the pods of two nodes, their namespaces and policies change and something fails now and then; and at its end
//! the world is what it was at the start.

mod changes;
mod check;
mod expected;
mod faults;
mod policies;
mod resources;

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weir::api::Severity;

use self::{check::Checks, faults::Fault, resources::Resources};
use crate::{
    api_world::ApiWorld,
    churn::{ELSEWHERE, Random, Writer},
    cluster::Component,
    lab::{Families, Family, probe::Prober},
    traffic::{Traffic, TrafficReport},
    world::{ENFORCED, Plan, World},
};

/// The node whose agent is killed now and then.
const KILLED: &str = "node-1";
/// The node whose agent lives through all of it.
const SPARED: &str = "node-2";

const PODS: [(&str, &str); 8] = [
    ("k/client", KILLED),
    ("k/server", KILLED),
    ("k/stranger", SPARED),
    ("x/a", KILLED),
    ("x/b", KILLED),
    ("x/c", SPARED),
    ("y/a", KILLED),
    ("y/b", SPARED),
];

/// Who writes pods of another node, each so many.
const WRITERS: u32 = 4;
const PODS_EACH: usize = 500;

/// How long a round goes on once all of these pods are there.
const ROUND: Duration = Duration::from_secs(45);
const BETWEEN_CHANGES: Duration = Duration::from_millis(150);
const BETWEEN_CHECKS: Duration = Duration::from_secs(15);
const BETWEEN_FAULTS: Duration = Duration::from_secs(17);

/// Two pods and their neighbours never change: x/a's namespace may be what it likes.
const SERVER: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: server, namespace: k}
spec:
  podSelector: {matchLabels: {pod: server}}
  policyTypes: [Ingress]
  ingress:
  - from:
    - podSelector: {matchLabels: {pod: client}}
    - namespaceSelector: {matchLabels: {ns: x}}
      podSelector: {matchExpressions: [{key: app, operator: In, values: [app-0, app-1]}]}
";

/// Failures that are told; what follows tells little more.
const TOLD: usize = 20;

/// What has been done so far.
#[derive(Debug, Default)]
struct Tally {
    changes: u64,
    faults: u64,
    checks: Checks,
    failures: Vec<String>,
}

impl Tally {
    fn fail(&mut self, what: impl Into<String>) {
        let what = what.into();
        eprintln!("soak: {what}");
        self.failures.push(what);
    }
}

/// Runs for so long, then for as long as ending takes. Prints a line for each round and a summary.
///
/// # Errors
/// What did not hold; what could not be done.
pub fn run(duration: Duration) -> Result<()> {
    let began = Instant::now();
    let plan = Plan {
        pods: PODS.to_vec(),
        families: Families::V4,
        ..Plan::one_node(&[])
    };
    let mut tally = Tally::default();
    let mut report = None;
    let held = ApiWorld::without_agents(&plan)?.check(|world| {
        // What ends the run is told beside what did not hold before, and may follow from it.
        if let Err(error) = rounds(world, (began, duration), &mut tally, &mut report) {
            tally.fail(format!("the run cannot go on: {error:#}"));
        }
        ensure!(
            tally.failures.is_empty(),
            "{} things did not hold",
            tally.failures.len()
        );
        Ok(())
    });
    println!(
        "soak: {:.0} s: {} changes of two nodes' pods and policies, {} of {} other pods; {} faults; {} checks of {} flows on the \
         wire and {} addresses",
        began.elapsed().as_secs_f64(),
        tally.changes,
        tally.checks.written,
        WRITERS as usize * PODS_EACH,
        tally.faults,
        tally.checks.done,
        tally.checks.flows,
        tally.checks.addresses,
    );
    if let Some(met) = report {
        println!(
            "soak: traffic: {} datagrams ({} lost), {} round trips on one connection ({} segments lost), {} connections ({} \
             refused), {} forbidden datagrams ({} arrived)",
            met.sent, met.lost, met.round_trips, met.lost_segments, met.opened, met.refused, met.forbidden, met.leaked,
        );
    }
    if held.is_ok() {
        println!("soak: ok");
    }
    // The last one may be what ended the run.
    let left_out = tally.failures.len().saturating_sub(TOLD);
    let (first, last) = tally.failures.split_at(tally.failures.len().min(TOLD - 1));
    for failure in first.iter().chain(last.last()) {
        println!("soak: FAILED: {failure}");
    }
    if left_out > 0 {
        println!("soak: {left_out} more are not shown");
    }
    held
}

/// Rounds until the time is over, and before the first and after the last what they need. The traffic's report is there once
/// it has ended by itself.
fn rounds(
    world: &mut ApiWorld,
    (began, duration): (Instant, Duration),
    tally: &mut Tally,
    report: &mut Option<TrafficReport>,
) -> Result<()> {
    changes::reset(world)?;
    world.apply(SERVER)?;
    world.put(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": ELSEWHERE}}))?;
    world.world.start_agents()?;
    // They would only clean up after nodes without kubelets.
    world.cluster.kill(Component::ControllerManager)?;
    world.cluster.kill(Component::Scheduler)?;
    enforced(&mut world.world)?;

    let traffic = Traffic::start(
        &world.world,
        Family::V4,
        ("k/client", "k/server"),
        Some(("k/stranger", "k/server")),
    )?;
    let mut first = Resources::read(&world.world)?;
    println!("soak: start: {first}");
    let mut random = Random::new(1);
    let mut fault = Fault::ALL.iter().cycle();
    let mut prober = Prober::default();
    for number in 1.. {
        round(world, tally, &mut random, &mut fault, &mut prober)?;
        for node in [KILLED, SPARED] {
            let status = world.world.status(node)?;
            let errors = status
                .problems
                .iter()
                .filter(|problem| problem.severity == Severity::Error);
            tally
                .failures
                .extend(errors.map(|problem| format!("{node}: {problem}")));
            if let Some(reason) = status.reason.filter(|_| !status.ready) {
                tally.fail(format!("{node} is not ready: {reason}"));
            }
        }
        let now = resources::back_to(&world.world, &first)?;
        println!(
            "soak: {:>4.0?} round {number}: {} changes, {} faults, {} checks, {now}",
            began.elapsed().as_secs_f64(),
            tally.changes,
            tally.faults,
            tally.checks.done
        );
        if number == 1 {
            // What an agent allocates once, it has by now.
            tally.failures.extend(first.differences(&now, false));
            first.warm(&now);
        } else {
            tally.failures.extend(first.differences(&now, true));
        }
        if began.elapsed() >= duration || tally.failures.len() >= TOLD {
            break;
        }
    }
    let met = traffic.stop(&world.world)?;
    if let Err(error) = met.unharmed() {
        tally.fail(format!("{error:#}"));
    }
    *report = Some(met);
    for (node, agent) in &world.world.agents {
        let log = agent.log_tail(usize::MAX);
        let errors = log.lines().filter(|line| is_failure(line));
        tally.failures.extend(
            errors
                .take(TOLD)
                .map(|line| format!("in the log of the agent of {node}: {line}")),
        );
    }
    Ok(())
}

/// Whether an agent logs what it should not have to. An API server that is away is told as such, and one that has just started
/// refuses everybody until it has read its roles; whether that is over is asked at the end of each round.
fn is_failure(line: &str) -> bool {
    let passing = ["the API server cannot be reached", "permission is missing (403)"];
    line.contains("panicked") || (line.contains(" ERROR ") && !passing.iter().any(|what| line.contains(what)))
}

/// Writers that can be held up.
struct Writers<'a> {
    writers: Vec<Mutex<Writer<'a>>>,
    /// How many have made all their pods.
    complete: AtomicU32,
    held: AtomicBool,
    ended: AtomicBool,
}

impl<'a> Writers<'a> {
    /// One of them, until it is told to end; then it removes what it has made.
    fn work(&self, writer: &Mutex<Writer<'a>>) -> Result<()> {
        let mut complete = false;
        loop {
            if self.held.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(5));
                continue;
            }
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            if self.ended.load(Ordering::Relaxed) {
                if !writer.remove()? {
                    return Ok(());
                }
            } else if writer.pods().len() < PODS_EACH {
                writer.add()?;
            } else {
                if !complete {
                    complete = true;
                    self.complete.fetch_add(1, Ordering::Relaxed);
                }
                writer.change()?;
            }
        }
    }
}

/// Everything changes for a while; at the end it is as it was.
fn round<'f>(
    world: &mut ApiWorld,
    tally: &mut Tally,
    random: &mut Random,
    faults: &mut impl Iterator<Item = &'f Fault>,
    prober: &mut Prober,
) -> Result<()> {
    let ApiWorld {
        world: lab, cluster, ..
    } = world;
    let api = cluster.api();
    let writers = Writers {
        writers: (0..WRITERS)
            .map(|number| Mutex::new(Writer::new(api, number)))
            .collect(),
        complete: AtomicU32::new(0),
        held: AtomicBool::new(false),
        ended: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let threads: Vec<_> = writers
            .writers
            .iter()
            .map(|writer| scope.spawn(|| writers.work(writer)))
            .collect();
        let work = (|| -> Result<()> {
            let mut until = None;
            let mut check_at = Instant::now() + BETWEEN_CHECKS;
            let mut fault_at = Instant::now() + BETWEEN_FAULTS;
            while until.is_none_or(|until| Instant::now() < until) {
                if until.is_none() && writers.complete.load(Ordering::Relaxed) == WRITERS {
                    until = Some(Instant::now() + ROUND);
                }
                ensure!(
                    !threads.iter().any(thread::ScopedJoinHandle::is_finished),
                    "a writer has ended before its time"
                );
                changes::one(lab, api, random)?;
                tally.changes += 1;
                thread::sleep(BETWEEN_CHANGES);
                if Instant::now() >= fault_at {
                    let fault = faults.next().context("faults go on for ever")?;
                    fault
                        .happen(lab, cluster, random)
                        .with_context(|| format!("{fault:?}"))?;
                    tally.faults += 1;
                    fault_at = Instant::now() + BETWEEN_FAULTS;
                }
                if Instant::now() >= check_at {
                    writers.held.store(true, Ordering::Relaxed);
                    let checked = check::check(lab, api, &writers.writers, prober, tally);
                    writers.held.store(false, Ordering::Relaxed);
                    checked?;
                    check_at = Instant::now() + BETWEEN_CHECKS;
                }
            }
            Ok(())
        })();
        writers.ended.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        work
    })?;
    for writer in &writers.writers {
        tally.checks.written += writer.lock().unwrap_or_else(PoisonError::into_inner).written();
    }
    changes::restore(lab, api)?;
    enforced(lab)
}

/// Waits until every agent enforces what the API server holds. One that has just been started answers some questions only
/// later; agents call that an error when they are asked to wait just then.
fn enforced(world: &mut World) -> Result<()> {
    let deadline = Instant::now() + ENFORCED * 2;
    while let Err(error) = world.enforced() {
        if Instant::now() > deadline {
            return Err(error);
        }
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}
