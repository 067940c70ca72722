//! What a PromQL expression asks for: metrics and labels. Just enough of the language for dashboards
//! (<https://prometheus.io/docs/prometheus/latest/querying/basics/>): no strings as values, no sub-queries.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};

/// Aggregations and functions that may be called.
const FUNCTIONS: &[&str] = &[
    "avg",
    "count",
    "histogram_quantile",
    "increase",
    "label_values",
    "max",
    "min",
    "rate",
    "sum",
    "topk",
    "vector",
];

/// Operators that are words.
const OPERATORS: &[&str] = &["and", "or", "unless"];

/// Words before a list of labels in parentheses.
const GROUPINGS: &[&str] = &["by", "without", "on", "ignoring", "group_left", "group_right"];

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    pub metrics: BTreeSet<String>,
    /// Labels in matchers and groupings.
    pub labels: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Number,
    Text,
    Sign(char),
}

/// # Errors
/// A function that is not known, parentheses that do not match, a string without its end.
pub fn asked(expression: &str) -> Result<Asked> {
    let tokens = tokens(expression)?;
    let mut asked = Asked::default();
    let mut open = Vec::new();
    let mut grouping = false;
    for (at, token) in tokens.iter().enumerate() {
        let next = tokens.get(at + 1);
        match token {
            Token::Sign(sign @ ('(' | '{' | '[')) => {
                open.push((*sign, std::mem::take(&mut grouping)));
            }
            Token::Sign(sign @ (')' | '}' | ']')) => {
                let (opened, _) = open.pop().with_context(|| format!("{sign} closes nothing"))?;
                ensure!(
                    matches!((opened, sign), ('(', ')') | ('{', '}') | ('[', ']')),
                    "{opened} is closed by {sign}"
                );
            }
            Token::Word(word) => match open.last() {
                Some(('{', _) | ('(', true)) => drop(asked.labels.insert(word.clone())),
                _ if GROUPINGS.contains(&word.as_str()) => grouping = true,
                _ if OPERATORS.contains(&word.as_str()) => {}
                _ if next == Some(&Token::Sign('(')) || next.is_some_and(is_grouping) => {
                    ensure!(
                        FUNCTIONS.contains(&word.as_str()),
                        "{word} is no function that is known"
                    );
                }
                // The second argument of Grafana's own function is a label.
                Some(('(', _)) if expression.starts_with("label_values") && next == Some(&Token::Sign(')')) => {
                    asked.labels.insert(word.clone());
                }
                _ => drop(asked.metrics.insert(word.clone())),
            },
            Token::Number | Token::Text | Token::Sign(_) => {}
        }
    }
    if let Some((sign, _)) = open.last() {
        bail!("{sign} is not closed");
    }
    Ok(asked)
}

fn is_grouping(token: &Token) -> bool {
    matches!(token, Token::Word(word) if GROUPINGS.contains(&word.as_str()))
}

fn tokens(expression: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        let word = |rest: &str| {
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
                .unwrap_or(rest.len())
        };
        let length = match first {
            '"' => {
                let end = rest[1..].find('"').context("a string has no end")?;
                tokens.push(Token::Text);
                end + 2
            }
            // A variable of Grafana: a duration, wherever one stands outside of a string.
            '$' => {
                tokens.push(Token::Number);
                1 + word(&rest[1..])
            }
            c if c.is_ascii_digit() => {
                tokens.push(Token::Number);
                rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.'))
                    .unwrap_or(rest.len())
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let length = word(rest);
                tokens.push(Token::Word(rest[..length].to_owned()));
                length
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(Token::Sign(c));
                }
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sets(expression: &str) -> (Vec<String>, Vec<String>) {
        let asked = asked(expression).expect(expression);
        (asked.metrics.into_iter().collect(), asked.labels.into_iter().collect())
    }

    #[test]
    fn metrics_and_labels_are_told_from_functions_and_values() {
        for (expression, metrics, labels) in [
            ("up", vec!["up"], vec![]),
            (
                r#"sum by (le, x) (rate(a_bucket{b="c d(", e!~"f"}[$__rate_interval])) > 0.5"#,
                vec!["a_bucket"],
                vec!["b", "e", "le", "x"],
            ),
            ("max(a / on (node) b) or vector(0)", vec!["a", "b"], vec!["node"]),
            ("topk(5, sum(a) by (m))", vec!["a"], vec!["m"]),
            (
                "label_values(weir_ready, instance)",
                vec!["weir_ready"],
                vec!["instance"],
            ),
            (r#"increase(a{}[1h])"#, vec!["a"], vec![]),
        ] {
            let (found, asked) = sets(expression);
            assert_eq!((found, asked), (owned(&metrics), owned(&labels)), "{expression}");
        }
    }

    fn owned(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        for expression in ["summ(a)", "sum(a", "a)", r#"a{b="c}"#, "sum(a}"] {
            assert!(asked(expression).is_err(), "{expression}");
        }
    }
}
