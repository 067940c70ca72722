//! What a pod's interface is hooked by: filters while its runtime waits, links soon after.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weir_tests::{
    lab::Layout,
    world::{ENFORCED, World},
};

use super::{JUDGED, NODE, POD, add, call, enforced, link, pending, world, write};

/// Links and filters on x/new's interface.
fn hooks(world: &mut World) -> Result<(usize, usize)> {
    let ifindex = enforced(world)?.ifindex.context("an enforced pod has an interface")?;
    let links = world.agent(NODE)?.bpffs().join("links");
    let pinned = ["from", "to"]
        .iter()
        .filter(|side| links.join(format!("{ifindex}-{side}")).exists())
        .count();
    let mut filters = 0;
    for hook in ["ingress", "egress"] {
        let mut command = Command::new("tc");
        command.args(["filter", "show", "dev", &world.lab.pod(POD)?.interface, hook]);
        world.lab.node(NODE)?.netns.command(&mut command)?;
        let shown = command.output().context("run tc")?.stdout;
        filters += usize::from(String::from_utf8_lossy(&shown).contains("weir_"));
    }
    Ok((pinned, filters))
}

fn settled(world: &mut World) -> Result<()> {
    let deadline = Instant::now() + ENFORCED;
    loop {
        match hooks(world)? {
            (2, 0) => return Ok(()),
            other => ensure!(Instant::now() < deadline, "links and filters: {other:?}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_pod_is_enforced_while_links_take_the_place_of_filters() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        write(world, &pending(world)?)?;
        world.enforced()?;
        add(world)?.succeeded()?;
        world.expect(&JUDGED)?;
        settled(world)?;
        world.expect(&JUDGED)?;
        // Told again by a runtime that has lost the answer.
        add(world)?.succeeded()?;
        ensure!(hooks(world)? == (2, 0), "{:?}", hooks(world)?);
        let mut del = call(world, "DEL", "1.0.0")?;
        del.set("CNI_COMMAND", "DEL");
        del.run()?.succeeded()
    })
}

#[test]
fn an_agent_that_is_killed_right_after_its_answer_has_kept_its_word() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        write(world, &pending(world)?)?;
        world.enforced()?;
        add(world)?.succeeded()?;
        world.agent(NODE)?.kill()?;
        world.expect(&JUDGED)?;
        let agent = world.agent(NODE)?;
        agent.spawn()?;
        agent.wait(ENFORCED)?;
        settled(world)?;
        world.expect(&JUDGED)?;
        // Nothing of it stays when all is taken away.
        let agent = world.agent(NODE)?;
        agent.terminate()?;
        agent.detach()?;
        let mut command = Command::new("tc");
        command.args(["qdisc", "show", "dev", &world.lab.pod(POD)?.interface]);
        world.lab.node(NODE)?.netns.command(&mut command)?;
        let shown = String::from_utf8_lossy(&command.output()?.stdout).into_owned();
        ensure!(!shown.contains("clsact"), "left behind: {shown}");
        Ok(())
    })
}
