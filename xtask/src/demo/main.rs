//! `weir-demo`: what `cargo xtask demo` builds and runs.
//!
//! Everything happens in namespaces that go with this process, Ctrl-C included. Fails if any step's matrix is not what
//! its policies say.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use self::{
    kubernetes::RealCluster,
    lab::Namespaces,
    matrix::Matrix,
    screen::out,
    stage::{Stage, World},
};

mod arguments;
mod kubernetes;
mod lab;
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

    /// The archive with its image, for a real cluster
    #[arg(long, required_if_eq("cluster", "true"))]
    image: Option<PathBuf>,

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

fn run(Program { weir, image, demo }: &Program) -> Result<()> {
    match image.as_ref().filter(|_| demo.cluster) {
        None => play(Stage::set(|| Namespaces::new(weir))?, demo.pause),
        Some(image) => {
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let root = root.parent().context("the repository's root")?;
            play(Stage::set(|| RealCluster::new(weir, image, root))?, demo.pause)
        }
    }
}

fn play<W: World>(mut stage: Stage<W>, pause: bool) -> Result<()> {
    screen::cast(&stage)?;
    let mut before: Option<Matrix> = None;
    let mut wrong = Vec::new();
    for (number, step) in story::STEPS.iter().enumerate() {
        screen::heading(number + 1, story::STEPS.len(), step)?;
        if let Some(policy) = &step.policy {
            let took = stage.apply(policy)?;
            screen::applied(policy, stage.world.written(), took)?;
        }
        let matrix = stage.matrix(step)?;
        screen::matrix(&matrix, before.as_ref())?;
        wrong.extend(matrix.wrong().map(|cell| format!("step {}: {cell}", number + 1)));

        screen::flows(&stage.flows(step)?)?;
        screen::explanation(step, &stage.explain(step)?)?;
        before = Some(matrix);
        if pause {
            screen::pause()?;
        }
    }
    ensure!(wrong.is_empty(), "not what the policies say:\n  {}", wrong.join("\n  "));
    screen::curtain()?;
    out().flush()?;
    Ok(())
}
