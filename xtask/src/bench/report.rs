//! How results are shown: a table for people, one JSON line for machines.

use serde_json::{Map, Value, json};

/// A table whose columns are as wide as they need to be; numbers to the right.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Self {
        let mut table = Self { rows: Vec::new() };
        table.row(head);
        table
    }

    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    pub fn print(&self) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column| {
            let cells = self.rows.iter().filter_map(|row: &Vec<String>| row.get(column));
            cells.map(|cell: &String| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let padding = " ".repeat(width - cell.chars().count());
                if column == 0 {
                    line += &format!("  {cell}{padding}");
                } else {
                    line += &format!("  {padding}{cell}");
                }
            }
            println!("{}", line.trim_end());
        }
    }
}

pub fn heading(name: &str, about: &str) {
    println!("\n{name}: {about}");
}

/// The line that a machine keeps: what was measured, where, and the figures.
pub fn json_line(bench: &str, figures: Value) {
    let machine = [
        ("kernel", json!(kernel())),
        (
            "cpus",
            json!(std::thread::available_parallelism().map_or(0, usize::from)),
        ),
        ("load", json!(load())),
    ];
    let mut line = Map::new();
    line.insert("bench".into(), bench.into());
    line.extend(machine.map(|(key, value)| (key.to_owned(), value)));
    line.insert("figures".into(), figures);
    println!("{}", Value::Object(line));
}

pub fn kernel() -> String {
    nix::sys::utsname::uname().map_or_else(
        |_| "unknown".into(),
        |uname| uname.release().to_string_lossy().into_owned(),
    )
}

/// How many threads wanted to run, over the last minute: what else the machine was doing.
pub fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}

/// The value below which the share `q` (0 to 1) of the samples lies: the nearest rank, never interpolated.
pub fn quantile(samples: &[f64], q: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1).min(sorted.len().saturating_sub(1)))
        .copied()
}

pub fn median(samples: &[f64]) -> Option<f64> {
    quantile(samples, 0.5)
}

/// Whether a figure keeps to the most that is asked of it.
pub fn at_most(value: f64, limit: f64) -> &'static str {
    if value <= limit { "ok" } else { "MISSED" }
}

/// Whether a figure reaches the least that is asked of it.
pub fn at_least(value: f64, limit: f64) -> &'static str {
    if value >= limit { "ok" } else { "MISSED" }
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_are_samples() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(quantile(&samples, 0.5), Some(100.0));
        assert_eq!(quantile(&samples, 0.99), Some(198.0));
        assert_eq!(quantile(&samples, 1.0), Some(200.0));
        assert_eq!(quantile(&[3.0], 0.99), Some(3.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
