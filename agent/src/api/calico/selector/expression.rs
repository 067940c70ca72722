//! A selector as it is written.

use std::{collections::BTreeSet, fmt};

/// One expression of Calico's selector language. Its text (`Display`) parses to the same expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// `all()`, and the empty selector.
    All,
    /// `global()`: objects outside of namespaces.
    Global,
    Has(String),
    Equals(String, String),
    /// True for an absent label, as is [`Expression::NotIn`].
    NotEquals(String, String),
    In(String, BTreeSet<String>),
    NotIn(String, BTreeSet<String>),
    Contains(String, String),
    StartsWith(String, String),
    EndsWith(String, String),
    Not(Box<Expression>),
    /// Two or more.
    And(Vec<Expression>),
    /// Two or more.
    Or(Vec<Expression>),
}

/// A literal in quotes. There are no escapes: a literal holds one sort of quotes at most.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains('"') {
            write!(f, "'{}'", self.0)
        } else {
            write!(f, "\"{}\"", self.0)
        }
    }
}

struct Set<'a>(&'a BTreeSet<String>);

impl fmt::Display for Set<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (n, value) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { ", " };
            write!(f, "{separator}{}", Quoted(value))?;
        }
        f.write_str("}")
    }
}

impl Expression {
    fn join(f: &mut fmt::Formatter<'_>, parts: &[Self], operator: &str) -> fmt::Result {
        for (n, part) in parts.iter().enumerate() {
            if n > 0 {
                write!(f, " {operator} ")?;
            }
            part.nested(f)?;
        }
        Ok(())
    }

    fn nested(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::And(_) | Self::Or(_) => write!(f, "({self})"),
            other => write!(f, "{other}"),
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all()"),
            Self::Global => f.write_str("global()"),
            Self::Has(label) => write!(f, "has({label})"),
            Self::Equals(label, value) => write!(f, "{label} == {}", Quoted(value)),
            Self::NotEquals(label, value) => write!(f, "{label} != {}", Quoted(value)),
            Self::In(label, values) => write!(f, "{label} in {}", Set(values)),
            Self::NotIn(label, values) => write!(f, "{label} not in {}", Set(values)),
            Self::Contains(label, part) => write!(f, "{label} contains {}", Quoted(part)),
            Self::StartsWith(label, part) => write!(f, "{label} starts with {}", Quoted(part)),
            Self::EndsWith(label, part) => write!(f, "{label} ends with {}", Quoted(part)),
            // `!!x` reads as x.
            Self::Not(inner) if matches!(**inner, Self::Not(_)) => write!(f, "!({inner})"),
            Self::Not(inner) => {
                f.write_str("!")?;
                inner.nested(f)
            }
            Self::And(parts) => Self::join(f, parts, "&&"),
            Self::Or(parts) => Self::join(f, parts, "||"),
        }
    }
}
