//! Somebody else takes the programs off a pod's interface, or puts others beside them: it is seen, said and mended.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weir::control::query::{EndpointReport, EndpointState};
use weir_tests::{
    hooks,
    lab::{
        Family,
        agent::{AgentOptions, Attach},
        probe::Verdict,
    },
    scrape::{self, Scrape},
    world::{Plan, World, only_from},
};

const NODE: &str = "node-1";
const SERVER: &str = "x/server";

const A_ONLY: [(&str, &str, u16, Verdict); 2] =
    [("x/a", SERVER, 80, Verdict::Allow), ("x/b", SERVER, 80, Verdict::Deny)];

/// The kernel tells of it: long before every hook has been looked at in turn.
const TOLD: Duration = Duration::from_secs(2);
/// The kernel does not: after a whole round, on a slow machine.
const ROUND: Duration = Duration::from_secs(15);

fn world(attach: Attach) -> Result<World> {
    let mut world = World::new(&Plan {
        options: AgentOptions {
            attach,
            arguments: scrape::arguments(),
            ..AgentOptions::default()
        },
        ..Plan::one_node(&[SERVER, "x/a", "x/b"])
    })?;
    world.policy("server", &only_from("a"))?;
    Ok(world)
}

/// Waits until both hooks of the server have programs: of links, or filters.
fn until_hooked(world: &World, hooked: (usize, usize), patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let found = hooks::count(world, SERVER)?;
        if found == hooked {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "hooks with links and filters: {found:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn endpoint(world: &World) -> Result<EndpointReport> {
    let endpoints = world.status(NODE)?.endpoints;
    let mut endpoints = endpoints.into_iter();
    endpoints
        .find(|endpoint| endpoint.namespace == "x" && endpoint.pod == "server")
        .context("the agent does not know the pod")
}

/// What the agent says of so many hooks that were lost.
fn said(world: &mut World, lost: u64) -> Result<()> {
    // An answer to a scrape is given again for a moment.
    let deadline = Instant::now() + TOLD;
    loop {
        let counted = Scrape::fetch(&world.lab, NODE)?.count("weir_hooks_lost_total", &[])?;
        if counted == lost {
            break;
        }
        ensure!(Instant::now() < deadline, "{counted} of {lost} are counted");
        thread::sleep(Duration::from_millis(50));
    }
    let interface = world.lab.pod(SERVER)?.interface.clone();
    let log = world.agent(NODE)?.log_tail(1_000);
    let warnings = log
        .lines()
        .filter(|line| line.contains("WARN") && line.contains("somebody has taken") && line.contains(&interface));
    let warnings = warnings.count();
    ensure!(
        warnings as u64 == lost / 2,
        "{warnings} warnings of {lost} hooks:\n{log}"
    );
    let endpoint = endpoint(world)?;
    ensure!(endpoint.state == EndpointState::Enforced, "{endpoint:?}");
    Ok(())
}

#[test]
fn filters_that_somebody_removes_are_back_at_once() -> Result<()> {
    world(Attach::Tc)?.check(|world| {
        let mut connection = world.connect("x/a", SERVER, Family::V4, 80)?;
        ensure!(connection.echoes()?, "a fresh connection does not echo");
        for round in 1..=3 {
            hooks::remove_qdisc(world, SERVER)?;
            until_hooked(world, (0, 2), TOLD)?;
            world.expect(&A_ONLY)?;
            said(world, 2 * round)?;
        }
        ensure!(connection.echoes()?, "a connection that is allowed broke");
        Ok(())
    })
}

#[test]
fn links_that_somebody_detaches_are_back_and_judge_what_began_meanwhile() -> Result<()> {
    world(Attach::Tcx)?.check(|world| {
        // It may send nothing but answers: then no connection can be taken for one of its own.
        world.policy("server", &only_from("a").replace("[Ingress]", "[Ingress, Egress]"))?;
        for round in 1..=5 {
            hooks::detach_links(world, SERVER)?;
            let allowed = world.connect("x/a", SERVER, Family::V4, 80);
            let denied = world.connect("x/b", SERVER, Family::V4, 80);
            until_hooked(world, (2, 0), ROUND)?;
            world.expect(&A_ONLY)?;
            said(world, 2 * round)?;
            let mut allowed = allowed?;
            ensure!(allowed.echoes()?, "a connection that is allowed broke");
            // Where the hooks were looked at just then, it was denied at once, which says nothing: once more.
            if let Ok(mut denied) = denied {
                ensure!(denied.is_cut()?, "a connection lives on that began while nobody looked");
                return Ok(());
            }
        }
        anyhow::bail!("the links were back each time before anybody could connect")
    })
}

#[test]
fn a_hook_that_cannot_be_had_again_is_said_and_tried_again() -> Result<()> {
    world(Attach::Tc)?.check(|world| {
        hooks::remove_qdisc(world, SERVER)?;
        let node = world.lab.node(NODE)?.netns.clone();
        let interface = world.lab.pod(SERVER)?.interface.clone();
        // As the bandwidth plugin makes it: it stands where clsact would. The agent can be faster: once more.
        let deadline = Instant::now() + ROUND;
        while hooks::tc(&node, &["qdisc", "add", "dev", &interface, "ingress"]).is_err() {
            ensure!(Instant::now() < deadline, "the agent always comes first");
            let _ = hooks::remove_qdisc(world, SERVER);
        }
        let deadline = Instant::now() + ROUND;
        loop {
            let found = endpoint(world)?;
            if found.state == EndpointState::Waiting && found.reason.as_ref().is_some_and(|why| why.contains("clsact"))
            {
                break;
            }
            ensure!(Instant::now() < deadline, "it is said to be enforced: {found:?}");
            thread::sleep(Duration::from_millis(20));
        }
        let waiting = Scrape::fetch(&world.lab, NODE)?.count("weir_endpoints", &[("state", "waiting")])?;
        ensure!(waiting == 1, "{waiting} endpoints wait");

        hooks::tc(&node, &["qdisc", "del", "dev", &interface, "ingress"])?;
        until_hooked(world, (0, 2), ROUND)?;
        world.enforced()?;
        world.expect(&A_ONLY)
    })
}

#[test]
fn programs_of_others_are_named() -> Result<()> {
    for attach in [Attach::Tcx, Attach::Tc] {
        world(attach)?.check(|world| {
            let found = endpoint(world)?.foreign_programs;
            ensure!(found.is_empty(), "its own programs are said to be others': {found:?}");
            let other = hooks::foreign(world, SERVER, attach)?;
            let found = endpoint(world)?.foreign_programs;
            let [named] = &found[..] else {
                anyhow::bail!("one program is not ours: {found:?}")
            };
            let hook = match attach {
                Attach::Tcx => "(tcx ingress, program ",
                Attach::Tc => "(tc ingress, program ",
            };
            ensure!(named.starts_with("weir_from_pod") && named.contains(hook), "{named}");
            let output = world.agent(NODE)?.verb(["status"])?;
            let text = String::from_utf8_lossy(&output.stdout);
            let line = format!("{SERVER}: also on its interface: {named}");
            ensure!(text.contains(&line), "no {line:?} in:\n{text}");
            // Ours stays beside it.
            world.expect(&A_ONLY)?;
            drop(other);
            Ok(())
        })?;
    }
    Ok(())
}
