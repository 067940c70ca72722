//! A stopped agent changes nothing; the next one takes over what it finds.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use weir_tests::{
    binary,
    lab::{Family, PodPlan, agent::AgentOptions, agent::Attach, probe::Verdict},
    traffic::Traffic,
    world::{ENFORCED, Plan, World, only_from},
};

/// How long traffic runs while no agent does.
const ALONE: Duration = Duration::from_millis(400);

fn world(attach: Attach) -> Result<World> {
    let plan = Plan {
        options: AgentOptions {
            attach,
            ..AgentOptions::default()
        },
        ..Plan::one_node(&["x/server", "x/a", "x/b"])
    };
    let mut world = World::new(&plan)?;
    world.policy("server", &only_from("a"))?;
    Ok(world)
}

const A_ONLY: [(&str, &str, u16, Verdict); 2] = [
    ("x/a", "x/server", 80, Verdict::Allow),
    ("x/b", "x/server", 80, Verdict::Deny),
];

#[derive(Clone, Copy, Debug)]
enum End {
    Terminate,
    Kill,
}

fn traffic_does_not_notice(attach: Attach) -> Result<()> {
    world(attach)?.check(|world| {
        for family in [Family::V4, Family::V6] {
            for end in [End::Terminate, End::Kill] {
                let traffic = Traffic::start(world, family, ("x/a", "x/server"), Some(("x/b", "x/server")))?;
                thread::sleep(Duration::from_millis(50));
                let agent = world.agent("node-1")?;
                match end {
                    End::Terminate => {
                        let status = agent.terminate()?;
                        ensure!(status.success(), "after SIGTERM the agent ends with {status}");
                    }
                    End::Kill => agent.kill()?,
                }
                thread::sleep(ALONE);
                world.expect(&A_ONLY)?;
                let agent = world.agent("node-1")?;
                agent.spawn()?;
                agent.wait(ENFORCED)?;
                thread::sleep(Duration::from_millis(100));
                let report = traffic.stop(world)?;
                report.unharmed().with_context(|| format!("{end:?}, {family:?}"))?;
                ensure!(report.forbidden > 0, "nothing forbidden was sent");
                world.expect(&A_ONLY)?;
            }
        }
        // The agent that took over is in charge: it cuts and admits.
        let mut connection = world.connect("x/a", "x/server", Family::V4, 80)?;
        ensure!(connection.echoes()?, "a fresh connection does not echo");
        world.policy("server", &only_from("b"))?;
        ensure!(connection.is_cut()?, "a connection survived the policy that forbids it");
        world.expect(&[
            ("x/b", "x/server", 80, Verdict::Allow),
            ("x/a", "x/server", 80, Verdict::Deny),
        ])
    })
}

#[test]
fn traffic_does_not_notice_that_the_agent_ends_tcx() -> Result<()> {
    traffic_does_not_notice(Attach::Tcx)
}

#[test]
fn traffic_does_not_notice_that_the_agent_ends_tc() -> Result<()> {
    traffic_does_not_notice(Attach::Tc)
}

#[test]
fn what_changed_while_no_agent_ran_is_enforced_by_the_next() -> Result<()> {
    for attach in [Attach::Tcx, Attach::Tc] {
        world(attach)?.check(|world| {
            let mut cut = world.connect("x/a", "x/server", Family::V4, 80)?;
            ensure!(cut.echoes()?, "a fresh connection does not echo");
            world.agent("node-1")?.kill()?;
            world.manifests.text("server", &only_from("b"))?;
            world.remove_pod("x/b")?;
            world.add_pods(&[PodPlan::new("x/b", "node-1"), PodPlan::new("y/c", "node-1")])?;
            world.manifests.text(
                "other",
                &only_from("a")
                    .replace("server", "c")
                    .replace("namespace: x", "namespace: y"),
            )?;
            let agent = world.agent("node-1")?;
            agent.spawn()?;
            agent.wait(ENFORCED)?;
            ensure!(cut.is_cut()?, "a connection survived the policy that forbids it");
            world.expect(&[
                ("x/b", "x/server", 80, Verdict::Allow),
                ("x/a", "x/server", 80, Verdict::Deny),
                ("y/c", "x/server", 80, Verdict::Deny),
                ("x/b", "y/c", 80, Verdict::Deny),
                ("y/c", "x/b", 80, Verdict::Allow),
            ])
        })?;
    }
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_run_directory_is_refused() -> Result<()> {
    world(Attach::Tcx)?.check(|world| {
        let agent = world.agent("node-1")?;
        let output = agent.agent_command()?.output()?;
        ensure!(!output.status.success(), "a second agent was let in");
        let said = String::from_utf8_lossy(&output.stderr);
        let run_dir = agent.run_dir().display().to_string();
        ensure!(said.contains(&run_dir), "the refusal does not name {run_dir}: {said}");
        // The first one is unimpressed.
        world.policy("server", &only_from("b"))?;
        world.expect(&[
            ("x/b", "x/server", 80, Verdict::Allow),
            ("x/a", "x/server", 80, Verdict::Deny),
        ])
    })
}

#[test]
fn an_invalid_update_leaves_the_last_valid_version_in_force_also_after_a_crash() -> Result<()> {
    world(Attach::Tcx)?.check(|world| {
        // Parses as YAML, and is no valid policy.
        let invalid = only_from("b").replace("podSelector: {matchLabels: {pod: b}}", "ipBlock: {cidr: 300.0.0.0/8}");
        world.manifests.text("server", &invalid)?;
        let report = weir_tests::world::wait_report(&world.agents["node-1"], ENFORCED)?;
        ensure!(!report.enforced, "an invalid object is said to be enforced");
        let named = format!("{report:?}");
        ensure!(
            named.contains("server.yaml") && named.contains("300.0.0.0/8"),
            "the report names no file: {named}"
        );
        world.expect(&A_ONLY)?;

        let agent = world.agent("node-1")?;
        agent.kill()?;
        agent.spawn()?;
        let deadline = std::time::Instant::now() + ENFORCED;
        while !world.status("node-1").is_ok_and(|status| status.ready) && std::time::Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        world.expect(&A_ONLY).context("after kill -9")?;
        let status = world.status("node-1")?;
        ensure!(!status.problems.is_empty(), "the invalid object is forgotten");

        world.policy("server", &only_from("b"))?;
        world.expect(&[
            ("x/b", "x/server", 80, Verdict::Allow),
            ("x/a", "x/server", 80, Verdict::Deny),
        ])
    })
}

#[test]
fn a_half_written_file_keeps_all_its_objects() -> Result<()> {
    world(Attach::Tcx)?.check(|world| {
        let path = world.manifests.path("server");
        let whole = format!("{}---\n{}", only_from("a"), only_from("a").replace("server", "b"));
        fs::write(&path, &whole)?;
        world.enforced()?;
        let both = [A_ONLY[0], A_ONLY[1], ("x/server", "x/b", 80, Verdict::Deny)];
        world.expect(&both)?;
        // In place, as an editor or a slow copy does it. Within a flow mapping: no parser can take that for whole.
        fs::write(&path, &whole[..whole.rfind("{pod").context("a flow mapping")? + 3])?;
        let report = weir_tests::world::wait_report(&world.agents["node-1"], ENFORCED)?;
        ensure!(!report.enforced, "half a file is said to be enforced");
        world.expect(&both)?;
        fs::write(&path, only_from("a"))?;
        world.enforced()?;
        world.expect(&[A_ONLY[0], A_ONLY[1], ("x/server", "x/b", 80, Verdict::Allow)])
    })
}

/// Names of our programs on a host interface, of both hooks and both kinds of attachment.
fn hooked(world: &World, interface: &str) -> Result<String> {
    let node = world.lab.node("node-1")?;
    let mut found = String::new();
    for side in ["ingress", "egress"] {
        let mut command = std::process::Command::new("tc");
        command.args(["filter", "show", "dev", interface, side]);
        node.netns.command(&mut command)?;
        found += &String::from_utf8_lossy(&command.output().context("run tc")?.stdout);
    }
    let tcx = node.netns.run(|| {
        use aya::programs::tc::{SchedClassifier, TcAttachType};
        let mut programs = 0;
        for side in [TcAttachType::Ingress, TcAttachType::Egress] {
            programs += SchedClassifier::query_tcx(interface, side).map_or(0, |(_, programs)| programs.len());
        }
        Ok(programs)
    })?;
    if tcx > 0 {
        found += &format!("{tcx} TCX programs");
    }
    Ok(found)
}

#[test]
fn detach_leaves_nothing_with_and_without_an_agent() -> Result<()> {
    for attach in [Attach::Tcx, Attach::Tc] {
        for running in [true, false] {
            world(attach)?.check(|world| {
                let interface = world.lab.pod("x/server")?.interface.clone();
                ensure!(
                    !hooked(world, &interface)?.is_empty(),
                    "{interface} has no program of ours"
                );
                let mut connection = world.connect("x/a", "x/server", Family::V6, 80)?;
                let agent = world.agent("node-1")?;
                if !running {
                    agent.terminate()?;
                }
                agent.detach()?;
                if running {
                    agent.await_end()?;
                }
                let bpffs = agent.bpffs().to_owned();
                ensure!(
                    !bpffs.exists() || fs::read_dir(&bpffs)?.next().is_none(),
                    "{} is not empty",
                    bpffs.display()
                );
                let left = hooked(world, &interface)?;
                ensure!(left.is_empty(), "on {interface}: {left}");
                ensure!(connection.echoes()?, "a connection broke");
                world.expect(&[("x/b", "x/server", 80, Verdict::Allow)])
            })?;
        }
    }
    Ok(())
}

#[test]
fn connections_live_on_through_upgrades_to_another_layout_and_back() -> Result<()> {
    let next = binary::weir_next_layout()?;
    for attach in [Attach::Tcx, Attach::Tc] {
        world(attach)?.check(|world| {
            let mut old = world.connect("x/a", "x/server", Family::V4, 80)?;
            let mut old_v6 = world.connect("x/a", "x/server", Family::V6, 80)?;
            ensure!(old.echoes()? && old_v6.echoes()?, "fresh connections do not echo");
            for binary in [Some(next.clone()), None] {
                let traffic = Traffic::start(world, Family::V4, ("x/a", "x/server"), Some(("x/b", "x/server")))?;
                let agent = world.agent("node-1")?;
                agent.terminate()?;
                agent.options().binary = binary.clone();
                agent.spawn()?;
                agent.wait(ENFORCED)?;
                thread::sleep(Duration::from_millis(200));
                traffic
                    .stop(world)?
                    .unharmed()
                    .with_context(|| format!("upgrade to {binary:?}"))?;
                ensure!(
                    old.echoes()? && old_v6.echoes()?,
                    "a connection did not survive the upgrade"
                );
                ensure!(old.lost()? == 0, "a connection lost packets in the upgrade");
                world.expect(&A_ONLY)?;
            }
            world.policy("server", &only_from("b"))?;
            ensure!(
                old.is_cut()? && old_v6.is_cut()?,
                "a carried connection survived the policy that forbids it"
            );
            Ok(())
        })?;
    }
    Ok(())
}
