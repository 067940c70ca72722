//! Who waits until everything that is in the source is enforced (`weir status --wait`).

use std::time::Instant;

use super::{
    agent::Agent,
    query::{Reply, WaitReport},
};
use crate::api::{Problem, Severity};

#[derive(Debug)]
struct Waiting {
    /// The refresh of the source that was asked for on its behalf.
    token: u64,
    /// That refresh is over: what the source held when the question came has been taken in.
    refreshed: bool,
    deadline: Instant,
    reply: Reply<WaitReport>,
}

#[derive(Debug, Default)]
pub struct Waits {
    waiting: Vec<Waiting>,
}

impl Waits {
    /// Takes the question in. `token`: of the refresh of the source that was asked for on its behalf.
    pub fn add(&mut self, token: u64, deadline: Instant, reply: Reply<WaitReport>) {
        self.waiting.push(Waiting {
            token,
            refreshed: false,
            deadline,
            reply,
        });
    }

    /// The refresh with this token, and so every earlier one, is over.
    pub fn refreshed(&mut self, token: u64) {
        for waiting in self.waiting.iter_mut().filter(|waiting| waiting.token <= token) {
            waiting.refreshed = true;
        }
    }

    /// The next deadline.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.deadline).min()
    }
}

impl Agent {
    /// Answers those whose question is decided: all is enforced, an object is invalid, or the deadline is over.
    pub(super) fn answer_waits(&mut self, now: Instant) {
        if self.waits.waiting.is_empty() {
            return;
        }
        let verdict = self.enforced();
        let unready = self.unready();
        let mut still = Vec::new();
        for waiting in std::mem::take(&mut self.waits.waiting) {
            if waiting.reply.is_closed() {
                continue;
            }
            let report = match &verdict {
                Err(invalid)
                    if waiting.refreshed
                        && invalid
                            .problems
                            .iter()
                            .any(|problem| problem.object.is_some() || problem.file.is_some()) =>
                {
                    Some(invalid.clone())
                }
                Ok(()) if waiting.refreshed && unready.is_none() => Some(WaitReport {
                    enforced: true,
                    reason: None,
                    problems: Vec::new(),
                }),
                _ if waiting.deadline <= now => Some(match &verdict {
                    Err(report) => report.clone(),
                    Ok(()) => WaitReport {
                        enforced: false,
                        reason: Some(
                            unready
                                .clone()
                                .unwrap_or_else(|| "the source has not been read again yet".to_owned()),
                        ),
                        problems: Vec::new(),
                    },
                }),
                _ => None,
            };
            match report {
                // Nobody there to hear it is no failure.
                Some(report) => drop(waiting.reply.send(report)),
                None => still.push(waiting),
            }
        }
        self.waits.waiting = still;
    }

    /// Whether everything that is known is enforced; if not, what is not.
    fn enforced(&self) -> Result<(), WaitReport> {
        let invalid: Vec<Problem> = self
            .all_problems()
            .filter(|problem| problem.severity == Severity::Error)
            .cloned()
            .collect();
        if let Some(first) = invalid.first() {
            return Err(WaitReport {
                enforced: false,
                reason: Some(format!("{first}")),
                problems: invalid,
            });
        }
        let mut waiting = self.unenforced();
        match waiting.next() {
            None => Ok(()),
            Some((pod, reason)) => {
                let more = waiting.count();
                let others = if more == 0 {
                    String::new()
                } else {
                    format!(" (and {more} more)")
                };
                Err(WaitReport {
                    enforced: false,
                    reason: Some(format!("pod {pod} is not enforced: {reason}{others}")),
                    problems: Vec::new(),
                })
            }
        }
    }
}
