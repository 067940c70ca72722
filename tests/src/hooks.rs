//! What hangs on a pod's interface, and how others take it away or put something beside it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use aya::{
    Ebpf,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc},
};

use crate::{
    kernel,
    lab::{NetNs, agent::Attach},
    world::World,
};

/// Runs `tc` in a network namespace.
///
/// # Errors
/// If it fails.
pub fn tc(netns: &NetNs, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("tc");
    command.args(arguments);
    netns.command(&mut command)?;
    let output = command.output().context("run tc")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tc {}: {said}", arguments.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Hooks of a pod's interface that have TCX programs, whosever, and such that have filters of Weir.
///
/// # Errors
/// If there is no such pod.
pub fn count(world: &World, pod: &str) -> Result<(usize, usize)> {
    let link = world.lab.pod(pod)?;
    let netns = &world.lab.node(&link.node)?.netns;
    let tcx = netns.run(|| {
        let hooks = [TcAttachType::Ingress, TcAttachType::Egress].into_iter();
        let programs =
            |hook| SchedClassifier::query_tcx(&link.interface, hook).map_or(0, |(_, programs)| programs.len());
        Ok(hooks.map(programs).filter(|programs| *programs > 0).count())
    })?;
    let mut filters = 0;
    for hook in ["ingress", "egress"] {
        let shown = tc(netns, &["filter", "show", "dev", &link.interface, hook])?;
        filters += usize::from(shown.contains("weir_"));
    }
    Ok((tcx, filters))
}

/// Removes the clsact qdisc of a pod's interface, with all that hangs on it.
///
/// # Errors
/// If there is none.
pub fn remove_qdisc(world: &World, pod: &str) -> Result<()> {
    let link = world.lab.pod(pod)?;
    let netns = &world.lab.node(&link.node)?.netns;
    tc(netns, &["qdisc", "del", "dev", &link.interface, "clsact"]).map(drop)
}

/// Detaches both links of a pod's interface.
///
/// # Errors
/// If it has none.
pub fn detach_links(world: &World, pod: &str) -> Result<()> {
    let link = world.lab.pod(pod)?;
    let ifindex = world
        .lab
        .node(&link.node)?
        .netns
        .run(|| Ok(nix::net::if_::if_nametoindex(link.interface.as_str())?))?;
    let agent = world.agents.get(&link.node).context("the pod's node has no agent")?;
    for side in ["from", "to"] {
        kernel::detach_link(&agent.bpffs().join(format!("links/{ifindex}-{side}")))?;
    }
    Ok(())
}

/// Puts somebody else's program beside Weir's where the pod sends. It lets everything pass, and of a link it goes when it is
/// dropped.
///
/// # Errors
/// The kernel's.
pub fn foreign(world: &World, pod: &str, attach: Attach) -> Result<Ebpf> {
    let link = world.lab.pod(pod)?;
    world.lab.node(&link.node)?.netns.run(|| {
        // The same object serves: without endpoints it lets everything pass.
        let mut object = Ebpf::load(weir::object::BYTES)?;
        let program: &mut SchedClassifier = object.program_mut("weir_from_pod").context("program")?.try_into()?;
        program.load()?;
        let options = match attach {
            Attach::Tcx => tc::TcAttachOptions::TcxOrder(LinkOrder::default()),
            Attach::Tc => tc::TcAttachOptions::Netlink(tc::NlOptions {
                priority: 77,
                ..tc::NlOptions::default()
            }),
        };
        program.attach_with_options(&link.interface, TcAttachType::Ingress, options)?;
        Ok(object)
    })
}
