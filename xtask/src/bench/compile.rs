//! `compile`: from objects to decision tables, in this process: no files, no kernel.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use weir::{
    api::{Object, Outcome, Parser},
    index::Index,
    policy::{
        change::{Change, PeerKey},
        compile::Compiler,
        plan::{Capacity, Plan},
        selector::EntityKind,
    },
    source::SourceEvent,
};

use crate::{
    interrupt, load,
    node::NAME,
    priority::Precedence,
    report::{self, Table},
    world::{self, NAMESPACE},
};

/// Room for everything: what is measured is not how shortages are handled.
const CAPACITY: Capacity = Capacity {
    addresses: 1 << 20,
    cidrs: 1 << 20,
    identities: 1 << 20,
    rows: 1 << 22,
    decisions: 1 << 24,
    source_ports: 1 << 20,
    traces: 1 << 20,
};

/// Makes all objects of a world.
type Objects = fn() -> Vec<Value>;
/// Makes an object's version of one repetition.
type Version = fn(usize) -> Value;

struct World {
    name: &'static str,
    objects: Objects,
    changes: Vec<(&'static str, Version)>,
    /// Figures have limits: of the compilation from nothing, and of each change's p99.
    limits: Option<(f64, f64)>,
}

/// Asked of 10,000 GlobalNetworkPolicies with different selectors and 20,000 remote pods.
const CALICO_LIMITS_MS: (f64, f64) = (2_000.0, 10.0);

pub fn run(quick: bool) -> Result<()> {
    report::heading("compile", "from objects to decision tables, in memory");
    let mut figures = Vec::new();
    let mut whole = Table::new([
        "world",
        "objects",
        "parse ms",
        "index ms",
        "compile ms",
        "identities",
        "rows",
        "decisions",
        "",
    ]);
    let mut single = Table::new(["world", "one change", "p50 ms", "p99 ms", "max ms", "map writes", ""]);
    let _precedence = Precedence::take();
    for world in worlds() {
        interrupt::check()?;
        let name = world.name;
        let mut bench = Bench::new(&world, &mut whole, &mut figures)?;
        let repeats = if quick { 40 } else { 200 };
        for (change, versions) in world.changes {
            let mut times = Vec::new();
            let mut writes = 0;
            for number in 0..repeats {
                let (took, plan) = bench.change(&versions(number))?;
                times.push(milliseconds(took));
                writes = writes.max(plan.add.len() + plan.flip.len() + plan.remove.len());
            }
            let quantile = |q| report::quantile(&times, q).unwrap_or(f64::NAN);
            let (p50, p99, max) = (quantile(0.5), quantile(0.99), quantile(1.0));
            let limit = world.limits.map_or_else(String::new, |(_, limit)| {
                format!("p99 ≤ {limit}: {}", report::at_most(p99, limit))
            });
            single.row([
                name.into(),
                change.into(),
                format!("{p50:.3}"),
                format!("{p99:.3}"),
                format!("{max:.3}"),
                writes.to_string(),
                limit,
            ]);
            figures.push(json!({
                "world": name, "change": change, "changes": repeats,
                "p50_ms": p50, "p99_ms": p99, "max_ms": max, "map_writes": writes,
            }));
        }
    }
    whole.print();
    println!();
    single.print();
    report::json_line("compile", json!(figures));
    Ok(())
}

/// The load that the peers were measured under.
fn large_cluster() -> Vec<Value> {
    let mut objects = local_objects();
    objects.extend(world::remote_pods(10_000));
    objects.extend(load::policies(1_000));
    objects
}

/// As many different selectors as rules, all for one pod.
fn many_selectors() -> Vec<Value> {
    const PER_POLICY: usize = 100;
    let mut objects = local_objects();
    objects.extend(load::services(20_000));
    objects.extend((0..load::SELECTORS / PER_POLICY).map(|policy| {
        let rules: Vec<Value> = (policy * PER_POLICY..(policy + 1) * PER_POLICY)
            .map(|number| {
                json!({
                    "from": [{ "podSelector": { "matchLabels": { "app": load::service(number) } } }],
                    "ports": [{ "protocol": "TCP", "port": 1_024 + number % 64 }],
                })
            })
            .collect();
        world::policy(&format!("selectors-{policy:03}"), "server", &rules)
    }));
    objects
}

/// As many different selectors as policies, each for every pod.
fn many_policies() -> Vec<Value> {
    let mut objects = local_objects();
    objects.extend(load::services(20_000));
    objects.extend(load::global_policies(load::SELECTORS));
    objects
}

fn worlds() -> [World; 3] {
    [
        World {
            name: "10,000 pods, 1,000 policies",
            objects: large_cluster,
            changes: changes(),
            limits: None,
        },
        World {
            name: "20,000 pods, 10,000 selectors",
            objects: many_selectors,
            changes: changes(),
            limits: None,
        },
        World {
            name: "20,000 pods, 10,000 GlobalNetworkPolicies",
            objects: many_policies,
            changes: global_changes(),
            limits: Some(CALICO_LIMITS_MS),
        },
    ]
}

fn local_objects() -> Vec<Value> {
    let pod =
        |(number, name): (usize, &&str)| world::pod(name, name, Ipv4Addr::new(10, 77, 0, 10 + number as u8), NAME);
    world::cluster(Ipv4Addr::new(10, 78, 0, 1).into())
        .into_iter()
        .chain(load::LOCAL_PODS.iter().enumerate().map(pod))
        .collect()
}

/// Single changes where policies are Kubernetes'.
fn changes() -> Vec<(&'static str, Version)> {
    vec![
        ("a new remote pod", |number| {
            world::remote_pod(50_000 + number, &world::group(number))
        }),
        ("a remote pod's label", |number| {
            world::remote_pod(50_000 + number, &world::group(number + 1))
        }),
        ("a new policy", |number| rule_for(&format!("new-{number}"), number)),
        ("a policy's rule", |number| rule_for("changing", number)),
        ("a namespace's label", |number| {
            world::namespace(if number % 2 == 0 { "shop" } else { "store" })
        }),
    ]
}

/// Single changes where policies are Calico's.
fn global_changes() -> Vec<(&'static str, Version)> {
    vec![
        ("a new remote pod", |number| {
            world::remote_pod(50_000 + number, &load::service(number * 37))
        }),
        ("a remote pod's label", |number| {
            world::remote_pod(number * 97, &load::service(number * 31 + 1))
        }),
        ("a local pod's label", |number| {
            world::pod(
                "client",
                &load::service(number * 41),
                Ipv4Addr::new(10, 77, 0, 10),
                NAME,
            )
        }),
        ("a policy's rule", |number| {
            let changed = number * 7 % load::SELECTORS;
            load::global_policy(
                &format!("load-{changed:05}"),
                &load::service(changed + 1 + number % 2),
                9_000,
            )
        }),
        ("a new policy", |number| {
            load::global_policy(
                &format!("load-{:05}-new", number * 11),
                &load::service(number * 13),
                9_001,
            )
        }),
    ]
}

fn rule_for(name: &str, number: usize) -> Value {
    let from = json!([{ "podSelector": { "matchLabels": { "app": world::group(number) } } }]);
    world::policy(name, "server", &[json!({ "from": from, "ports": [{ "port": 9_000 }] })])
}

struct Bench {
    parser: Parser,
    index: Index,
    compiler: Compiler,
}

impl Bench {
    /// The whole world at once, as an agent meets it when it starts.
    fn new(world: &World, table: &mut Table, figures: &mut Vec<Value>) -> Result<Self> {
        let (name, objects) = (world.name, (world.objects)());
        let mut bench = Self {
            parser: Parser::new(),
            index: Index::new(NAME),
            compiler: Compiler::new(CAPACITY, 1),
        };
        let start = Instant::now();
        let parsed = objects
            .iter()
            .map(|object| bench.parse(object))
            .collect::<Result<Vec<Object>>>()?;
        let parse = start.elapsed();
        let start = Instant::now();
        let mut changes = bench.index.apply(SourceEvent::Reset(parsed)).changes;
        let index = start.elapsed();
        changes.extend(load::LOCAL_PODS.iter().zip(1..).map(|(name, id)| {
            let key = PeerKey {
                kind: EntityKind::Pod,
                namespace: Some(NAMESPACE.into()),
                name: (*name).into(),
            };
            Change::Endpoint(id, Some(key))
        }));
        let (compile, plan) = bench.compile(changes);
        if let Some(shortage) = plan.shortages.first() {
            bail!("{name} does not fit into the map {}", shortage.map);
        }
        let maps = bench.compiler.stats().maps;
        let [parse, index, compile] = [parse, index, compile].map(milliseconds);
        let limit = world.limits.map_or_else(String::new, |(limit, _)| {
            format!(
                "index and compile ≤ {limit}: {}",
                report::at_most(index + compile, limit)
            )
        });
        table.row([
            name.to_owned(),
            objects.len().to_string(),
            format!("{parse:.0}"),
            format!("{index:.0}"),
            format!("{compile:.0}"),
            maps.identities.to_string(),
            maps.rows.to_string(),
            maps.decisions.to_string(),
            limit,
        ]);
        figures.push(json!({
            "world": name, "change": "everything", "parse_ms": parse, "index_ms": index, "compile_ms": compile,
            "maps": maps,
        }));
        Ok(bench)
    }

    fn parse(&mut self, object: &Value) -> Result<Object> {
        match self.parser.parse(object, None).outcome {
            Outcome::Valid(object) => Ok(object),
            other => bail!("the benchmark's own object is not valid: {other:?}"),
        }
    }

    /// One object's new version. The time is the compiler's and the index's; parsing is that of any one object.
    fn change(&mut self, object: &Value) -> Result<(Duration, Plan)> {
        let object = self.parse(object).context("a changed object")?;
        let start = Instant::now();
        let changes = self.index.apply(SourceEvent::Apply(object)).changes;
        let index = start.elapsed();
        let (compile, plan) = self.compile(changes);
        Ok((index + compile, plan))
    }

    fn compile(&mut self, changes: Vec<Change>) -> (Duration, Plan) {
        let start = Instant::now();
        let plan = self.compiler.apply(changes);
        let took = start.elapsed();
        // What is put off until there is time is not part of the change's latency.
        let mut more = self.compiler.executed(plan.serial);
        while more {
            let tidy = self.compiler.apply(Vec::new());
            more = self.compiler.executed(tidy.serial);
        }
        (took, plan)
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
