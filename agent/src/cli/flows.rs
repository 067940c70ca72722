//! `weir flows`: who spoke with whom, and what policy said.

use std::{
    io::{IsTerminal, Write},
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Timestamp};

use super::{
    args::{Format, Output, RunDir},
    client::{Client, unexpected},
    error::CliError,
    output::DIM,
    protocol::{Response, Verb},
};
use crate::flow::{
    filter::{Filter, PodPattern, ProtocolPattern},
    hub::RECENT,
    json::{Line, Verdict},
    text,
};

/// `--since`: a duration before now, or a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    Ago(Duration),
    At(Timestamp),
}

/// Neither.
#[derive(Debug, thiserror::Error)]
#[error("neither a duration (90s, 5m, 1h30m) nor a time (2026-11-22T17:00:00Z)")]
pub struct BadSince;

impl FromStr for Since {
    type Err = BadSince;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(duration) = humantime::parse_duration(text) {
            return Ok(Self::Ago(duration));
        }
        text.parse().map(Self::At).map_err(|_| BadSince)
    }
}

impl Since {
    fn resolve(self) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(duration) => SignedDuration::try_from(duration)
                .ok()
                .and_then(|duration| Timestamp::now().checked_sub(duration).ok())
                .unwrap_or(Timestamp::MIN),
        }
    }
}

/// Verdicts as people type them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VerdictFilter {
    #[value(alias = "FORWARDED", alias = "allowed")]
    Forwarded,
    #[value(alias = "DROPPED", alias = "denied")]
    Dropped,
    #[value(alias = "AUDIT")]
    Audit,
}

impl From<VerdictFilter> for Verdict {
    fn from(verdict: VerdictFilter) -> Self {
        match verdict {
            VerdictFilter::Forwarded => Self::Forwarded,
            VerdictFilter::Dropped => Self::Dropped,
            VerdictFilter::Audit => Self::Audit,
        }
    }
}

/// Filters of one kind are alternatives, those of different kinds must all hold. Times are UTC.
#[derive(Debug, Args)]
pub struct Flows {
    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// So many recent records at most [default: all that are kept; none with --follow]
    #[arg(long, value_name = "NUMBER")]
    pub last: Option<usize>,
    /// Flows of pods in this namespace
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Vec<String>,
    /// Flows of this pod: NAME, NAMESPACE/NAME, or the beginning of either
    #[arg(long, value_name = "POD")]
    pub pod: Vec<PodPattern>,
    #[arg(long, value_enum, ignore_case = true, value_name = "VERDICT")]
    pub verdict: Vec<VerdictFilter>,
    /// tcp, udp, sctp, icmp, or a number
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Vec<ProtocolPattern>,
    /// Flows from or to this port
    #[arg(long, value_name = "PORT")]
    pub port: Vec<u16>,
    /// Nothing older than this: a duration (5m) or a time (2026-11-22T17:00:00Z)
    #[arg(long, value_name = "WHEN")]
    pub since: Option<Since>,
    #[command(flatten)]
    pub run_dir: RunDir,
    #[command(flatten)]
    pub output: Output,
}

impl Flows {
    /// # Errors
    /// No agent.
    pub fn run(self) -> Result<(), CliError> {
        let mut client = Client::connect(&self.run_dir.run_dir)?;
        // With a moment given, "follow" means from that moment on.
        let all = !self.follow || self.since.is_some();
        let verb = Verb::Flows {
            follow: self.follow,
            last: self.last.unwrap_or(if all { RECENT } else { 0 }),
            filter: Filter {
                namespaces: self.namespace,
                pods: self.pod,
                verdicts: self.verdict.into_iter().map(Into::into).collect(),
                protocols: self.protocol,
                ports: self.port,
                since: self.since.map(Since::resolve),
            },
        };
        let (recent, recording) = match client.ask(verb)? {
            Response::Flows { recent, recording } => (recent, recording),
            other => return Err(unexpected(&other)),
        };
        if !self.follow && !recording && recent == 0 {
            let mut stderr = anstream::stderr().lock();
            writeln!(
                stderr,
                "{DIM}no flows are recorded while nobody reads them: use --follow, or run the agent with --flow-log{DIM:#}"
            )?;
        }
        if self.follow {
            client.patience(None)?;
        }

        let mut stdout = anstream::stdout().lock();
        let mut shown = 0;
        while let Some(line) = client.line()? {
            match self.output.output {
                Format::Json => writeln!(stdout, "{line}")?,
                Format::Text => match serde_json::from_str::<Line<'_>>(&line) {
                    Ok(record) => writeln!(stdout, "{}", text::line(&record))?,
                    // A newer agent: its words are better than none.
                    Err(_) => writeln!(stdout, "{line}")?,
                },
            }
            shown += 1;
            // Live lines are shown as they come, a backlog at once.
            if !client.has_more() {
                stdout.flush()?;
            }
        }
        stdout.flush()?;
        if self.follow {
            return Err(CliError::failed("the agent has ended"));
        }
        if shown < recent {
            return Err(CliError::failed(format!(
                "the agent ended the conversation after {shown} of {recent} records"
            )));
        }
        if shown == 0 && recording && std::io::stderr().is_terminal() {
            writeln!(anstream::stderr(), "{DIM}no recent flow matches{DIM:#}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn since_is_a_duration_or_a_time() {
        assert_eq!("90s".parse::<Since>().ok(), Some(Since::Ago(Duration::from_secs(90))));
        assert!(matches!("2026-11-22T17:00:00Z".parse::<Since>(), Ok(Since::At(_))));
        assert!("yesterday".parse::<Since>().is_err());
    }

    #[test]
    fn filters_are_read_as_people_write_them() {
        let cli = Cli::try_parse_from([
            "weir",
            "flows",
            "-f",
            "-n",
            "prod",
            "--verdict",
            "DROPPED",
            "--protocol",
            "icmp",
            "--port",
            "53",
            "--pod",
            "prod/web-",
        ])
        .expect("parses");
        let crate::cli::Verb::Flows(flows) = cli.verb else {
            panic!("another verb")
        };
        assert_eq!(flows.verdict, [VerdictFilter::Dropped]);
        assert_eq!(flows.pod[0].namespace.as_deref(), Some("prod"));
        assert!(Cli::try_parse_from(["weir", "flows", "--port", "70000"]).is_err());
        assert!(Cli::try_parse_from(["weir", "flows", "--protocol", "tpc"]).is_err());
    }
}
