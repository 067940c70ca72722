//! `packets`: nanoseconds per packet in the eBPF programs, as the kernel's BPF_PROG_TEST_RUN measures them.

use anyhow::{Context as _, Result};
use serde_json::json;
use weir_tests::nanoseconds::{Nanoseconds, Rules, empty, measure};

use crate::{
    interrupt,
    priority::Precedence,
    report::{self, Table},
};

const RULES: [u32; 5] = [1, 100, 1_000, 10_000, 100_000];
const TIERS: [u32; 5] = [1, 4, 16, 64, 256];

/// What an empty program takes where the limits were set. What it takes more elsewhere is the test run's own and does not
/// count.
const REFERENCE_NS: f64 = 7.0;
const ESTABLISHED_LIMIT_NS: f64 = 120.0;
const NEW_LIMIT_NS: f64 = 450.0;
/// The largest time as a multiple of the smallest, over all numbers of rules.
const PODS_FLATNESS_LIMIT: f64 = 1.15;
const CIDRS_FLATNESS_LIMIT: f64 = 1.5;

type Row = (&'static str, fn(&Nanoseconds) -> f64);

const ROWS: [Row; 5] = [
    ("established, to the pod", |ns| ns.established),
    ("established, from the pod", |ns| ns.established_from_pod),
    ("new", |ns| ns.new),
    ("new, of a flood", |ns| ns.flood),
    ("denied", |ns| ns.denied),
];

/// Name, what makes tables, how much of it there is, and how flat its cost must be.
type Kind = (&'static str, fn(u32) -> Rules, [u32; 5], f64);

pub fn run(quick: bool) -> Result<()> {
    report::heading("packets", "nanoseconds per packet, by number of rules on the pod");
    let repeat = if quick { 100_000 } else { 1_000_000 };
    let _precedence = Precedence::take();
    let empty = empty(repeat)?;
    println!("  an empty program: {empty:.0} ns");
    let mut figures = vec![json!({ "program": "empty", "ns": empty })];
    let kinds: [Kind; 3] = [
        ("rules of pods and ports", Rules::Pods, RULES, PODS_FLATNESS_LIMIT),
        ("rules of CIDRs and ports", Rules::Cidrs, RULES, CIDRS_FLATNESS_LIMIT),
        (
            "tiers of 100 policies, which pass the peer on to the last",
            Rules::Tiers,
            TIERS,
            PODS_FLATNESS_LIMIT,
        ),
    ];
    for (kind, rules, counts, limit) in kinds {
        let mut measured = Vec::new();
        for count in counts {
            interrupt::check()?;
            let ns = measure(rules(count), repeat).with_context(|| format!("{count} {kind}"))?;
            measured.push(ns);
        }
        println!("\n  {kind}:");
        let head = counts.map(|count| count.to_string());
        let mut table = Table::new(["packet".into()].into_iter().chain(head).chain([
            "largest/smallest".into(),
            String::new(),
            String::new(),
        ]));
        for (name, of) in ROWS {
            let times: Vec<f64> = measured.iter().map(of).collect();
            let largest = report::quantile(&times, 1.0).unwrap_or(f64::NAN);
            let smallest = report::quantile(&times, 0.0).unwrap_or(f64::NAN);
            let ratio = largest / smallest;
            let flat = format!("≤ {limit}: {}", report::at_most(ratio, limit));
            table.row(
                [name.to_owned()]
                    .into_iter()
                    .chain(times.iter().map(|ns| format!("{ns:.0}")))
                    .chain([format!("{ratio:.2}"), flat, absolute(name, largest, empty)]),
            );
            figures.push(json!({ "rules": kind, "packet": name, "counts": counts, "ns": times, "ratio": ratio }));
        }
        table.print();
    }
    report::json_line("packets", json!(figures));
    Ok(())
}

/// The largest time beside what is asked of it on a machine like this one.
fn absolute(name: &str, largest: f64, empty: f64) -> String {
    let limit = match name {
        "new" => NEW_LIMIT_NS,
        name if name.starts_with("established") => ESTABLISHED_LIMIT_NS,
        _ => return String::new(),
    };
    let limit = limit + empty - REFERENCE_NS;
    format!("≤ {limit:.0} ns: {}", report::at_most(largest, limit))
}
