//! What the table of a step says of one probe.

use super::case::{Expected, Line, PortPattern, Step};
use crate::lab::probe::Protocol;

/// One probe in the terms of the tables.
#[derive(Clone, Debug)]
pub struct Question {
    pub from: String,
    pub to: String,
    pub protocol: Protocol,
    /// ICMP: type × 256 + code.
    pub port: u16,
}

impl Question {
    fn port_name(&self) -> String {
        if self.protocol == Protocol::Icmp {
            let [kind, code] = self.port.to_be_bytes();
            format!("{kind}/{code}")
        } else {
            self.port.to_string()
        }
    }
}

impl std::fmt::Display for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {} {} {}", self.from, self.to, self.protocol, self.port_name())
    }
}

/// The verdict that a step expects.
#[must_use]
pub fn expected(step: &Step, question: &Question) -> Expected {
    let any = |lines: &[Line]| lines.iter().any(|line| matches(line, question));
    if any(&step.expect_allow) {
        Expected::Allow
    } else if any(&step.expect_deny) {
        Expected::Deny
    } else {
        step.default
    }
}

/// Whether a line speaks of a probe.
#[must_use]
pub fn matches(line: &Line, question: &Question) -> bool {
    let host = |pattern: &Option<String>, name: &str| pattern.as_deref().is_none_or(|it| host_matches(it, name));
    let port = match &line.port {
        None => true,
        Some(PortPattern::Number(number)) => question.protocol != Protocol::Icmp && *number == question.port,
        Some(PortPattern::Text(text)) => text == "*" || *text == question.port_name(),
    };
    let protocol = line
        .protocol
        .as_deref()
        .is_none_or(|protocol| protocol == "*" || protocol == question.protocol.name());
    port && protocol && host(&line.from, &question.from) && host(&line.to, &question.to)
}

/// `*`, `ns/*` or `ns/name`.
#[must_use]
pub fn host_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use super::{Question, host_matches, matches};
    use crate::{
        conformance::case::{Line, PortPattern},
        lab::probe::Protocol,
    };

    #[test]
    fn patterns() {
        assert!(host_matches("*", "x/a"));
        assert!(host_matches("x/*", "x/a"));
        assert!(!host_matches("x/*", "xx/a"));
        assert!(!host_matches("x/a", "x/ab"));
        let ping = Question {
            from: "x/a".into(),
            to: "ext/b".into(),
            protocol: Protocol::Icmp,
            port: 8 << 8,
        };
        let port = |port| Line {
            port: Some(port),
            ..Line::default()
        };
        assert!(matches(&port(PortPattern::Text("8/0".into())), &ping));
        assert!(!matches(&port(PortPattern::Number(8 << 8)), &ping));
        assert!(matches(&Line::default(), &ping));
    }
}
