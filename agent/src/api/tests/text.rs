//! Documents, lists, lines, and text that is no YAML.

use std::path::Path;

use crate::api::{ObjectKey, Outcome, Parser, objects};

fn keys(path: &str, text: &str) -> (Vec<(u32, String)>, Vec<Option<u32>>) {
    let (documents, errors) = objects(Path::new(path), text, &mut Parser::new());
    let name = |key: Option<ObjectKey>| key.map_or_else(|| "-".to_owned(), |key| key.to_string());
    (
        documents
            .into_iter()
            .map(|document| (document.line, name(document.parsed.key)))
            .collect(),
        errors.into_iter().map(|error| error.line).collect(),
    )
}

#[test]
fn documents_lists_and_lines() {
    let text = "# a comment\n---\n\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n--- # next\napiVersion: v1\n\
                items:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: b}\n- apiVersion: v1\n  kind: Namespace\n  \
                metadata: {name: c}\nkind: List\n---\n...\n---\napiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: d}\n\
                ---\n{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": null}\n";
    let (found, errors) = keys("x.yaml", text);
    let expected = [
        (4, "Namespace a"),
        (10, "Namespace b"),
        (13, "Namespace c"),
        (23, "Pod default/d"),
    ];
    assert_eq!(found, expected.map(|(line, key)| (line, key.to_owned())));
    assert!(errors.is_empty());

    let (found, errors) = keys(
        "x.json",
        "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\",\n\t\"metadata\": {\"name\": \"a\"}}\n\n\
         {\"apiVersion\": \"v1\", \"kind\": \"PodList\", \"items\": [{\"metadata\": {\"name\": \"b\"}}]}\n{\"apiVersion\": \"v1\",",
    );
    assert_eq!(found, [(1, "Namespace a".to_owned()), (4, "Pod default/b".to_owned())]);
    assert_eq!(errors, [Some(5)]);
}

#[test]
fn text_that_cannot_be_parsed_is_named_by_line() {
    let (found, errors) = keys(
        "x.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\nkind: [\n---\nkind: x\n kind: y\n",
    );
    assert_eq!(found.len(), 1);
    assert_eq!(errors.len(), 2);
    assert!(errors[0].is_some_and(|line| (5..=6).contains(&line)), "{errors:?}");
    assert!(errors[1].is_some_and(|line| (7..=8).contains(&line)), "{errors:?}");
    assert_eq!(keys("x.yaml", "").0, []);
    assert_eq!(keys("x.yaml", "just text").1.len(), 1);
    assert_eq!(keys("x.yaml", "a: 1\na: 2\n").1, [Some(2)]);
    let nested = "a: ".to_owned() + &"[".repeat(100_000);
    assert_eq!(keys("x.yaml", &nested).1.len(), 1);
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n".to_owned()
        + &(b'b'..b'k')
            .map(|c| {
                format!(
                    "{0}: &{0} [{1}]\n",
                    c as char,
                    vec![format!("*{}", (c - 1) as char); 9].join(",")
                )
            })
            .collect::<String>();
    assert_eq!(keys("x.yaml", &bomb).1.len(), 1);
}

#[test]
fn labels_that_look_like_booleans_stay_text() {
    let (documents, _) = objects(
        Path::new("x.yaml"),
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: y\n  labels: {a: yes, b: off, c: y, d: 'true'}\n",
        &mut Parser::new(),
    );
    assert!(
        matches!(&documents[0].parsed.outcome, Outcome::Valid(_)),
        "{documents:?}"
    );
}
