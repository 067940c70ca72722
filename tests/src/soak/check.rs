//! Whether what is enforced is what the API server's objects say: on the wire between the lab's pods, and in an agent's
//! tables for the addresses of pods that are on no wire.

use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};

use super::{KILLED, PODS, Tally, enforced, expected::Expected};
use crate::{
    api_world::retry,
    churn::{Writer, decisions},
    cluster::api::Api,
    lab::{
        Family,
        probe::{Probe, Prober, Protocol, Verdict},
    },
    world::World,
};

/// How much was compared.
#[derive(Debug, Default)]
pub struct Checks {
    pub done: u64,
    /// Flows on the wire.
    pub flows: u64,
    /// Addresses of pods that are on no wire.
    pub addresses: u64,
    /// Writes to pods that are on no wire.
    pub written: u64,
}

/// Waits until everything is enforced, and compares. The writers must be held up.
pub fn check(
    world: &mut World,
    api: &Api,
    writers: &[Mutex<Writer<'_>>],
    prober: &mut Prober,
    tally: &mut Tally,
) -> Result<()> {
    // Each ends what it is about.
    let writers: Vec<_> = writers
        .iter()
        .map(|writer| writer.lock().unwrap_or_else(PoisonError::into_inner))
        .collect();
    enforced(world)?;
    let expected = retry(|| Expected::read(api))?;
    on_the_wire(world, &expected, prober, tally)?;

    let server = "k/server";
    let address = world.lab.address(server, Family::V4)?;
    let found = decisions(world.agent(KILLED)?, server)?;
    let mut compared = 0;
    for (name, pod) in writers.iter().flat_map(|writer| writer.pods()) {
        if !pod.is_running() {
            continue;
        }
        compared += 1;
        let word = if expected.receives((server, address), pod.address.into(), Protocol::Tcp, 80) {
            "allow"
        } else {
            "deny"
        };
        match found.get(&pod.address.into()) {
            Some(decision) if decision.contains(word) => {}
            other => tally.fail(format!(
                "{server} from {name} at {}: {other:?}, not {word}",
                pod.address
            )),
        }
    }
    tally.checks.addresses += compared;
    tally.checks.done += 1;
    Ok(())
}

fn on_the_wire(world: &World, expected: &Expected, prober: &mut Prober, tally: &mut Tally) -> Result<()> {
    let mut probes = Vec::new();
    let mut wanted = Vec::new();
    for (from, _) in PODS {
        for (to, _) in PODS.into_iter().filter(|(to, _)| *to != from) {
            let ends = [from, to].map(|pod| world.lab.address(pod, Family::V4));
            let [Ok(source), Ok(destination)] = ends else {
                continue;
            };
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                for port in [80, 81] {
                    let passes = expected.passes((from, source), (to, destination), protocol, port);
                    wanted.push(if passes { Verdict::Allow } else { Verdict::Deny });
                    probes.push(Probe {
                        from: from.to_owned(),
                        to: destination,
                        protocol,
                        port,
                    });
                }
            }
        }
    }
    ensure!(!probes.is_empty(), "there is nothing to be asked");
    for wrong in prober.wrong(&world.lab, &world.servers, &probes, &wanted)? {
        tally.fail(wrong);
    }
    tally.checks.flows += probes.len() as u64;
    Ok(())
}
