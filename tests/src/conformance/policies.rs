//! The text of a step's policies, made to fit a cluster.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::lab::{Family, address::twin_nets};

/// Fills in the placeholders of a text, and takes its addresses over to a family. `address` tells a host's, of that family.
///
/// # Errors
/// If a placeholder is not known, and what `address` returns.
pub fn addressed(text: &str, family: Family, address: impl Fn(&str) -> Result<IpAddr>) -> Result<String> {
    let fit = |part: &str| match family {
        Family::V4 => part.to_owned(),
        // Calico's ICMP is that of IPv4 alone.
        Family::V6 => twin_nets(part).replace("rotocol: ICMP\n", "rotocol: ICMPv6\n"),
    };
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, from)) = rest.split_once("${") {
        let (placeholder, after) = from.split_once('}').context("a placeholder without an end")?;
        let (kind, host) = placeholder.split_once(':').context("a placeholder without a host")?;
        let address = address(host)?;
        // Some are written with a prefix length behind them.
        let (bits, after) = prefix(after);
        // Of the IPv4 plan; its twins keep the last 32 bits.
        let fitting = |bits: u8| match family {
            Family::V4 => bits,
            Family::V6 => bits + 96,
        };
        out.push_str(&fit(before));
        match (kind.strip_prefix("CIDR"), bits) {
            (Some(bits), None) => {
                let net = IpNet::new(address, fitting(bits.parse()?))?.trunc();
                out.push_str(&net.to_string());
            }
            (None, Some(bits)) if kind == "IP" => {
                out.push_str(&format!("{address}/{}", fitting(bits)));
            }
            (None, None) if kind == "IP" => out.push_str(&address.to_string()),
            _ => bail!("placeholder ${{{placeholder}}} is not known"),
        }
        rest = after;
    }
    out.push_str(&fit(rest));
    Ok(out)
}

/// A prefix length at the beginning of a text, and what follows.
fn prefix(text: &str) -> (Option<u8>, &str) {
    let Some(digits) = text.strip_prefix('/') else {
        return (None, text);
    };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    match digits[..end].parse() {
        Ok(bits) => (Some(bits), &digits[end..]),
        Err(_) => (None, text),
    }
}

/// The objects of a text, as an API server takes them: with a namespace where their kind has one.
///
/// # Errors
/// If it does not parse.
pub fn policies_in(text: &str) -> Result<Vec<Value>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("parse policies")?;
    let mut objects: Vec<Value> = documents.into_iter().filter(|document| !document.is_null()).collect();
    for object in &mut objects {
        let namespaced = object["kind"].as_str().is_some_and(|kind| {
            matches!(
                kind,
                "NetworkPolicy" | "NetworkSet" | "StagedNetworkPolicy" | "StagedKubernetesNetworkPolicy"
            )
        });
        if namespaced && object["metadata"]["namespace"].is_null() {
            object["metadata"]["namespace"] = json!("default");
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::{addressed, policies_in};
    use crate::lab::Family;

    #[test]
    fn placeholders_become_addresses_of_the_family() {
        let text = "a: ${IP:x/a}/32\nb: ${CIDR24:x/a}\nc: 10.0.0.0/8\n";
        let v4 = addressed(text, Family::V4, |_| Ok("10.244.1.7".parse()?)).unwrap();
        assert_eq!(v4, "a: 10.244.1.7/32\nb: 10.244.1.0/24\nc: 10.0.0.0/8\n");
        let v6 = addressed(text, Family::V6, |_| Ok("fd00:77:1::7".parse()?)).unwrap();
        assert_eq!(
            v6,
            "a: fd00:77:1::7/128\nb: fd00:77:1::/120\nc: fd00:7765:6972::a00:0/104\n"
        );
        assert!(addressed("${X:x/a}", Family::V4, |_| Ok("10.244.1.7".parse()?)).is_err());
    }

    #[test]
    fn objects_get_the_namespace_that_they_lack() {
        let text = "kind: NetworkPolicy\nmetadata: {name: a}\n---\nkind: Tier\nmetadata: {name: b}\n";
        let objects = policies_in(text).unwrap();
        assert_eq!(objects[0]["metadata"]["namespace"], "default");
        assert!(objects[1]["metadata"]["namespace"].is_null());
    }
}
