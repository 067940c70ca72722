//! How long an attachment lasts, whoever forgets to tell of its end.

use std::{fs, sync::Arc};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weir_tests::{
    lab::{
        Layout,
        agent::{AgentOptions, Attach},
        cni::{self, Call},
    },
    world::{ENFORCED, Plan, World, pod_file},
};

use super::{
    JUDGED, NODE, POD, POLICY, add, call, edit, endpoint, enforced, gone, link, pending, run_dir, world, write,
};

/// The status of a pod that has just been attached names no address. An agent that starts then must know it anyhow.
fn an_attached_pod_outlives_its_agent(attach: Attach, kill: bool) -> Result<()> {
    let plan = Plan {
        options: AgentOptions {
            attach,
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
        let first = enforced(world)?;
        for _ in 0..2 {
            let agent = world.agent(NODE)?;
            if kill {
                agent.kill()?;
            } else {
                agent.terminate()?;
            }
            world.expect(&JUDGED)?;
            let agent = world.agent(NODE)?;
            agent.spawn()?;
            agent.wait(ENFORCED)?;
            let now = enforced(world)?;
            ensure!(now.id == first.id, "{now:?}, not {first:?}");
            world.expect(&JUDGED)?;
        }
        let mut del = call(world, "DEL", "1.0.0")?;
        // DEL comes with the result where there is one, and without it where the runtime has lost it.
        edit(&mut del, |configuration| {
            configuration.as_object_mut().map(|fields| fields.remove("prevResult"));
        })?;
        del.run()?.succeeded()?;
        ensure!(endpoint(world)?.is_none(), "still there: {:?}", endpoint(world)?);
        let agent = world.agent(NODE)?;
        agent.terminate()?;
        agent.spawn()?;
        agent.wait(ENFORCED)?;
        ensure!(endpoint(world)?.is_none(), "there again: {:?}", endpoint(world)?);
        Ok(())
    })
}

#[test]
fn an_attached_pod_outlives_its_agent_tcx() -> Result<()> {
    an_attached_pod_outlives_its_agent(Attach::Tcx, true)
}

#[test]
fn an_attached_pod_outlives_its_agent_tc() -> Result<()> {
    an_attached_pod_outlives_its_agent(Attach::Tc, false)
}

#[test]
fn an_attachment_whose_end_nobody_told_goes_with_its_interface_or_its_pod() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        write(world, &pending(world)?)?;
        world.enforced()?;
        add(world)?.succeeded()?;
        world.servers.stop(POD);
        world.lab.remove_pod(POD)?;
        gone(world)?;

        // While no agent runs.
        link(world)?;
        add(world)?.succeeded()?;
        enforced(world)?;
        world.agent(NODE)?.terminate()?;
        world.servers.stop(POD);
        world.lab.remove_pod(POD)?;
        let agent = world.agent(NODE)?;
        agent.spawn()?;
        agent.wait(ENFORCED)?;
        gone(world)?;
        let kept = fs::read_dir(world.agent(NODE)?.run_dir().join("attachments"))?.count();
        ensure!(kept == 0, "{kept} attachments are kept");

        // The pod goes, the interface stays.
        link(world)?;
        add(world)?.succeeded()?;
        enforced(world)?;
        world.manifests.remove(&pod_file(POD))?;
        world.enforced()?;
        gone(world)?;
        let kept = fs::read_dir(world.agent(NODE)?.run_dir().join("attachments"))?.count();
        ensure!(kept == 0, "{kept} attachments are kept");
        Ok(())
    })
}

#[test]
fn a_new_sandbox_of_a_pod_takes_the_place_of_the_one_before() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        write(world, &pending(world)?)?;
        world.enforced()?;
        let mut late_del = call(world, "DEL", "1.0.0")?;
        late_del.set("CNI_CONTAINERID", "sandbox-0");
        let mut first = call(world, "ADD", "1.0.0")?;
        first.set("CNI_CONTAINERID", "sandbox-0");
        first.run()?.succeeded()?;
        let before = enforced(world)?;
        // The sandbox died; its interface with it, before anybody says so.
        world.servers.stop(POD);
        world.lab.remove_pod(POD)?;
        link(world)?;
        add(world)?.succeeded()?;
        let after = enforced(world)?;
        ensure!(after.ifindex != before.ifindex, "{after:?}");
        ensure!(
            after.interface.as_ref() == Some(&world.lab.pod(POD)?.interface),
            "{after:?}"
        );
        world.expect(&JUDGED)?;
        // The kubelet cleans up after the old one when it likes.
        late_del.run()?.succeeded()?;
        ensure!(enforced(world)?.id == after.id, "a late DEL took the new one");
        world.expect(&JUDGED)
    })
}

#[test]
fn gc_takes_what_is_not_valid_of_its_own_network() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        write(world, &pending(world)?)?;
        world.enforced()?;
        add(world)?.succeeded()?;
        let run_dir = run_dir(world)?;
        let node = Arc::clone(&world.lab.node(NODE)?.netns);
        let gc = |change: &dyn Fn(&mut Value)| -> Result<()> {
            let mut configuration = cni::configuration("1.1.0", &run_dir, None);
            change(&mut configuration);
            Call::new("GC", &configuration).on(&node).run()?.succeeded()
        };
        let ours = json!([{"containerID": "sandbox-1", "ifname": "eth0"}]);
        gc(&|configuration| configuration["cni.dev/valid-attachments"] = ours.clone())?;
        enforced(world)?;
        gc(&|configuration| {
            configuration["cni.dev/valid-attachments"] = json!([]);
            configuration["name"] = json!("another");
        })?;
        enforced(world)?;
        // A runtime that does not say which are valid says nothing.
        gc(&|_| {})?;
        enforced(world)?;
        gc(&|configuration| configuration["cni.dev/valid-attachments"] = json!([]))?;
        ensure!(endpoint(world)?.is_none(), "still there: {:?}", endpoint(world)?);
        Ok(())
    })
}
