//! What is served is what the register and the documents say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
    time::Duration,
};

use weir_common::{Direction, counters::Counter, reason::Reason};

use super::{
    exposition,
    instruments::{Instruments, Trigger},
    observation::{EndpointCounts, Observation},
    register,
};
use crate::{
    control::query::FlowReport,
    datapath::{Counters, MapUsage, Mode, SweepReport},
    policy::compile::Sizes,
};

fn observation() -> Observation {
    let counter = Counter { packets: 7, bytes: 700 };
    Observation {
        ready: true,
        audit: false,
        attach: Mode::Tcx,
        generation: 3,
        policies: vec![("NetworkPolicy", 2)],
        invalid_objects: vec![("Calico NetworkPolicy".to_owned(), 1)],
        errors: 1,
        warnings: 0,
        sizes: Sizes {
            peers: 5,
            identities: 4,
            classes: 3,
            tables: 2,
        },
        endpoints: EndpointCounts {
            enforced: 8,
            closed: 1,
            waiting: 0,
        },
        counters: Counters {
            packets: vec![
                (Reason::PolicyDenied, Direction::Ingress, counter),
                (Reason::Audit, Direction::Egress, counter),
            ],
            lost_events: 0,
        },
        maps: vec![
            MapUsage {
                name: "ROWS",
                entries: Some(9),
                capacity: 100,
                memory: Some(4096),
            },
            MapUsage {
                name: "CONNECTIONS",
                entries: Some(11),
                capacity: 100,
                memory: None,
            },
            MapUsage {
                name: "EVENTS",
                entries: None,
                capacity: 1 << 20,
                memory: None,
            },
        ],
        shortages: 0,
        sweep: Some(SweepReport {
            evicted_unconfirmed: 12,
            ..SweepReport::default()
        }),
    }
}

fn served() -> String {
    let instruments = Arc::new(Instruments::default());
    instruments.watches.failed("Pod", "no route");
    instruments.programmed(Trigger::Objects, Duration::from_micros(700));
    exposition::expose(observation(), FlowReport::default(), &instruments).expect("text")
}

/// Metrics of the text: declared name to type and names of labels.
fn families(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut families = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').expect("a type");
            let old = families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
            assert_eq!(old, None, "{name} twice");
            name.clone_into(&mut current);
        } else if !line.starts_with('#') {
            assert!(line.starts_with(&current), "{line} below {current}");
            let labels = line.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
            let names = labels.into_iter().flat_map(|(labels, _)| labels.split("\","));
            let (_, known) = families.get_mut(&current).expect("declared");
            known.extend(names.filter_map(|label| Some(label.split_once('=')?.0.to_owned())));
        }
    }
    families
}

#[test]
fn what_is_served_is_what_the_register_says() {
    let text = served();
    let served = families(&text);
    let registered = register::ALL.iter().map(|family| {
        let mut labels: BTreeSet<String> = family.labels.iter().map(|&label| label.to_owned()).collect();
        if family.kind.as_str() == "histogram" {
            labels.insert("le".to_owned());
        }
        (
            family.declared_name().to_owned(),
            (family.kind.as_str().to_owned(), labels),
        )
    });
    assert_eq!(served, registered.collect(), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn every_number_stands_in_its_series() {
    let text = served();
    for line in [
        r#"weir_packets_total{verdict="DROPPED",reason="POLICY_DENIED",direction="ingress"} 7"#,
        r#"weir_bytes_total{verdict="AUDIT",reason="AUDIT",direction="egress"} 700"#,
        r#"weir_packets_total{verdict="FORWARDED",reason="ALLOWED",direction="egress"} 0"#,
        r#"weir_invalid_objects{kind="Calico NetworkPolicy"} 1"#,
        r#"weir_problems{severity="error"} 1"#,
        r#"weir_endpoints{state="closed"} 1"#,
        r#"weir_map_entries{map="ROWS"} 9"#,
        r#"weir_connections{state="confirmed"} 11"#,
        r#"weir_connections_evicted_total{state="unconfirmed"} 12"#,
        r#"weir_programming_duration_seconds_bucket{le="0.001",trigger="objects"} 1"#,
        r#"weir_programming_duration_seconds_bucket{le="0.0005",trigger="objects"} 0"#,
        r#"weir_watch_failures_total{kind="Pod"} 1"#,
        "weir_ready 1",
        "weir_audit_mode 0",
        "weir_generation 3",
        "weir_tables 2",
    ] {
        assert!(text.lines().any(|served| served == line), "{line}\nis not in\n{text}");
    }
    assert!(
        !text.contains(r#"weir_map_capacity_entries{map="EVENTS"}"#),
        "bytes are no entries"
    );
}

#[test]
fn the_document_lists_what_is_served() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let document = fs::read_to_string(file).expect("docs/metrics.md");
    let table = register::table();
    assert!(
        document.contains(&table),
        "docs/metrics.md must hold this table, and holds another:\n\n{table}"
    );
    let (_, list) = document.split_once("## All metrics").expect("the list");
    let listed = list.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(listed, register::ALL.len(), "and no other metrics");
}
