//! The grammar against Calico's own table, and what its labels mean.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Expression, Scope, lower, parse};
use crate::policy::selector::{Entity, Field, Selector};

#[derive(serde::Deserialize)]
struct Table {
    tests: Vec<Row>,
    bad: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Row {
    selector: String,
    #[serde(rename = "match")]
    matching: Vec<BTreeMap<String, String>>,
    no_match: Vec<BTreeMap<String, String>>,
}

struct Labelled<'a>(&'a BTreeMap<String, String>);

impl Entity for Labelled<'_> {
    fn field(&self, field: &Field) -> Option<&str> {
        match field {
            Field::Label(key) => self.0.get(key).map(String::as_str),
            _ => None,
        }
    }
}

#[test]
fn the_table_of_selectors() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/conformance/calico-selectors.yaml"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let table: Table = serde_saphyr::from_str(&text).unwrap();
    assert!(table.tests.len() >= 58 && table.bad.len() >= 26);
    for row in &table.tests {
        let expression = parse(&row.selector).unwrap_or_else(|error| panic!("{:?}: {error}", row.selector));
        let selector = lower(&expression, Scope::Entity);
        for labels in &row.matching {
            assert!(selector.matches(&Labelled(labels)), "{:?} {labels:?}", row.selector);
        }
        for labels in &row.no_match {
            assert!(!selector.matches(&Labelled(labels)), "{:?} {labels:?}", row.selector);
        }
        assert_eq!(parse(&expression.to_string()), Ok(expression));
    }
    for text in &table.bad {
        let error = parse(text).expect_err(text);
        assert!(
            error.character >= 1 && error.character <= text.chars().count() + 1,
            "{text:?}: {error}"
        );
    }
}

#[track_caller]
fn is(text: &str, selector: Selector) {
    assert_eq!(
        parse(text).map(|expression| lower(&expression, Scope::Entity)),
        Ok(selector),
        "{text:?}"
    );
}

fn label(key: &str) -> Field {
    Field::Label(key.to_owned())
}

fn equals(key: &str, value: &str) -> Selector {
    Selector::equals(label(key), value)
}

fn values<const N: usize>(key: &str, values: [&str; N]) -> Selector {
    Selector::In(label(key), values.map(str::to_owned).into())
}

fn not(selector: Selector) -> Selector {
    Selector::Not(Box::new(selector))
}

#[test]
fn trap_and_binds_before_or_and_not_binds_to_one_term() {
    let (a, b, c) = (equals("a", "1"), equals("b", "2"), Selector::Has(label("c")));
    is(
        "a == '1' || b == '2' && has(c)",
        Selector::Or(vec![a.clone(), Selector::And(vec![b.clone(), c.clone()])]),
    );
    is(
        "(a == '1' || b == '2') && has(c)",
        Selector::And(vec![Selector::Or(vec![a.clone(), b.clone()]), c]),
    );
    is("!a == '1' && b == '2'", Selector::And(vec![not(a.clone()), b]));
    is("!!a == '1'", a);
}

#[test]
fn trap_absent_labels_are_unequal_and_in_no_set() {
    let nobody = BTreeMap::new();
    for (text, matches) in [
        ("a == 'x'", false),
        ("a != 'x'", true),
        ("a in {'x'}", false),
        ("a not in {'x'}", true),
        ("a notin {'x'}", true),
        ("has(a)", false),
        ("!has(a)", true),
        ("a contains ''", false),
        ("a starts with ''", false),
        ("a ends with ''", false),
        ("all()", true),
        ("", true),
        (" \t", true),
    ] {
        let selector = lower(&parse(text).unwrap(), Scope::Entity);
        assert_eq!(selector.matches(&Labelled(&nobody)), matches, "{text}");
    }
}

#[test]
fn trap_sets_may_be_empty_or_end_with_a_comma() {
    is("a in {}", values("a", []));
    is("a in {'x',}", values("a", ["x"]));
    is("a in { 'y' , \"x\" ,'y' }", values("a", ["x", "y"]));
    assert!(parse("a in {,}").is_err());
    assert!(parse("a in {'x' 'y'}").is_err());
}

#[test]
fn trap_spaces() {
    let has = Selector::Has(label("a"));
    is("has( a )", has.clone());
    is("\thas(a)\t", has);
    is("all( )", Selector::All);
    assert!(parse("has (a)").is_err());
    is("a starts  with'x'", Selector::StartsWith(label("a"), "x".into()));
    is("a startswith \"x\"", Selector::StartsWith(label("a"), "x".into()));
    is("a endswith 'x'", Selector::EndsWith(label("a"), "x".into()));
    let error = parse("has(a) &&\nhas(b)").unwrap_err();
    assert_eq!(error.character, 10);
    let error = parse("has(a)\n&& has(b)").unwrap_err();
    assert!(error.to_string().contains("one line"), "{error}");
}

#[test]
fn trap_words_of_the_language_are_labels_too() {
    for word in ["in", "not", "has", "all", "global", "contains", "starts", "with"] {
        is(&format!("{word} == 'x'"), equals(word, "x"));
        is(&format!("{word} in {{'x'}}"), equals(word, "x"));
    }
    for text in [
        "a inx {'x'}",
        "a containsb 'x'",
        "a starts_with 'x'",
        "a not 'x'",
        "a in'x'",
    ] {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn trap_quotes_have_no_escapes() {
    is("a == \"it's\"", equals("a", "it's"));
    is(r"a == 'x\'", equals("a", r"x\"));
    assert!(parse(r"a == 'x\'y'").is_err());
}

#[test]
fn errors_point_at_the_character() {
    for (text, character, expected) in [
        ("a = 'b'", 3, "an operator after the label"),
        ("a == b", 6, "a value in quotes"),
        ("a == 'b", 6, "a closing quote"),
        ("a == 'b' & c", 10, "&&, || or the end"),
        ("a == 'b' &&", 12, "a label"),
        ("ä == 'b'", 1, "a label"),
        ("a == 'ä' %", 10, "&&, || or the end"),
        ("(has(a)", 8, ")"),
        ("a in ('b')", 6, "a set"),
        ("a in {'b' 'c'}", 11, ", or }"),
        ("has()", 5, "the name of a label"),
    ] {
        let error = parse(text).expect_err(text);
        assert_eq!(error.character, character, "{text}: {error}");
        assert!(error.expected.starts_with(expected), "{text}: {error}");
    }
    assert_eq!(
        parse("a == b").unwrap_err().to_string(),
        "does not parse at character 6, before \"b\": expected a value in quotes, as in \"web\""
    );
    assert!(parse(&"(".repeat(100_000)).is_err());
    assert!(parse(&format!("{}has(a)", "!".repeat(100_001))).is_ok());
    assert!(parse(&format!("has({})", "a".repeat(513))).is_err());
}

#[test]
fn labels_that_calico_gives() {
    is(
        "projectcalico.org/namespace == 'x'",
        Selector::equals(Field::Namespace, "x"),
    );
    is(
        "has(projectcalico.org/serviceaccount)",
        Selector::Has(Field::ServiceAccount),
    );
    let pod = Selector::equals(Field::Kind, "pod");
    is("projectcalico.org/orchestrator == 'k8s'", pod.clone());
    is("has(projectcalico.org/orchestrator)", pod.clone());
    is("projectcalico.org/orchestrator != 'k8s'", not(pod));
    is("projectcalico.org/orchestrator in {'openstack'}", Selector::Nothing);
    is(
        "pcns.env == 'x'",
        Selector::equals(Field::NamespaceLabel("env".into()), "x"),
    );
    is(
        "pcns.projectcalico.org/name == 'x'",
        Selector::equals(Field::Namespace, "x"),
    );
    is(
        "pcsa.team == 'x'",
        Selector::equals(Field::ServiceAccountLabel("team".into()), "x"),
    );

    let scoped = |text: &str, scope| lower(&parse(text).unwrap(), scope);
    let name = "projectcalico.org/name == 'x'";
    assert_eq!(scoped(name, Scope::Namespace), Selector::equals(Field::Namespace, "x"));
    assert_eq!(
        scoped(name, Scope::ServiceAccount),
        Selector::equals(Field::ServiceAccount, "x")
    );
    assert_eq!(
        scoped("env == 'x'", Scope::Namespace),
        Selector::equals(Field::NamespaceLabel("env".into()), "x")
    );
    assert_eq!(scoped("all()", Scope::Namespace), Selector::Has(Field::Namespace));
    assert_eq!(
        scoped("all()", Scope::ServiceAccount),
        Selector::Has(Field::ServiceAccount)
    );
    assert_eq!(scoped("all()", Scope::RuleServiceAccount), Selector::All);
    assert_eq!(
        scoped("global()", Scope::Namespace),
        not(Selector::Has(Field::Namespace))
    );
}

fn any_expression() -> impl Strategy<Value = Expression> {
    let label = || prop_oneof!["[a-zA-Z0-9_./-]{1,6}", Just("in".to_owned()), Just("has".to_owned())];
    let value = || prop_oneof!["[^\"\\n]{0,4}", "[^'\\n]{0,4}"];
    let set = || prop::collection::btree_set(value(), 0..3);
    let leaf = prop_oneof![
        Just(Expression::All),
        Just(Expression::Global),
        label().prop_map(Expression::Has),
        (label(), value()).prop_map(|(a, b)| Expression::Equals(a, b)),
        (label(), value()).prop_map(|(a, b)| Expression::NotEquals(a, b)),
        (label(), value()).prop_map(|(a, b)| Expression::Contains(a, b)),
        (label(), value()).prop_map(|(a, b)| Expression::StartsWith(a, b)),
        (label(), value()).prop_map(|(a, b)| Expression::EndsWith(a, b)),
        (label(), set()).prop_map(|(a, b)| Expression::In(a, b)),
        (label(), set()).prop_map(|(a, b)| Expression::NotIn(a, b)),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            inner.clone().prop_map(|inner| Expression::Not(Box::new(inner))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Expression::And),
            prop::collection::vec(inner, 2..4).prop_map(Expression::Or),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_parses_to_itself(expression in any_expression()) {
        let text = expression.to_string();
        prop_assert_eq!(parse(&text), Ok(expression), "{}", text);
    }

    #[test]
    fn any_text_is_judged_without_panic(
        text in prop_oneof!["\\PC{0,40}", "[ab=!&|(){}'\", \\n]{0,30}", "(a|has\\(|all\\(|not in|in|==|!|&&|\\|\\||\\{|\\}|'x'| ){0,12}"]
    ) {
        match parse(&text) {
            Ok(expression) => prop_assert_eq!(parse(&expression.to_string()), Ok(expression)),
            Err(error) => prop_assert!(error.character <= text.chars().count() + 1),
        }
    }
}
