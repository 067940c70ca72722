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
type World = fn() -> Vec<Value>;
/// Makes an object's version of one repetition.
type Version = fn(usize) -> Value;

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
    ]);
    let mut single = Table::new(["world", "one change", "p50 ms", "max ms", "map writes"]);
    let worlds: [(&str, World); 2] = [
        ("10,000 pods, 1,000 policies", large_cluster),
        ("20,000 pods, 10,000 selectors", many_selectors),
    ];
    for (name, objects) in worlds {
        interrupt::check()?;
        let mut bench = Bench::new(name, &objects(), &mut whole, &mut figures)?;
        let repeats = if quick { 10 } else { 50 };
        for (change, versions) in changes() {
            let mut times = Vec::new();
            let mut writes = 0;
            for number in 0..repeats {
                let (took, plan) = bench.change(&versions(number))?;
                times.push(milliseconds(took));
                writes = writes.max(plan.add.len() + plan.flip.len() + plan.remove.len());
            }
            let p50 = report::median(&times).unwrap_or(f64::NAN);
            let max = report::quantile(&times, 1.0).unwrap_or(f64::NAN);
            single.row([
                name.into(),
                change.into(),
                format!("{p50:.3}"),
                format!("{max:.3}"),
                writes.to_string(),
            ]);
            figures
                .push(json!({ "world": name, "change": change, "p50_ms": p50, "max_ms": max, "map_writes": writes }));
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
    const SELECTORS: usize = 10_000;
    const PER_POLICY: usize = 100;
    let app = |number: usize| format!("service-{}", number % SELECTORS);
    let mut objects = local_objects();
    objects.extend((0..20_000).map(|number| world::remote_pod(number, &app(number))));
    objects.extend((0..SELECTORS / PER_POLICY).map(|policy| {
        let rules: Vec<Value> = (policy * PER_POLICY..(policy + 1) * PER_POLICY)
            .map(|number| {
                json!({
                    "from": [{ "podSelector": { "matchLabels": { "app": app(number) } } }],
                    "ports": [{ "protocol": "TCP", "port": 1_024 + number % 64 }],
                })
            })
            .collect();
        world::policy(&format!("selectors-{policy:03}"), "server", &rules)
    }));
    objects
}

fn local_objects() -> Vec<Value> {
    let pod =
        |(number, name): (usize, &&str)| world::pod(name, name, Ipv4Addr::new(10, 77, 0, 10 + number as u8), NAME);
    world::cluster(Ipv4Addr::new(10, 78, 0, 1).into())
        .into_iter()
        .chain(load::LOCAL_PODS.iter().enumerate().map(pod))
        .collect()
}

/// Single changes.
fn changes() -> [(&'static str, Version); 5] {
    [
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
    fn new(name: &str, objects: &[Value], table: &mut Table, figures: &mut Vec<Value>) -> Result<Self> {
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
        table.row([
            name.to_owned(),
            objects.len().to_string(),
            format!("{parse:.0}"),
            format!("{index:.0}"),
            format!("{compile:.0}"),
            maps.identities.to_string(),
            maps.rows.to_string(),
            maps.decisions.to_string(),
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
