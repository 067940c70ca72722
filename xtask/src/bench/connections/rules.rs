//! The policy that every side enforces on the server pod, and how the peers of Weir write it.
//!
//! Rules of pods and ports, as most clusters have them: each allows one group of pods to one port. Only the last rule
//! allows the client, so who walks rules walks all of them.

use std::{fmt::Write as _, net::Ipv4Addr, ops::RangeInclusive};

use serde_json::{Value, json};

use super::generator::PORTS;
use crate::{
    node::Pod,
    world::{self, GROUPS},
};

/// Rules of one NetworkPolicy. Fewer, larger policies are kinder to chains, which look at each policy's outcome too.
const PER_POLICY: usize = 100;

/// Remote pods, one of each group.
pub const REMOTE_PODS: usize = GROUPS;

pub struct Rule {
    /// The value of the peer pods' label `app`.
    pub app: String,
    pub ports: RangeInclusive<u16>,
}

/// `count` rules of which the last one allows the client.
pub fn rules(count: usize) -> Vec<Rule> {
    let other = |number: usize| {
        let port = 1_024 + (number * 7 % 8_192) as u16;
        Rule {
            app: world::group(number),
            ports: port..=port,
        }
    };
    let client = Rule {
        app: "client".into(),
        ports: PORTS,
    };
    (0..count.saturating_sub(1)).map(other).chain([client]).collect()
}

/// As Kubernetes NetworkPolicies.
pub fn policies(rules: &[Rule]) -> Vec<Value> {
    let ingress = |rule: &Rule| {
        let mut port = json!({ "protocol": "TCP", "port": rule.ports.start() });
        if rule.ports.start() != rule.ports.end() {
            port["endPort"] = json!(rule.ports.end());
        }
        json!({
            "from": [{ "podSelector": { "matchLabels": { "app": rule.app } } }],
            "ports": [port],
        })
    };
    rules
        .chunks(PER_POLICY)
        .enumerate()
        .map(|(number, rules)| {
            let ingress: Vec<Value> = rules.iter().map(ingress).collect();
            world::policy(&format!("policy-{number:04}"), "server", &ingress)
        })
        .collect()
}

/// One set for each group of pods, and the client's.
pub fn sets(client: &Pod) -> impl Iterator<Item = (String, Ipv4Addr)> {
    let base = Ipv4Addr::new(10, 80, 0, 1).to_bits();
    let others = (0..GROUPS).map(move |number| (world::group(number), Ipv4Addr::from_bits(base + number as u32)));
    others.chain([("client".to_owned(), client.address)])
}

/// Input of `ipset restore`.
pub fn ipsets(client: &Pod) -> String {
    sets(client).fold(String::new(), |mut text, (name, address)| {
        let _ = writeln!(
            text,
            "create {name} hash:net family inet maxelem 1048576\nadd {name} {address}"
        );
        text
    })
}

/// Input of `iptables-restore`, laid out as Calico's felix lays out its filter table: dispatch by interface, in each
/// pod's chain conntrack first, then each policy's chain, in it for each rule a match that sets the mark and a return
/// if it is set.
pub fn iptables(rules: &[Rule], client: &Pod, server: &Pod) -> String {
    const ACCEPT: &str = "0x10000/0x10000";
    let mut text = String::from("*filter\n:FORWARD ACCEPT [0:0]\n");
    let mut line = |rule: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{rule}");
    };
    let policies = || rules.chunks(PER_POLICY).enumerate();
    for chain in ["cali-FORWARD", "cali-from-wl", "cali-to-wl", "cali-pri"] {
        line(format_args!(":{chain} - [0:0]"));
    }
    for pod in [client, server] {
        line(format_args!(":cali-fw-{0} - [0:0]\n:cali-tw-{0} - [0:0]", pod.name));
    }
    for (number, _) in policies() {
        line(format_args!(":cali-pi-{number} - [0:0]"));
    }
    line(format_args!(
        "-A FORWARD -j cali-FORWARD\n\
         -A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000\n\
         -A cali-FORWARD -i cali+ -j cali-from-wl\n\
         -A cali-FORWARD -o cali+ -j cali-to-wl\n\
         -A cali-FORWARD -m mark --mark {ACCEPT} -j ACCEPT\n\
         -A cali-pri -j MARK --set-xmark {ACCEPT}\n\
         -A cali-pri -j RETURN"
    ));
    for (dispatch, side, chain) in [("cali-from-wl", "-i", "fw"), ("cali-to-wl", "-o", "tw")] {
        for pod in [client, server] {
            line(format_args!(
                "-A {dispatch} {side} {} -g cali-{chain}-{}",
                pod.interface, pod.name
            ));
        }
        line(format_args!("-A {dispatch} -j DROP"));
    }
    for (pod, chain) in [client, server].into_iter().flat_map(|pod| [(pod, "fw"), (pod, "tw")]) {
        let chain = format!("cali-{chain}-{}", pod.name);
        line(format_args!(
            "-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A {chain} -m conntrack --ctstate INVALID -j DROP\n\
             -A {chain} -j MARK --set-xmark 0x0/0x10000"
        ));
        if chain == format!("cali-tw-{}", server.name) {
            line(format_args!("-A {chain} -j MARK --set-xmark 0x0/0x20000"));
            for (number, _) in policies() {
                line(format_args!(
                    "-A {chain} -m mark --mark 0x0/0x20000 -j cali-pi-{number}\n\
                     -A {chain} -m mark --mark {ACCEPT} -j RETURN"
                ));
            }
            line(format_args!("-A {chain} -m mark --mark 0x0/0x20000 -j DROP"));
        }
        line(format_args!(
            "-A {chain} -j cali-pri\n\
             -A {chain} -m mark --mark {ACCEPT} -j RETURN\n\
             -A {chain} -j DROP"
        ));
    }
    for (number, rules) in policies() {
        for Rule { app, ports } in rules {
            let ports = range(ports, ':');
            line(format_args!(
                "-A cali-pi-{number} -p tcp -m set --match-set {app} src -m multiport --dports {ports} -j MARK --set-xmark {ACCEPT}\n\
                 -A cali-pi-{number} -m mark --mark {ACCEPT} -j RETURN"
            ));
        }
    }
    text + "COMMIT\n"
}

/// Input of `nft -f`: one rule for each rule, with a named set, ended by its verdict: the least that can be written
/// rule by rule.
pub fn nftables(rules: &[Rule], client: &Pod, server: &Pod) -> String {
    let mut text = String::from("table ip weir-bench {\n");
    for (name, address) in sets(client) {
        let _ = writeln!(text, "set {name} {{ type ipv4_addr; elements = {{ {address} }} }}");
    }
    text += "chain policies {\n";
    for Rule { app, ports } in rules {
        let _ = writeln!(text, "ip saddr @{app} tcp dport {} accept", range(ports, '-'));
    }
    let (interface, address) = (&server.interface, server.address);
    let _ = writeln!(
        text,
        "}}\n\
         chain to-server {{ ct state established,related accept; ct state invalid drop; jump policies; drop; }}\n\
         chain forward {{\n\
           type filter hook forward priority filter;\n\
           oifname {interface} ip daddr {address} goto to-server\n\
           ct state established,related accept\n\
         }}\n\
         }}"
    );
    text
}

fn range(ports: &RangeInclusive<u16>, separator: char) -> String {
    let (start, end) = (ports.start(), ports.end());
    if start == end {
        start.to_string()
    } else {
        format!("{start}{separator}{end}")
    }
}
