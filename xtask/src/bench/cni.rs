//! `cni`: what the CNI plugin adds to the start of a pod.
//!
//! A pod that has no status yet is attached and detached again and again, by the plugin as a process: from its start to its
//! end, which is what the container runtime waits for. In it the agent reads its index, compiles the pod's policy into the
//! maps and attaches both programs. The agent is warm, and knows the pod from its source.

use std::{path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use weir_tests::lab::cni::{Call, PLUGIN};

use crate::{
    interrupt, load,
    node::Node,
    priority::Precedence,
    report::{self, Table},
    world::{self, NAMESPACE, World},
};

const P99_LIMIT_MS: f64 = 20.0;

/// Between two pods: no timer of the agent's is met in step.
const PAUSE: Duration = Duration::from_millis(13);

pub fn run(weir: &Path, quick: bool) -> Result<()> {
    report::heading(
        "cni",
        "what the CNI plugin adds to the start of a pod, from the start of its process to its end",
    );
    let pods = if quick { 60 } else { 400 };
    let mut table = Table::new([
        "other pods",
        "policies",
        "command",
        "calls",
        "p50 ms",
        "p99 ms",
        "max ms",
        "",
    ]);
    let mut figures = Vec::new();
    for (others, policies) in [(10, 10), (10_000, 1_000)] {
        let node = Node::new(&load::LOCAL_PODS)?;
        let world = World::new(&node)?;
        let (_, pod) = node.client_and_server()?;
        let mut pending = world::pod(&pod.name, &pod.name, pod.address, crate::node::NAME);
        pending["status"] = json!({ "phase": "Pending" });
        world.write(&format!("pod-{}", pod.name), &[pending])?;
        world.remote_pods(&world::remote_pods(others))?;
        world.policies(&load::policies(policies))?;
        let agent = node.start_agent(weir, &world, &[])?;

        // Under the plugin's name, as on a node.
        let program = node.directory().join(PLUGIN);
        std::fs::copy(weir, &program).context("copying the plugin")?;
        let configuration = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": PLUGIN, "runDir": agent.run_dir(),
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [
                    { "name": pod.interface },
                    { "name": "eth0", "sandbox": pod.netns.path() },
                ],
                "ips": [{ "address": format!("{}/32", pod.address), "interface": 1 }],
            },
        });
        let call = |command: &str, number: usize| -> Result<Call> {
            let name = format!("{NAMESPACE}/{}", pod.name);
            Ok(Call::new(command, &configuration)
                .pod(&name, &format!("sandbox-{number}"), &pod.netns.path())
                .of(&program)
                .on(node.netns()?))
        };
        let empty = |number: usize| -> Result<Call> {
            let mut call = call("VERSION", number)?;
            call.input = Value::Null.to_string().into_bytes();
            Ok(call)
        };
        let mut samples: [(&str, Vec<f64>); 3] = [("ADD", Vec::new()), ("DEL", Vec::new()), ("VERSION", Vec::new())];
        let _precedence = Precedence::take();
        for number in 0..pods {
            interrupt::check()?;
            let calls = [call("ADD", number)?, call("DEL", number)?, empty(number)?];
            for ((name, samples), call) in samples.iter_mut().zip(calls) {
                let answer = call.run()?;
                answer.succeeded().with_context(|| (*name).to_owned())?;
                samples.push(answer.took.as_secs_f64() * 1e3);
                thread::sleep(PAUSE);
            }
        }
        for (command, samples) in &samples {
            let quantile = |q| report::quantile(samples, q).unwrap_or(f64::NAN);
            let (p50, p99, max) = (quantile(0.5), quantile(0.99), quantile(1.0));
            let verdict = match *command {
                "ADD" => format!("p99 ≤ {P99_LIMIT_MS}: {}", report::at_most(p99, P99_LIMIT_MS)),
                _ => String::new(),
            };
            table.row([
                others.to_string(),
                policies.to_string(),
                (*command).to_owned(),
                samples.len().to_string(),
                format!("{p50:.2}"),
                format!("{p99:.2}"),
                format!("{max:.2}"),
                verdict,
            ]);
            figures.push(json!({
                "pods": others, "policies": policies, "command": command, "calls": samples.len(),
                "p50_ms": p50, "p99_ms": p99, "max_ms": max,
            }));
        }
        drop(agent);
    }
    table.print();
    report::json_line("cni", json!(figures));
    Ok(())
}
