//! Numbers, ports, protocols and networks as Calico's types read them: numbers may be given as strings, names in any
//! case.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::{
    api::at::{At, Report, Reported, described, quoted},
    policy::model::{Family, PortMatch},
};

/// An integer, or a string of digits.
pub(super) fn integer(at: &At<'_>) -> Option<i64> {
    match at.value() {
        Value::Number(number) => number.as_i64(),
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        _ => None,
    }
}

/// An integer of a range, in words for the error.
pub(super) fn bounded<T: TryFrom<i64>>(
    at: &At<'_>,
    range: std::ops::RangeInclusive<i64>,
    report: &mut Report,
) -> Result<T, Reported> {
    integer(at)
        .filter(|number| range.contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| {
            report.error(
                at.path(),
                format!(
                    "must be a number from {} to {}, is {}",
                    range.start(),
                    range.end(),
                    described(at.value())
                ),
                "correct the number",
            )
        })
}

/// A finite number, or one in a string.
pub(super) fn float(at: &At<'_>, report: &mut Report) -> Result<f64, Reported> {
    let number = match at.value() {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.parse::<f64>().ok(),
        _ => None,
    };
    number.filter(|number| number.is_finite()).ok_or_else(|| {
        report.error(
            at.path(),
            format!("must be a number, is {}", described(at.value())),
            "write a number, as in 100 or -0.5, or leave the field out",
        )
    })
}

/// A protocol by name, in any case, or by number.
pub(super) fn protocol(at: &At<'_>, report: &mut Report) -> Result<u8, Reported> {
    if integer(at).is_some() {
        return bounded(at, 1..=255, report);
    }
    let text = at.string(report)?;
    let known = [
        ("TCP", libc::IPPROTO_TCP),
        ("UDP", libc::IPPROTO_UDP),
        ("ICMP", libc::IPPROTO_ICMP),
        ("ICMPv6", libc::IPPROTO_ICMPV6),
        ("SCTP", libc::IPPROTO_SCTP),
        ("UDPLite", libc::IPPROTO_UDPLITE),
    ];
    known
        .into_iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(text))
        .and_then(|(_, number)| u8::try_from(number).ok())
        .ok_or_else(|| {
            report.error(
                at.path(),
                format!("{} is no protocol", quoted(text)),
                "use TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite or a number from 1 to 255",
            )
        })
}

/// A port: a number, a range `first:last`, or a name.
pub(super) fn port(at: &At<'_>, report: &mut Report) -> Result<PortMatch, Reported> {
    if integer(at).is_some() {
        let number = bounded(at, 1..=65535, report)?;
        return Ok(PortMatch::Range(number..=number));
    }
    let text = at.string(report)?;
    if let Some((first, last)) = text.split_once(':') {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u16>().ok().filter(|number| digits && *number != 0)
        };
        return match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(PortMatch::Range(first..=last)),
            _ => Err(report.error(
                at.path(),
                format!("{} is no range of ports", quoted(text)),
                "write first:last, as in \"8000:8080\"; ports are 1 to 65535",
            )),
        };
    }
    let is_name = (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if !is_name {
        return Err(report.error(
            at.path(),
            format!("{} is no port", quoted(text)),
            "write a number, a range \"first:last\", or the name of a container port",
        ));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        report.warn(
            at.path(),
            format!("{} is taken as the name of a port", quoted(text)),
            "if a range is meant, write it with a colon: first:last",
        );
    }
    Ok(PortMatch::Named(text.into()))
}

/// A network in a rule: with prefix length, without host bits.
pub(super) fn rule_net(at: &At<'_>, report: &mut Report) -> Result<IpNet, Reported> {
    let text = at.string(report)?;
    let Ok(net) = text.parse::<IpNet>() else {
        let remedy = match text.parse::<IpAddr>() {
            Ok(address) => format!("a rule wants a prefix length: write {}", IpNet::from(address)),
            Err(_) => "write address/prefix length, as in 10.0.0.0/8 or fd00::/8".to_owned(),
        };
        return Err(report.error(at.path(), format!("{} is no valid CIDR", quoted(text)), remedy));
    };
    if net.trunc() != net {
        return Err(report.error(
            at.path(),
            format!("{net} has host bits set"),
            format!("write {}, or another prefix length", net.trunc()),
        ));
    }
    plain(net, at, report)
}

/// A network of a network set: a bare address is one too, and host bits do not matter.
pub(super) fn set_net(at: &At<'_>, report: &mut Report) -> Result<IpNet, Reported> {
    let text = at.string(report)?;
    let net = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| {
            report.error(
                at.path(),
                format!("{} is no network", quoted(text)),
                "write an address, or address/prefix length; until then this entry is left out",
            )
        })?;
    plain(net.trunc(), at, report)
}

fn plain(net: IpNet, at: &At<'_>, report: &mut Report) -> Result<IpNet, Reported> {
    if let IpNet::V6(v6) = net
        && v6.network().to_ipv4_mapped().is_some()
    {
        return Err(report.error(
            at.path(),
            format!("{net} is an IPv4 network written as IPv6"),
            "write it as IPv4",
        ));
    }
    Ok(net)
}

pub(super) const fn family(net: &IpNet) -> Family {
    match net {
        IpNet::V4(_) => Family::V4,
        IpNet::V6(_) => Family::V6,
    }
}

/// The elements of a list of at most so many. More are read all the same, and reported: Calico refuses them. An absent
/// list is empty.
pub(super) fn list<T>(
    parent: &At<'_>,
    key: &str,
    most: usize,
    report: &mut Report,
    mut parse: impl FnMut(&At<'_>, &mut Report) -> Result<T, Reported>,
) -> Result<Vec<T>, Reported> {
    let Some(list) = parent.get(key) else {
        return Ok(Vec::new());
    };
    let mut out = Vec::new();
    let mut broken = None;
    for element in list.elements(report)? {
        match parse(&element, report) {
            Ok(value) => out.push(value),
            Err(reported) => broken = Some(reported),
        }
    }
    if out.len() > most {
        report.error(
            list.path(),
            format!("has {} entries; Calico refuses more than {most}", out.len()),
            "spread them over several rules",
        );
    }
    broken.map_or(Ok(out), Err)
}
