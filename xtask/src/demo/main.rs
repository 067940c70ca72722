//! `weir-demo`: what `cargo xtask demo` builds and runs.
//!
//! Everything happens in network namespaces that go with this process, Ctrl-C included. Fails if any step's matrix is
//! not what its policies say.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use clap::Parser;

use self::{matrix::Matrix, screen::out, stage::Stage};

mod arguments;
mod live;
mod matrix;
mod screen;
mod stage;
mod story;

#[derive(Parser)]
struct Program {
    /// The `weir` binary to show
    #[arg(long)]
    weir: PathBuf,

    #[command(flatten)]
    demo: arguments::Arguments,
}

fn main() -> ExitCode {
    match run(&Program::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Program { weir, demo }: &Program) -> Result<()> {
    let mut stage = Stage::set(weir)?;
    screen::cast(&stage)?;
    let mut before: Option<Matrix> = None;
    let mut wrong = Vec::new();
    for (number, step) in story::STEPS.iter().enumerate() {
        screen::heading(number + 1, story::STEPS.len(), step)?;
        if let Some(policy) = &step.policy {
            let took = stage.apply(policy)?;
            screen::applied(policy, took)?;
        }
        let matrix = stage.matrix(step)?;
        screen::matrix(&matrix, before.as_ref())?;
        wrong.extend(matrix.wrong().map(|cell| format!("step {}: {cell}", number + 1)));

        screen::flows(&stage.flows(step)?)?;
        screen::explanation(step, &stage.explain(step)?)?;
        before = Some(matrix);
        if demo.pause {
            screen::pause()?;
        }
    }
    ensure!(wrong.is_empty(), "not what the policies say:\n  {}", wrong.join("\n  "));
    screen::curtain()?;
    out().flush()?;
    Ok(())
}
