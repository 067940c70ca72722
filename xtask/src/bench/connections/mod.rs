//! `connections`: new connections and round trips per second between two pods of one node, with nothing, with Weir, and
//! with what Weir replaces.
//!
//! All sides run in one go on the same interfaces, one after the other in each round, so that what else the machine
//! does falls on all of them. What counts is the ratio to "nothing" within a round; shown is the median of the rounds.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use self::{generator::Generator, rules::Rule, side::Side};
use crate::{
    interrupt,
    node::Node,
    priority::Precedence,
    report::{self, Table},
    world::{self, World},
};

mod generator;
mod rules;
mod side;

/// New connections a second with Weir, as a share of those with nothing: at least.
const CONNECTIONS_LIMIT: f64 = 0.92;
/// Round trips likewise.
const ROUND_TRIPS_LIMIT: f64 = 0.95;
/// How far the most rules may fall behind one rule.
const FLATNESS_LIMIT: f64 = 0.03;

struct Plan {
    rules: &'static [usize],
    rounds: usize,
    warm_up: Duration,
    connections: Duration,
    round_trips: Duration,
}

const FULL: Plan = Plan {
    rules: &[1, 100, 1_000, 10_000],
    rounds: 5,
    warm_up: Duration::from_millis(200),
    connections: Duration::from_millis(1_000),
    round_trips: Duration::from_millis(500),
};

const QUICK: Plan = Plan {
    rules: &[1, 10_000],
    rounds: 2,
    warm_up: Duration::from_millis(100),
    connections: Duration::from_millis(500),
    round_trips: Duration::from_millis(250),
};

/// What was measured of one side with one number of rules, a value for each round.
#[derive(Default)]
struct Samples {
    connections: Vec<f64>,
    round_trips: Vec<f64>,
}

type Results = BTreeMap<(usize, Side), Samples>;

pub fn run(weir: &Path, quick: bool) -> Result<()> {
    report::heading(
        "connections",
        "new TCP connections and round trips per second between two pods; the last rule allows them",
    );
    let plan = if quick { QUICK } else { FULL };
    let [node, legacy] = [(); 2].map(|()| Node::new(&["client", "server"]));
    let (node, legacy) = (node?, legacy?);
    let mut bench = Bench {
        weir: weir.to_owned(),
        place: Place::new(&node)?,
        legacy: Place::new(&legacy)?,
        absent: Vec::new(),
    };
    bench.find_absent()?;
    let _precedence = Precedence::take();
    let mut results = Results::new();
    for &count in plan.rules {
        bench.measure(&plan, count, &mut results)?;
    }
    show(&plan, &results);
    Ok(())
}

struct Bench<'node> {
    weir: PathBuf,
    place: Place<'node>,
    /// A twin for iptables: its tables, once used, are walked by every packet of their namespace, also when they are
    /// empty again, and "nothing" must be nothing.
    legacy: Place<'node>,
    /// Sides that this machine cannot run.
    absent: Vec<Side>,
}

/// Where sides are put in place and measured.
struct Place<'node> {
    node: &'node Node,
    generator: Generator<'node>,
}

impl<'node> Place<'node> {
    fn new(node: &'node Node) -> Result<Self> {
        Ok(Self {
            node,
            generator: Generator::new(node)?,
        })
    }
}

impl<'node> Bench<'node> {
    fn place(&mut self, side: Side) -> &mut Place<'node> {
        if side == Side::Iptables {
            &mut self.legacy
        } else {
            &mut self.place
        }
    }

    /// Tries the peers, which not every kernel has.
    fn find_absent(&mut self) -> Result<()> {
        let world = World::new(self.place.node)?;
        for side in [Side::Iptables, Side::Nftables] {
            let node = self.place(side).node;
            if let Err(error) = side.install(&self.weir, node, &rules::rules(1), &world) {
                println!("  {} cannot be measured here: {error:#}", side.name());
                self.absent.push(side);
            }
        }
        Ok(())
    }

    fn measure(&mut self, plan: &Plan, count: usize, results: &mut Results) -> Result<()> {
        let rules = rules::rules(count);
        let world = World::new(self.place.node)?;
        world.remote_pods(&world::remote_pods(rules::REMOTE_PODS))?;
        world.policies(&rules::policies(&rules))?;
        for round in 0..plan.rounds {
            let mut sides = Side::ALL;
            // None of them always comes right after the same other one has warmed or cooled the caches.
            sides.rotate_left(round % Side::ALL.len());
            if round % 2 == 1 {
                sides.reverse();
            }
            for side in sides {
                interrupt::check()?;
                if self.absent.contains(&side) {
                    continue;
                }
                let (connections, round_trips) = self
                    .slice(plan, side, &rules, &world)
                    .with_context(|| format!("{} with {count} rules", side.name()))?;
                let samples = results.entry((count, side)).or_default();
                samples.connections.push(connections);
                samples.round_trips.push(round_trips);
            }
        }
        Ok(())
    }

    /// One side of one round: put in place, proven, measured, removed.
    fn slice(&mut self, plan: &Plan, side: Side, rules: &[Rule], world: &World) -> Result<(f64, f64)> {
        let weir = self.weir.clone();
        let Place { node, generator } = self.place(side);
        let installed = side.install(&weir, node, rules, world)?;
        let open = generator.forbidden_port_answers()?;
        if open != (side == Side::Nothing) {
            bail!(
                "a port that no rule allows {}",
                if open { "answers" } else { "does not answer" }
            );
        }
        generator.connections(plan.warm_up)?;
        let connections = generator.connections(plan.connections)?;
        let round_trips = generator.round_trips(plan.round_trips)?;
        drop(installed);
        Ok((connections, round_trips))
    }
}

/// The median, over the rounds, of a side's share of what "nothing" made in the same round.
fn ratio(results: &Results, count: usize, side: Side, of: impl Fn(&Samples) -> &Vec<f64>) -> Option<f64> {
    let nothing = of(results.get(&(count, Side::Nothing))?);
    let own = of(results.get(&(count, side))?);
    let ratios: Vec<f64> = own.iter().zip(nothing).map(|(own, nothing)| own / nothing).collect();
    report::median(&ratios)
}

fn show(plan: &Plan, results: &Results) {
    let two = |ratio: Option<f64>| ratio.map_or_else(|| "–".into(), |ratio| format!("{ratio:.3}"));
    let mut figures = Vec::new();
    type Pick = fn(&Samples) -> &Vec<f64>;
    let kinds: [(&str, Pick); 2] = [
        ("new connections", |samples| &samples.connections),
        ("round trips", |samples| &samples.round_trips),
    ];
    for (kind, of) in kinds {
        println!(
            "\n  {kind}: per second with nothing, else as a share of it (median of {} rounds)",
            plan.rounds
        );
        let mut table = Table::new(["rules"].into_iter().chain(Side::ALL.map(Side::name)));
        for &count in plan.rules {
            let cells = Side::ALL.map(|side| {
                let samples = results.get(&(count, side)).map(of);
                let rate = samples.and_then(|samples| report::median(samples));
                let ratio = ratio(results, count, side, of);
                figures.push(json!({
                    "kind": kind, "rules": count, "side": side.name(), "per_second": rate.map(f64::round), "ratio": ratio,
                    "rounds": samples.map(|samples| samples.iter().map(|rate| rate.round()).collect::<Vec<_>>()),
                }));
                match side {
                    Side::Nothing => rate.map_or_else(|| "–".into(), |rate| format!("{rate:.0}")),
                    _ => two(ratio),
                }
            });
            table.row([count.to_string()].into_iter().chain(cells));
        }
        table.print();
    }
    judge(plan, results);
    report::json_line("connections", json!(figures));
}

/// The figures beside what is asked of them.
fn judge(plan: &Plan, results: &Results) {
    println!();
    let worst = |of: fn(&Samples) -> &Vec<f64>| {
        let ratios = plan
            .rules
            .iter()
            .filter_map(|&count| ratio(results, count, Side::Weir, of));
        ratios.min_by(f64::total_cmp)
    };
    if let Some(worst) = worst(|samples| &samples.connections) {
        let verdict = report::at_least(worst, CONNECTIONS_LIMIT);
        println!("  Weir, new connections, worst: {worst:.3} (at least {CONNECTIONS_LIMIT}: {verdict})");
    }
    if let Some(worst) = worst(|samples| &samples.round_trips) {
        let verdict = report::at_least(worst, ROUND_TRIPS_LIMIT);
        println!("  Weir, round trips, worst: {worst:.3} (at least {ROUND_TRIPS_LIMIT}: {verdict})");
    }
    let weir = |count: Option<&usize>| ratio(results, *count?, Side::Weir, |samples| &samples.connections);
    if let (Some(one), Some(most)) = (weir(plan.rules.first()), weir(plan.rules.last())) {
        let lost = 1.0 - most / one;
        let verdict = report::at_most(lost, FLATNESS_LIMIT);
        println!(
            "  Weir, most rules behind one rule: {:.1} % (at most {:.0} %: {verdict})",
            lost * 100.0,
            FLATNESS_LIMIT * 100.0
        );
    }
}
