//! `weir status`: what is enforced, and what is not and why.

use std::{
    io::{self, Write},
    thread,
    time::{Duration, Instant},
};

use clap::Args;

use super::{
    args::{Output, RunDir},
    client::{Client, unexpected},
    dump,
    error::CliError,
    output::{self, BOLD, Cell, DIM, GREEN, RED, Table, YELLOW},
    protocol::{MAX_WAIT, Response, Verb},
};
use crate::{
    cni::install::PluginReport,
    control::query::{DirectionReport, DumpKind, EndpointReport, EndpointState, StatusReport, WaitReport},
    flow::text::bytes_text,
};

/// How often an agent that is not there yet is looked for.
const RETRY: Duration = Duration::from_millis(20);

#[derive(Debug, Args)]
pub struct Status {
    /// Wait until everything that is in the source now is enforced, at most this long (500ms, 20s): exit code 0 then, else 1
    /// with the reason, at once if an object is invalid
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub wait: Option<Duration>,
    /// Show how often each rule was hit since the agent started, and which never were
    #[arg(long, conflicts_with = "wait")]
    pub rules: bool,
    #[command(flatten)]
    pub run_dir: RunDir,
    #[command(flatten)]
    pub output: Output,
}

/// What is not known, or has no number.
fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

impl Status {
    /// # Errors
    /// No agent; with `--wait`, something is not enforced in time.
    pub fn run(self) -> Result<(), CliError> {
        match self.wait {
            Some(wait) => self.wait(wait),
            None if self.rules => dump::show(DumpKind::Rules, &self.run_dir, &self.output),
            None => self.show(),
        }
    }

    fn show(&self) -> Result<(), CliError> {
        match Client::connect(&self.run_dir.run_dir)?.ask(Verb::Status)? {
            Response::Status(report) => output::print(self.output.output, &*report, |out| text(&report, out)),
            other => Err(unexpected(&other)),
        }
    }

    /// An agent that is just starting belongs to what is waited for.
    fn wait(&self, wait: Duration) -> Result<(), CliError> {
        let deadline = Instant::now() + wait.min(Duration::from_millis(MAX_WAIT));
        let report = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.ask(left) {
                Ok(report) => break report,
                Err(CliError::NoAgent { run_dir }) if left.is_zero() => {
                    break WaitReport {
                        enforced: false,
                        reason: Some(format!("no agent is running with run directory {}", run_dir.display())),
                        problems: Vec::new(),
                    };
                }
                Err(CliError::NoAgent { .. }) => thread::sleep(RETRY.min(left)),
                Err(error) => return Err(error),
            }
        };
        output::print(self.output.output, &report, |out| wait_text(&report, out))?;
        if report.enforced {
            Ok(())
        } else {
            Err(CliError::Told(1))
        }
    }

    fn ask(&self, left: Duration) -> Result<WaitReport, CliError> {
        let mut client = Client::connect(&self.run_dir.run_dir)?;
        client.patience(Some(left + Duration::from_secs(15)))?;
        let timeout_ms = u64::try_from(left.as_millis()).unwrap_or(MAX_WAIT);
        match client.ask(Verb::Wait { timeout_ms })? {
            Response::Wait(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }
}

fn wait_text(report: &WaitReport, out: &mut dyn Write) -> io::Result<()> {
    if report.enforced {
        writeln!(out, "{GREEN}enforced{GREEN:#}")?;
    } else if report.problems.is_empty() {
        let reason = report.reason.as_deref().unwrap_or("no reason given");
        writeln!(out, "{RED}not enforced:{RED:#} {reason}")?;
    } else {
        // The reason is one of these.
        writeln!(out, "{RED}not enforced:{RED:#} the source has errors")?;
    }
    output::problems(&report.problems, out)
}

fn text(report: &StatusReport, out: &mut dyn Write) -> io::Result<()> {
    let (style, word) = if report.ready {
        (GREEN, "ready")
    } else {
        (RED, "not ready")
    };
    write!(out, "{BOLD}node {}{BOLD:#}: {style}{word}{style:#}", report.node)?;
    if let Some(reason) = &report.reason {
        write!(out, ": {reason}")?;
    }
    writeln!(out)?;
    writeln!(
        out,
        "{DIM}weir {} (layout {}), pid {}, attached through {}{DIM:#}",
        report.version, report.layout, report.pid, report.attach
    )?;
    match &report.forwarding.reason {
        None => writeln!(out, "{DIM}packets between local pods are handed over directly{DIM:#}")?,
        Some(reason) => writeln!(out, "{DIM}the kernel forwards between local pods: {reason}{DIM:#}")?,
    }
    if report.audit {
        writeln!(
            out,
            "{YELLOW}audit mode: denials are reported, nothing is dropped{YELLOW:#}"
        )?;
    }
    writeln!(out, "source: {}; {} policies", report.source, report.policies)?;
    for watch in &report.watches {
        if let Some(stale) = &watch.stale {
            writeln!(
                out,
                "{YELLOW}stale for {} s:{YELLOW:#} {}: {}",
                stale.seconds, watch.kind, stale.reason
            )?;
        } else if !watch.synced {
            writeln!(out, "{YELLOW}not read yet:{YELLOW:#} {}", watch.kind)?;
        }
    }
    for policy in &report.staged {
        let namespace = policy
            .namespace
            .as_ref()
            .map(|namespace| format!("{namespace}/"))
            .unwrap_or_default();
        writeln!(out, "staged, not enforced: {} {namespace}{}", policy.kind, policy.name)?;
    }

    if let Some(cni) = &report.cni {
        plugin(cni, out)?;
    }

    writeln!(out)?;
    endpoints(&report.endpoints, out)?;
    for endpoint in &report.endpoints {
        if let Some(reason) = &endpoint.reason {
            writeln!(out, "  {}/{}: {reason}", endpoint.namespace, endpoint.pod)?;
        }
        if let Some(reason) = &endpoint.forwarding {
            writeln!(
                out,
                "  {}/{}: the kernel forwards its packets: {reason}",
                endpoint.namespace, endpoint.pod
            )?;
        }
        for program in &endpoint.foreign_programs {
            writeln!(
                out,
                "  {}/{}: also on its interface: {program}",
                endpoint.namespace, endpoint.pod
            )?;
        }
    }

    if !report.problems.is_empty() {
        writeln!(out)?;
        output::problems(&report.problems, out)?;
    }
    for shortage in &report.shortages {
        writeln!(
            out,
            "{RED}map {} is too small:{RED:#} {} needed, {} there; {}",
            shortage.map, shortage.needed, shortage.capacity, shortage.consequence
        )?;
    }

    writeln!(out)?;
    let mut maps = Table::new(["MAP", "ENTRIES", "CAPACITY", "USE", "MEMORY"]);
    for map in &report.maps {
        let percent = map
            .entries
            .map(|entries| entries as f64 * 100.0 / map.capacity.max(1) as f64);
        let style = if percent.is_some_and(|percent| percent >= 90.0) {
            RED
        } else {
            anstyle::Style::new()
        };
        maps.row([
            map.name.as_str().into(),
            or_dash(map.entries).into(),
            map.capacity.to_string().into(),
            Cell::styled(or_dash(percent.map(|percent| format!("{percent:.0} %"))), style),
            or_dash(map.memory.map(bytes_text)).into(),
        ]);
    }
    maps.write(out)?;

    let mut counters = Table::new(["REASON", "DIRECTION", "PACKETS", "BYTES"]);
    for counter in report.counters.iter().filter(|counter| counter.packets > 0) {
        let style = if counter.dropped { RED } else { anstyle::Style::new() };
        counters.row([
            Cell::styled(counter.reason.as_str(), style),
            counter.direction.as_str().into(),
            counter.packets.to_string().into(),
            bytes_text(counter.bytes).into(),
        ]);
    }
    if !counters.is_empty() {
        writeln!(out)?;
        counters.write(out)?;
    }

    writeln!(out)?;
    let evictions = &report.evictions;
    let style = if evictions.confirmed > 0 { RED } else { DIM };
    writeln!(
        out,
        "{style}evicted connections: {} confirmed, {} unconfirmed{style:#}",
        evictions.confirmed, evictions.unconfirmed
    )?;
    let flows = &report.flows;
    let lost = flows.lost_events + flows.lost_log + flows.lost_readers;
    let style = if lost > 0 { YELLOW } else { DIM };
    writeln!(
        out,
        "{style}flow records: {}{}; lost: {} in the kernel, {} by the log, {} by readers{style:#}",
        flows.records,
        if flows.enabled { "" } else { " (nobody reads: off)" },
        flows.lost_events,
        flows.lost_log,
        flows.lost_readers
    )?;
    if let Some(error) = &flows.log_error {
        writeln!(out, "{RED}flow log: {error}{RED:#}")?;
    }
    Ok(())
}

fn plugin(report: &PluginReport, out: &mut dyn Write) -> io::Result<()> {
    match (&report.installed, &report.reason) {
        (Some(file), _) if !report.failed => writeln!(
            out,
            "CNI plugin: {}, chained in {}",
            report.plugin.display(),
            file.display()
        )?,
        (_, reason) => {
            let style = if report.failed { RED } else { YELLOW };
            let reason = reason.as_deref().unwrap_or("no reason given");
            writeln!(out, "CNI plugin: {style}not chained{style:#}: {reason}")?;
        }
    }
    output::problems(&report.problems, out)
}

fn endpoints(endpoints: &[EndpointReport], out: &mut dyn Write) -> io::Result<()> {
    if endpoints.is_empty() {
        return writeln!(out, "no pods on this node");
    }
    let mut table = Table::new(["POD", "ID", "INTERFACE", "ADDRESSES", "STATE", "INGRESS", "EGRESS"]);
    for endpoint in endpoints {
        let (style, state) = match endpoint.state {
            EndpointState::Enforced => (GREEN, "enforced"),
            EndpointState::Closed => (RED, "closed"),
            EndpointState::Waiting => (YELLOW, "waiting"),
        };
        let addresses: Vec<String> = endpoint.addresses.iter().map(ToString::to_string).collect();
        table.row([
            format!("{}/{}", endpoint.namespace, endpoint.pod).into(),
            endpoint.id.map(|id| id.to_string()).unwrap_or_default().into(),
            endpoint.interface.as_deref().unwrap_or("-").into(),
            addresses.join(",").into(),
            Cell::styled(state, style),
            direction(&endpoint.ingress),
            direction(&endpoint.egress),
        ]);
    }
    table.write(out)
}

/// `open`, or the policies that apply.
fn direction(report: &DirectionReport) -> Cell {
    if report.closed {
        return Cell::styled("closed", RED);
    }
    if !report.isolated && report.policies.is_empty() {
        return Cell::styled("open", DIM);
    }
    let names: Vec<&str> = report.policies.iter().map(|policy| policy.name.as_str()).collect();
    match names.as_slice() {
        [first, second, third, rest @ ..] if !rest.is_empty() => {
            format!("{first}, {second}, {third} and {} more", rest.len()).into()
        }
        names => names.join(", ").into(),
    }
}
