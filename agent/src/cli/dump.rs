//! `weir dump`: what the kernel enforces, as tables.

use clap::Args;
use serde_json::Value;

use super::{
    args::{Output, RunDir},
    client::{Client, unexpected},
    error::CliError,
    output::{self, Table},
    protocol::{Response, Verb},
};
use crate::control::query::DumpKind;

#[derive(Debug, Args)]
pub struct Dump {
    #[arg(value_enum)]
    pub what: DumpKind,
    #[command(flatten)]
    pub run_dir: RunDir,
    #[command(flatten)]
    pub output: Output,
}

impl Dump {
    /// # Errors
    /// No agent.
    pub fn run(self) -> Result<(), CliError> {
        show(self.what, &self.run_dir, &self.output)
    }
}

/// Asks for a dump and prints it.
pub(super) fn show(what: DumpKind, run_dir: &RunDir, output: &Output) -> Result<(), CliError> {
    let mut client = Client::connect(&run_dir.run_dir)?;
    let dump = match client.ask(Verb::Dump { what })? {
        Response::Dump(dump) => dump,
        other => return Err(unexpected(&other)),
    };
    output::print(output.output, &dump, |out| {
        let mut table = Table::new(dump.columns.iter().map(|column| column.to_uppercase()));
        for row in &dump.rows {
            table.row(dump.columns.iter().map(|column| cell(row.get(column)).into()));
        }
        table.write(out)?;
        if dump.omitted > 0 {
            writeln!(out, "… and {} more", dump.omitted)?;
        }
        Ok(())
    })
}

/// Plain text of a value; lists by commas.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items.iter().map(|item| cell(Some(item))).collect::<Vec<_>>().join(", "),
        Some(other) => other.to_string(),
    }
}
