//! The verbs of the `weir` binary, one file each.
//!
//! | file | what |
//! |---|---|
//! | `args` | flags that several verbs share |
//! | `agent`, `status`, `flows`, `explain`, `check`, `dump`, `detach`, `uninstall` | the verbs |
//! | `protocol`, `server`, `client` | how verbs speak with the agent |
//! | `health` | readiness and liveness over HTTP |
//! | `logging` | what the agent logs, and how |
//! | `offline` | manifests without an agent |
//! | `output` | tables, colours, JSON |
//! | `error` | how a verb can fail, and its exit code |

pub mod agent;
pub mod args;
pub mod check;
pub mod client;
pub mod detach;
pub mod dump;
pub mod error;
pub mod explain;
pub mod flows;
pub mod health;
pub mod logging;
pub mod offline;
pub mod output;
pub mod protocol;
pub mod server;
pub mod status;
pub mod uninstall;

#[cfg(test)]
mod tests;

use std::{ffi::OsString, io::Write, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::cni::plugin;
use error::CliError;

/// Enforces Kubernetes network policy on this node with eBPF, and says what it does.
#[derive(Debug, Parser)]
#[command(name = "weir", version, about, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run the node agent: read objects, enforce policies, report flows
    Agent(agent::Agent),
    /// Show what is enforced, and what is not and why
    Status(status::Status),
    /// Show flows: who spoke with whom, and what policy said
    Flows(flows::Flows),
    /// Say what policy makes of a flow, and which rules decide
    Explain(explain::Explain),
    /// Check manifests for mistakes, without an agent
    Check(check::Check),
    /// Show what the kernel enforces
    Dump(dump::Dump),
    /// Stop enforcing: detach from every interface and remove everything pinned
    Detach(detach::Detach),
    /// Speak the CNI protocol with a container runtime, as under the name weir-cni
    Cni,
    /// Remove Weir from a cluster: delete its DaemonSet, and wait until the agents have cleaned their nodes
    Uninstall(uninstall::Uninstall),
}

/// Parses the command line and does what it says. Under the name `weir-cni` the binary is
/// the CNI plugin. The exit code: 0 done, 1 not done, 2 misused, 3 no agent.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    // Before anything else: this name's callers count every millisecond, and give no arguments.
    if plugin::is_called(args.first().map(OsString::as_os_str)) {
        return plugin::main();
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors to clap. Where nobody can read it, nothing is left to say.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let done = match cli.verb {
        Verb::Agent(verb) => verb.run(),
        Verb::Status(verb) => verb.run(),
        Verb::Flows(verb) => verb.run(),
        Verb::Explain(verb) => verb.run(),
        Verb::Check(verb) => verb.run(),
        Verb::Dump(verb) => verb.run(),
        Verb::Detach(verb) => verb.run(),
        Verb::Cni => return plugin::main(),
        Verb::Uninstall(verb) => verb.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_silent() {
                tell(&error);
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn tell(error: &CliError) {
    let red = output::RED;
    let mut stderr = anstream::stderr().lock();
    // Where standard error is closed, the exit code has to do.
    let _ = writeln!(stderr, "{red}weir:{red:#} {error}");
    if let Some(remedy) = error.remedy() {
        let _ = writeln!(stderr, "  {remedy}");
    }
}
