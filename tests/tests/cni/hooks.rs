//! What a pod's interface is hooked by: filters while its runtime waits, links soon after.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weir_tests::{
    hooks,
    lab::{
        Layout,
        agent::{AgentOptions, Attach},
    },
    world::{ENFORCED, Plan, World},
};

use super::{JUDGED, NODE, POD, POLICY, add, call, edit, enforced, link, pending, world, write};

/// Links and filters on x/new's interface.
fn pinned_and_filters(world: &mut World) -> Result<(usize, usize)> {
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
        match pinned_and_filters(world)? {
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
        let hooks = pinned_and_filters(world)?;
        ensure!(hooks == (2, 0), "{hooks:?}");
        let mut del = call(world, "DEL", "1.0.0")?;
        del.set("CNI_COMMAND", "DEL");
        del.run()?.succeeded()
    })
}

#[test]
fn a_pod_is_looked_at_when_the_runtime_checks_it() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        write(world, &pending(world)?)?;
        world.enforced()?;
        add(world)?.succeeded()?;
        settled(world)?;
        let check = call(world, "CHECK", "1.0.0")?;
        for _ in 0..3 {
            hooks::detach_links(world, POD)?;
            check.run()?.succeeded()?;
            // Links, and at once: a pod that runs is not attached in a hurry.
            let found = hooks::count(world, POD)?;
            ensure!(found == (2, 0), "hooks with links and filters: {found:?}");
            world.expect(&JUDGED)?;
        }
        Ok(())
    })
}

#[test]
fn a_pod_whose_programs_cannot_be_put_back_does_not_pass_the_check() -> Result<()> {
    let plan = Plan {
        options: AgentOptions {
            attach: Attach::Tc,
            ..AgentOptions::default()
        },
        ..Plan::one_node(&["x/a", "x/b"])
    };
    World::new(&plan)?.check(|world| {
        world.policy("policy", POLICY)?;
        link(world)?;
        write(world, &pending(world)?)?;
        world.enforced()?;
        add(world)?.succeeded()?;
        let mut check = call(world, "CHECK", "1.0.0")?;
        edit(&mut check, |configuration| configuration["waitSeconds"] = 1.into())?;
        check.run()?.succeeded()?;
        let node = world.lab.node(NODE)?.netns.clone();
        let interface = world.lab.pod(POD)?.interface.clone();
        // It stands where clsact would. The agent can be faster: once more.
        for attempt in 1.. {
            hooks::remove_qdisc(world, POD)?;
            if hooks::tc(&node, &["qdisc", "add", "dev", &interface, "ingress"]).is_ok() {
                break;
            }
            ensure!(attempt < 100, "the agent always comes first");
        }
        let answer = check.run()?;
        answer.failed(11)?;
        ensure!(answer.output.to_string().contains("clsact"), "{}", answer.output);
        hooks::tc(&node, &["qdisc", "del", "dev", &interface, "ingress"])?;
        let deadline = Instant::now() + ENFORCED;
        while check.run()?.succeeded().is_err() {
            ensure!(Instant::now() < deadline, "it is not tried again");
            thread::sleep(Duration::from_millis(100));
        }
        world.expect(&JUDGED)
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
