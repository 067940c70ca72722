//! `weir explain`: what policy makes of a flow, and which rules decide.

use std::{
    io::{self, Write},
    path::PathBuf,
    str::FromStr,
};

use clap::Args;
use weir_common::policy::{IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP};

use super::{
    args::{Output, RunDir},
    client::{Client, unexpected},
    error::CliError,
    offline::explain_manifests,
    output::{self, BOLD, DIM, GREEN, RED, YELLOW},
    protocol::{Response, Verb},
};
use crate::{
    control::explain::{
        DirectionExplanation, ExplainRequest, ExplainVerdict, Explanation, FamilyName, HitReport, Party, PartyReport,
        PathExplanation, Traffic,
    },
    flow::text::policy_text,
};

/// Type 8, code 0 (RFC 792).
const ECHO_REQUEST: u16 = 8 << 8;

/// Type 128, code 0 (RFC 4443).
const ECHO_REQUEST_V6: u16 = 128 << 8;

/// An end as it is typed: namespace/pod, or an IP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartyArg(pub Party);

/// Neither.
#[derive(Debug, thiserror::Error)]
#[error("neither NAMESPACE/POD nor an IP address")]
pub struct BadParty;

impl FromStr for PartyArg {
    type Err = BadParty;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self(Party::Address(address)));
        }
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self(Party::Pod {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                }))
            }
            _ => Err(BadParty),
        }
    }
}

/// Destination port and protocol as they are typed: `80`, `53/UDP`, `icmp`, `8/0/ICMP`, `47/proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrafficArg(pub Traffic);

/// None of these.
#[derive(Debug, thiserror::Error)]
#[error("write PORT (TCP), PORT/TCP, PORT/UDP, PORT/SCTP, icmp, TYPE/CODE/ICMP, or NUMBER/PROTO for another protocol")]
pub struct BadTraffic;

impl FromStr for TrafficArg {
    type Err = BadTraffic;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        let port = |text: &str| text.parse::<u16>().map_err(|_| BadTraffic);
        let byte = |text: &str| text.parse::<u8>().map(u16::from).map_err(|_| BadTraffic);
        let (protocol, port) = match parts.as_slice() {
            ["icmp" | "icmpv4"] => (IPPROTO_ICMP, ECHO_REQUEST),
            ["icmpv6"] => (IPPROTO_ICMPV6, ECHO_REQUEST_V6),
            [kind, code, "icmp" | "icmpv4"] => (IPPROTO_ICMP, byte(kind)? << 8 | byte(code)?),
            [kind, code, "icmpv6"] => (IPPROTO_ICMPV6, byte(kind)? << 8 | byte(code)?),
            [number] | [number, "tcp"] => (IPPROTO_TCP, port(number)?),
            [number, "udp"] => (IPPROTO_UDP, port(number)?),
            [number, "sctp"] => (IPPROTO_SCTP, port(number)?),
            [number, "proto" | "protocol"] => (number.parse().map_err(|_| BadTraffic)?, 0),
            _ => return Err(BadTraffic),
        };
        Ok(Self(Traffic {
            protocol,
            port,
            source_port: None,
        }))
    }
}

/// The exit code says whether there is an answer, not what it is: see `verdict` with -o json.
#[derive(Debug, Args)]
pub struct Explain {
    /// Who opens the flow: NAMESPACE/POD or an IP address
    pub from: PartyArg,
    /// Whom to: NAMESPACE/POD or an IP address
    pub to: PartyArg,
    /// PORT[/TCP|UDP|SCTP], icmp (echo), TYPE/CODE/ICMP
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub traffic: TrafficArg,
    /// Source port, for policies that ask for it [default: an ephemeral one]
    #[arg(long, value_name = "PORT")]
    pub source_port: Option<u16>,
    /// Only over IPv4
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// Only over IPv6
    #[arg(short = '6', long)]
    pub ipv6: bool,
    /// Answer from these manifests, without an agent
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    #[command(flatten)]
    pub run_dir: RunDir,
    #[command(flatten)]
    pub output: Output,
}

impl Explain {
    /// # Errors
    /// No agent, an end that is not known.
    pub fn run(self) -> Result<(), CliError> {
        let request = ExplainRequest {
            from: self.from.0.clone(),
            to: self.to.0.clone(),
            traffic: Traffic {
                source_port: self.source_port,
                ..self.traffic.0
            },
            family: match (self.ipv4, self.ipv6) {
                (true, _) => Some(FamilyName::IPv4),
                (_, true) => Some(FamilyName::IPv6),
                _ => None,
            },
        };
        let explanation = self.ask(request)?;
        output::print(self.output.output, &explanation, |out| text(&explanation, out))
    }

    fn ask(&self, request: ExplainRequest) -> Result<Explanation, CliError> {
        if let Some(manifests) = &self.manifests {
            return explain_manifests(manifests, &request);
        }
        match Client::connect(&self.run_dir.run_dir)?.ask(Verb::Explain { request })? {
            Response::Explain(explanation) => Ok(*explanation),
            other => Err(unexpected(&other)),
        }
    }
}

const fn style(verdict: ExplainVerdict) -> (anstyle::Style, &'static str) {
    match verdict {
        ExplainVerdict::Forwarded => (GREEN, "FORWARDED"),
        ExplainVerdict::Dropped => (RED, "DROPPED"),
        ExplainVerdict::Mixed => (YELLOW, "MIXED"),
    }
}

fn text(explanation: &Explanation, out: &mut dyn Write) -> io::Result<()> {
    let what = match (explanation.port, explanation.icmp_type, explanation.icmp_code) {
        (Some(port), _, _) => format!("{port}/{}", explanation.protocol),
        (None, Some(kind), Some(code)) => format!("{} type {kind} code {code}", explanation.protocol),
        _ => format!("protocol {}", explanation.protocol),
    };
    let (colour, word) = style(explanation.verdict);
    writeln!(
        out,
        "{} -> {} {what}: {colour}{word}{colour:#}",
        party(&explanation.source),
        party(&explanation.destination)
    )?;
    // Where the families agree in every step, one of them tells all.
    let differ = explanation
        .paths
        .iter()
        .any(|path| (&path.egress, &path.ingress) != (&explanation.egress, &explanation.ingress));
    let shown = if differ { explanation.paths.len() } else { 1 };
    for path in explanation.paths.iter().take(shown) {
        if differ {
            let (colour, word) = style(path.verdict);
            writeln!(out, "{BOLD}{:?}{BOLD:#}: {colour}{word}{colour:#}", path.family)?;
        }
        ends(path, out)?;
    }
    Ok(())
}

fn ends(path: &PathExplanation, out: &mut dyn Write) -> io::Result<()> {
    direction("egress", &path.source, &path.egress, out)?;
    direction("ingress", &path.destination, &path.ingress, out)
}

fn direction(name: &str, end: &PartyReport, explanation: &DirectionExplanation, out: &mut dyn Write) -> io::Result<()> {
    let (colour, word) = style(explanation.verdict);
    write!(out, "  {name:7} of {}: {colour}{word}{colour:#}", party(end))?;
    if let Some(reason) = &explanation.exempt {
        return writeln!(out, " {DIM}({reason}){DIM:#}");
    }
    if explanation.hits.is_empty() {
        return writeln!(out, " {DIM}(nothing is known of this pod){DIM:#}");
    }
    writeln!(out)?;
    for hit in &explanation.hits {
        writeln!(out, "    {}", step(hit))?;
    }
    if let Some(staged) = &explanation.staged
        && staged.hits != explanation.hits
    {
        let (colour, word) = style(staged.verdict);
        writeln!(out, "    with staged policies: {colour}{word}{colour:#}")?;
        for hit in &staged.hits {
            writeln!(out, "      {}", step(hit))?;
        }
    }
    Ok(())
}

fn step(hit: &HitReport) -> String {
    let (Some(tier), Some(policy)) = (&hit.tier, &hit.policy) else {
        return format!("no policy applies: {}", hit.action);
    };
    let name = hit
        .rule_name
        .as_ref()
        .map(|name| format!(" {name:?}"))
        .unwrap_or_default();
    match hit.rule {
        Some(rule) => format!(
            "tier {tier}: {} rule #{rule}{name}: {}",
            policy_text(policy),
            hit.action
        ),
        None => format!(
            "tier {tier}: no rule matches, end of tier: {} (last: {})",
            hit.action,
            policy_text(policy)
        ),
    }
}

fn party(report: &PartyReport) -> String {
    match (&report.namespace, &report.pod, &report.node, report.address) {
        (Some(namespace), Some(pod), _, _) => format!("{namespace}/{pod}"),
        (_, _, Some(node), Some(address)) => format!("node/{node} ({address})"),
        (_, _, _, Some(address)) => address.to_string(),
        _ => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parties_are_pods_or_addresses() {
        assert_eq!(
            "prod/web-0".parse::<PartyArg>().expect("a pod").0,
            Party::Pod {
                namespace: "prod".to_owned(),
                name: "web-0".to_owned()
            }
        );
        for address in ["10.0.0.1", "2001:db8::1"] {
            assert!(matches!(
                address.parse::<PartyArg>().expect("an address").0,
                Party::Address(_)
            ));
        }
        for text in ["web", "/web", "prod/", "a/b/c", ""] {
            assert!(text.parse::<PartyArg>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn traffic_is_a_port_or_an_icmp_message() {
        let parse = |text: &str| {
            text.parse::<TrafficArg>()
                .map(|traffic| (traffic.0.protocol, traffic.0.port))
                .ok()
        };
        assert_eq!(parse("80"), Some((6, 80)));
        assert_eq!(parse("80/tcp"), Some((6, 80)));
        assert_eq!(parse("53/UDP"), Some((17, 53)));
        assert_eq!(parse("9/SCTP"), Some((132, 9)));
        assert_eq!(parse("icmp"), Some((1, 0x0800)));
        assert_eq!(parse("icmpv6"), Some((58, 0x8000)));
        assert_eq!(parse("3/4/ICMP"), Some((1, 0x0304)));
        assert_eq!(parse("47/proto"), Some((47, 0)));
        for text in ["", "tcp", "80/tpc", "65536", "-1", "256/0/icmp", "8/icmp", "300/proto"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
