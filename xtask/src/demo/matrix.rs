//! Who reaches what, asked on the wire.

use weir_tests::lab::probe::Verdict;

use crate::story::{CAST, SERVICES, Step};

/// What became of one pair, over both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The service's own row.
    Itself,
    Allowed,
    Denied,
    /// The families differ, or the wire said something else.
    Odd {
        v4: Verdict,
        v6: Verdict,
    },
}

impl Reach {
    /// From the verdicts over IPv4 and IPv6.
    pub fn of(v4: Verdict, v6: Verdict) -> Self {
        match (v4, v6) {
            (Verdict::Allow, Verdict::Allow) => Self::Allowed,
            (Verdict::Deny, Verdict::Deny) => Self::Denied,
            (v4, v6) => Self::Odd { v4, v6 },
        }
    }
}

/// Rows: [`CAST`]; columns: [`SERVICES`].
pub struct Matrix {
    pub rows: Vec<Vec<Reach>>,
    expected: Vec<Vec<Reach>>,
}

impl Matrix {
    /// What was found, beside what the step should bring.
    pub fn new(rows: Vec<Vec<Reach>>, step: &Step) -> Self {
        let expected = CAST
            .iter()
            .map(|actor| {
                (0..SERVICES.len())
                    .map(|service| {
                        if SERVICES[service].host == actor.name {
                            Reach::Itself
                        } else if step.allowed.contains(&(actor.name, service)) {
                            Reach::Allowed
                        } else {
                            Reach::Denied
                        }
                    })
                    .collect()
            })
            .collect();
        Self { rows, expected }
    }

    /// Each cell that is not as expected.
    pub fn wrong(&self) -> impl Iterator<Item = String> {
        self.rows
            .iter()
            .zip(&self.expected)
            .enumerate()
            .flat_map(|(row, (found, expected))| {
                found
                    .iter()
                    .zip(expected)
                    .enumerate()
                    .filter(|(_, (found, expected))| found != expected)
                    .map(move |(column, (found, expected))| {
                        format!(
                            "{} to {}: {found:?}, not {expected:?}",
                            CAST[row].name, SERVICES[column].host
                        )
                    })
            })
    }
}
