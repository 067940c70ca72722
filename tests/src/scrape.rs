//! What an agent tells Prometheus, as Prometheus would read it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::lab::{Lab, NetNs};

/// The port of an agent's health address; its node's network namespace is its own.
pub const PORT: u16 = 9641;

/// An answer takes milliseconds; this ends what has gone wrong.
const PATIENCE: Duration = Duration::from_secs(10);

/// One series.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// One answer.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    pub text: String,
    /// Declared metrics and their types.
    pub families: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
}

/// What makes an agent serve metrics where [`Scrape::fetch`] looks for them.
#[must_use]
pub fn arguments() -> Vec<String> {
    vec!["--health-addr".to_owned(), format!("127.0.0.1:{PORT}")]
}

impl Scrape {
    /// Asks the agent of a node.
    ///
    /// # Errors
    /// If it does not answer, or what it says is no OpenMetrics text.
    pub fn fetch(lab: &Lab, node: &str) -> Result<Self> {
        Self::of(&lab.node(node)?.netns, SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)))
    }

    /// Asks whoever serves metrics at an address, from a network namespace.
    ///
    /// # Errors
    /// If nobody answers, or what is said is no OpenMetrics text.
    pub fn of(netns: &NetNs, address: SocketAddr) -> Result<Self> {
        let answer = netns.run(|| get(address, "/metrics"))?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
        ensure!(head.starts_with("HTTP/1.1 200"), "{answer}");
        ensure!(
            head.to_ascii_lowercase()
                .contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
            "{head}"
        );
        Self::parse(body)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut scrape = Self {
            text: text.to_owned(),
            ..Self::default()
        };
        let lines = text.strip_suffix("# EOF\n").context("no end of the metrics")?;
        for line in lines.lines() {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, kind) = declared.split_once(' ').context("a metric without type")?;
                let old = scrape.families.insert(name.to_owned(), kind.to_owned());
                ensure!(old.is_none(), "{name} is declared twice");
            } else if !line.starts_with("# HELP ") {
                scrape.samples.push(sample(line).with_context(|| line.to_owned())?);
            }
        }
        Ok(scrape)
    }

    /// The value of the series with these labels, among others. Several are summed.
    ///
    /// # Errors
    /// If there is none.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let has = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(label, value)| sample.labels.get(*label).is_some_and(|is| is == value))
        };
        let found: Vec<f64> = self.samples.iter().filter(has).map(|sample| sample.value).collect();
        if found.is_empty() {
            bail!("no series {name} {labels:?} in\n{}", self.text);
        }
        Ok(found.into_iter().sum())
    }

    /// The same, of what counts.
    ///
    /// # Errors
    /// If there is none, or it is no whole number.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> Result<u64> {
        let value = self.value(name, labels)?;
        ensure!(value >= 0.0 && value.fract() == 0.0, "{name} {labels:?} is {value}");
        Ok(value as u64)
    }

    /// The values of a metric's series by one of their labels.
    #[must_use]
    pub fn by_label(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let of_name = self.samples.iter().filter(|sample| sample.name == name);
        of_name
            .filter_map(|sample| Some((sample.labels.get(label)?.clone(), sample.value)))
            .collect()
    }

    /// Names of all labels.
    #[must_use]
    pub fn labels(&self) -> BTreeSet<&str> {
        let names = self.samples.iter().flat_map(|sample| sample.labels.keys());
        names.map(String::as_str).collect()
    }
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// `name{label="value",…} value`, without escapes in values: no label of ours has any.
fn sample(line: &str) -> Result<Sample> {
    let (series, value) = line.rsplit_once(' ').context("no value")?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').context("no end of the labels")?),
        None => (series, ""),
    };
    ensure!(!labels.contains('\\'), "an escape");
    let labels = labels.split_terminator("\",").map(|label| {
        let (name, value) = label.split_once("=\"").context("no label")?;
        Ok((name.to_owned(), value.trim_end_matches('"').to_owned()))
    });
    Ok(Sample {
        name: name.to_owned(),
        labels: labels.collect::<Result<_>>()?,
        value: value.parse()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let text = "# HELP a Counts.\n# TYPE a counter\na_total{b=\"c\",d=\"e f\"} 3\na_total{b=\"x\",d=\"\"} 4\n\
                    # TYPE g gauge\ng 1.5e-3\n# EOF\n";
        let scrape = Scrape::parse(text).expect("parses");
        assert_eq!(scrape.families["a"], "counter");
        assert_eq!(scrape.count("a_total", &[("d", "e f")]).ok(), Some(3));
        assert_eq!(scrape.count("a_total", &[]).ok(), Some(7));
        assert_eq!(scrape.value("g", &[]).ok(), Some(0.0015));
        assert!(scrape.value("g", &[("b", "c")]).is_err() && scrape.count("g", &[]).is_err());
        assert_eq!(
            scrape.by_label("a_total", "b"),
            [("c".to_owned(), 3.0), ("x".to_owned(), 4.0)].into()
        );
        assert!(scrape.by_label("a_total", "e").is_empty());
        assert_eq!(scrape.labels(), BTreeSet::from(["b", "d"]));
        assert!(Scrape::parse("a 1\n").is_err(), "cut off");
    }
}
