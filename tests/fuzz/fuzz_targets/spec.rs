//! Any text as the spec of a policy of any kind: judged without panic, and what is kept of it means the same.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use weir::api::{Parser, objects};

const KINDS: [&str; 9] = [
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy",
    "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy",
    "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy",
    "apiVersion: projectcalico.org/v3\nkind: StagedNetworkPolicy",
    "apiVersion: projectcalico.org/v3\nkind: StagedGlobalNetworkPolicy",
    "apiVersion: projectcalico.org/v3\nkind: StagedKubernetesNetworkPolicy",
    "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet",
    "apiVersion: projectcalico.org/v3\nkind: NetworkSet",
    "apiVersion: projectcalico.org/v3\nkind: Tier",
];

fuzz_target!(|input: (u8, &str)| {
    let (kind, spec) = input;
    let kind = KINDS[usize::from(kind) % KINDS.len()];
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let text = format!("{kind}\nmetadata: {{name: n, namespace: x}}\nspec:\n{spec}");
    let (documents, _) = objects(Path::new("fuzz.yaml"), &text, &mut Parser::new());
    for document in documents {
        let Some(kept) = &document.parsed.manifest else {
            continue;
        };
        let (again, problems) = objects(Path::new("kept.json"), kept, &mut Parser::new());
        assert!(problems.is_empty(), "{kept}: {problems:?}");
        let outcomes: Vec<_> = again.iter().map(|document| &document.parsed.outcome).collect();
        assert_eq!(outcomes, [&document.parsed.outcome], "{kept}");
    }
});
