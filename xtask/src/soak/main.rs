//! `weir-soak`: what `cargo xtask soak` builds and runs.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use weir_tests::soak;

use self::arguments::Arguments;

mod arguments;

#[derive(Parser)]
#[command(name = "cargo xtask soak", bin_name = "cargo xtask soak")]
struct Program {
    #[command(flatten)]
    arguments: Arguments,
}

fn main() -> ExitCode {
    let Program { arguments } = Program::parse();
    match soak::run(Duration::from_secs(60 * arguments.minutes)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
