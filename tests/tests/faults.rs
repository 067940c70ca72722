//! Writes that the kernel refuses.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weir_common::layout::map;
use weir_tests::{
    kernel,
    lab::{
        Family,
        probe::{Protocol, Verdict},
    },
    world::{ENFORCED, Plan, World},
};

/// Everybody may reach x/server, but x/denied not on these ports, and with `more` x/later not at all. The table's default
/// admits, so a row that were lost would let them in.
fn all_but(ports: &str, more: bool) -> String {
    let later = if more {
        "  - {action: Deny, source: {selector: pod == 'later'}}\n"
    } else {
        ""
    };
    format!(
        "apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {{name: server}}
spec:
  selector: pod == 'server'
  types: [Ingress]
  ingress:
  - {{action: Deny, protocol: TCP, source: {{selector: pod == 'denied'}}, destination: {{ports: [{ports}]}}}}
{later}  - {{action: Allow}}
"
    )
}

/// It changes nothing that anybody asks, but the server's egress gets a table for it; and what takes it away again needs no
/// entry that is not there.
const EGRESS: &str = "apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: egress}
spec:
  selector: pod == 'server'
  types: [Egress]
  egress:
  - {action: Allow}
";

/// The old state stays whole until the maps are built anew: what a new state needs could not be written, so what the old
/// one needs must not be removed, and nobody must be led to the new one by a later change that can be written.
#[test]
fn a_refused_write_leaves_the_old_state_whole_and_is_mended() -> Result<()> {
    World::new(&Plan::one_node(&["x/server", "x/denied", "x/later", "x/other"]))?.check(|world| {
        world.manifests.text("egress", EGRESS)?;
        world.policy("server", &all_but("80, 81", false))?;
        let closed = |world: &mut World, from: &str, port: u16| -> Result<bool> {
            Ok(world.verdict(from, "x/server", Family::V4, Protocol::Tcp, port)? == Verdict::Deny)
        };
        ensure!(closed(world, "x/denied", 80)? && closed(world, "x/denied", 81)? && !closed(world, "x/later", 80)?);

        let generation = world.agent("node-1")?.generation()?;
        kernel::freeze(&generation.join(map::TRACES))?;

        world.manifests.text("server", &all_but("80, 82", true))?;
        // The write fails and is tried again later, with new maps. Before, the old rules are in force; after, the new
        // ones. Never are none.
        let deadline = Instant::now() + ENFORCED;
        while !world.agent("node-1")?.log_tail(200).contains("cannot write decisions") {
            ensure!(Instant::now() < deadline, "nothing is refused");
            std::thread::sleep(Duration::from_millis(10));
        }
        world.manifests.remove("egress")?;
        while generation.exists() {
            ensure!(Instant::now() < deadline, "the maps are not built anew");
            let denied = world.verdict("x/denied", "x/server", Family::V4, Protocol::Tcp, 80)?;
            ensure!(
                denied == Verdict::Deny,
                "x/denied got in while the maps could not be written"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        world.enforced()?;
        ensure!(closed(world, "x/denied", 80)? && closed(world, "x/later", 80)?);
        ensure!(!closed(world, "x/denied", 81)? && !closed(world, "x/other", 80)?);
        Ok(())
    })
}
