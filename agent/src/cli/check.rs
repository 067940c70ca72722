//! `weir check`: what is wrong in manifests, for people and for CI.

use std::{io::Write, path::PathBuf};

use clap::Args;
use serde::Serialize;

use super::{
    args::{Format, Output},
    error::CliError,
    output::{self, GREEN, RED},
};
use crate::api::{self, Problem, Severity};

/// Needs no agent. Exit code 1 if there is an error; warnings alone are none.
#[derive(Debug, Args)]
pub struct Check {
    /// Files, or directories whose *.yaml, *.yml and *.json are meant
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Warnings count as errors
    #[arg(long)]
    pub strict: bool,
    #[command(flatten)]
    pub output: Output,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Report {
    valid: bool,
    errors: usize,
    warnings: usize,
    problems: Vec<Problem>,
}

impl Check {
    /// # Errors
    /// Something is wrong in the files.
    pub fn run(self) -> Result<(), CliError> {
        let problems = api::check(&self.files);
        let errors = problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .count();
        let warnings = problems.len() - errors;
        let report = Report {
            valid: errors == 0 && (warnings == 0 || !self.strict),
            errors,
            warnings,
            problems,
        };
        let printed = output::print(self.output.output, &report, |out| {
            output::problems(&report.problems, out)
        });
        match printed {
            // Whoever has read enough of it still wants to know how it ends.
            Err(error) if error.is_silent() && !report.valid => return Err(CliError::Told(1)),
            printed => printed?,
        }
        if self.output.output == Format::Text {
            // To standard error: the problems are what is piped on.
            let mut stderr = anstream::stderr().lock();
            let counts = format!(
                "{errors} {}, {warnings} {}",
                plural("error", errors),
                plural("warning", warnings)
            );
            if report.valid {
                writeln!(stderr, "{GREEN}valid{GREEN:#} ({counts})")?;
            } else {
                writeln!(stderr, "{RED}not valid{RED:#} ({counts})")?;
            }
        }
        if report.valid { Ok(()) } else { Err(CliError::Told(1)) }
    }
}

fn plural(word: &str, count: usize) -> String {
    if count == 1 {
        word.to_owned()
    } else {
        format!("{word}s")
    }
}
