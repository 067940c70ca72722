//! A pod's first packet is judged by its policies: the CNI plugin as a process, against real agents.

use std::{fs, path::Path, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir::control::query::{EndpointReport, EndpointState};
use weir_tests::{
    lab::{
        Family, Layout, NetNs, PodPlan,
        agent::{AgentOptions, Attach},
        cni::{self, Answer, Call},
        manifests,
        probe::{Protocol, Verdict},
    },
    world::{ENFORCED, PORTS, Plan, World, pod_file},
};

const NODE: &str = "node-1";
/// The pod that starts.
const POD: &str = "x/new";

/// x/new takes connections from x/a alone, and opens none.
const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: new, namespace: x}
spec:
  podSelector: {matchLabels: {pod: new}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {matchLabels: {pod: a}}
";

const JUDGED: [(&str, &str, u16, Verdict); 4] = [
    ("x/a", POD, 80, Verdict::Allow),
    ("x/b", POD, 80, Verdict::Deny),
    (POD, "x/a", 80, Verdict::Deny),
    ("x/a", "x/b", 80, Verdict::Allow),
];

/// An agent that enforces the policy, and no x/new yet.
fn world(layout: Layout) -> Result<World> {
    let mut world = World::new(&Plan {
        layout,
        ..Plan::one_node(&["x/a", "x/b"])
    })?;
    world.policy("policy", POLICY)?;
    Ok(world)
}

/// What the plugins before ours make for x/new: its interface, but no word to any agent.
fn link(world: &mut World) -> Result<()> {
    world.lab.add_pods(&[PodPlan::new(POD, NODE)])?;
    world.servers.serve(POD, world.lab.host(POD)?.0, &PORTS)
}

/// What the API server knows of x/new before the kubelet has told of its status: no addresses.
fn pending(world: &World) -> Result<Value> {
    let labels = manifests::labels(&[("pod", "new")]);
    let mut object = manifests::Pod {
        namespace: "x",
        name: "new",
        labels: &labels,
        service_account: "default",
        node: NODE,
        ports: &[],
        addresses: world.lab.pod(POD)?.addresses,
        host_network: false,
    }
    .object();
    object["status"] = json!({"phase": "Pending"});
    Ok(object)
}

fn write(world: &World, object: &Value) -> Result<()> {
    world.manifests.object(&pod_file(POD), object)
}

fn run_dir(world: &mut World) -> Result<std::path::PathBuf> {
    Ok(world.agent(NODE)?.run_dir().to_owned())
}

/// A call about x/new.
fn call(world: &mut World, command: &str, version: &str) -> Result<Call> {
    let run_dir = run_dir(world)?;
    let pod = world.lab.pod(POD)?;
    let configuration = cni::configuration(version, &run_dir, Some(&cni::result(version, pod)));
    Ok(Call::new(command, &configuration)
        .pod(POD, "sandbox-1", &pod.netns.path())
        .on(&world.lab.node(NODE)?.netns))
}

fn edit(call: &mut Call, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut configuration: Value = serde_json::from_slice(&call.input)?;
    change(&mut configuration);
    call.input = configuration.to_string().into_bytes();
    Ok(())
}

fn add(world: &mut World) -> Result<Answer> {
    call(world, "ADD", "1.0.0")?.run()
}

fn endpoint(world: &World) -> Result<Option<EndpointReport>> {
    let report = world.status(NODE)?;
    Ok(report
        .endpoints
        .into_iter()
        .find(|endpoint| endpoint.pod == "new" && endpoint.namespace == "x"))
}

fn enforced(world: &World) -> Result<EndpointReport> {
    let endpoint = endpoint(world)?.context("the agent does not know the pod")?;
    ensure!(endpoint.state == EndpointState::Enforced, "{endpoint:?}");
    Ok(endpoint)
}

/// Waits for the endpoint to go.
fn gone(world: &World) -> Result<()> {
    for _ in 0..600 {
        if endpoint(world)?.is_none() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    anyhow::bail!("it stays: {:?}", endpoint(world)?)
}

fn a_pod_is_judged_from_its_first_packet(layout: Layout) -> Result<()> {
    world(layout)?.check(|world| {
        link(world)?;
        write(world, &pending(world)?)?;
        world.enforced()?;
        ensure!(endpoint(world)?.is_none(), "a pod without an address has an endpoint");
        let call = call(world, "ADD", "1.0.0")?;
        let answer = call.run()?;
        answer.succeeded()?;
        let result = cni::result("1.0.0", world.lab.pod(POD)?);
        ensure!(answer.output == result, "the result was changed: {}", answer.output);
        // From here on processes of the pod may run.
        let first = enforced(world)?;
        world.expect(&JUDGED)?;
        let interface = &world.lab.pod(POD)?.interface;
        ensure!(first.interface.as_ref() == Some(interface), "{first:?}");

        // The kubelet tells of the address, and a late message that there is none: nothing changes.
        let mut running = pending(world)?;
        let addresses = world.lab.pod(POD)?.addresses;
        running["status"] = json!({
            "phase": "Running",
            "podIPs": addresses.iter().map(|address| json!({"ip": address.to_string()})).collect::<Vec<_>>(),
        });
        for object in [&running, &pending(world)?, &running, &pending(world)?] {
            write(world, object)?;
            world.enforced()?;
            let now = enforced(world)?;
            ensure!((now.id, now.epoch) == (first.id, first.epoch), "{now:?}, not {first:?}");
        }
        // The same again (a runtime that lost the answer), and what the plugin says of it later.
        call.run()?.succeeded()?;
        let mut check = call.clone();
        check.set("CNI_COMMAND", "CHECK");
        check.run()?.succeeded()?;
        world.expect(&JUDGED)?;

        let mut del = call;
        del.set("CNI_COMMAND", "DEL");
        for _ in 0..2 {
            let answer = del.run()?;
            answer.succeeded()?;
            ensure!(answer.output == Value::Null, "DEL says {}", answer.output);
        }
        ensure!(endpoint(world)?.is_none(), "still there: {:?}", endpoint(world)?);
        check.run()?.failed(11)
    })
}

#[test]
fn first_packet_routed() -> Result<()> {
    a_pod_is_judged_from_its_first_packet(Layout::Routed)
}

#[test]
fn first_packet_point_to_point() -> Result<()> {
    a_pod_is_judged_from_its_first_packet(Layout::PointToPoint)
}

#[test]
fn first_packet_bridge() -> Result<()> {
    a_pod_is_judged_from_its_first_packet(Layout::Bridge)
}

#[test]
fn first_packet_branch() -> Result<()> {
    a_pod_is_judged_from_its_first_packet(Layout::Branch)
}

#[test]
fn a_pod_that_the_source_has_not_told_of_is_waited_for() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        let mut short = call(world, "ADD", "1.0.0")?;
        edit(&mut short, |configuration| configuration["waitSeconds"] = json!(0.3))?;
        let answer = short.run()?;
        answer.failed(11)?;
        ensure!(
            answer.output["details"].as_str().is_some_and(|text| text.contains(POD)),
            "{answer:?}"
        );
        ensure!(
            answer.took >= Duration::from_millis(200),
            "it did not wait: {:?}",
            answer.took
        );

        let mut waiting = call(world, "ADD", "1.0.0")?.start()?;
        thread::sleep(Duration::from_millis(300));
        ensure!(!waiting.has_ended()?, "it did not wait: {:?}", waiting.end()?);
        write(world, &pending(world)?)?;
        waiting.end()?.succeeded()?;
        enforced(world)?;
        world.expect(&JUDGED)
    })
}

#[test]
fn another_pod_of_the_same_name_is_not_taken_for_it() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        let uid = |digit: char| format!("{0}-1111-4111-8111-111111111111", digit.to_string().repeat(8));
        let object = |world: &World, uid: &str, label: &str| -> Result<Value> {
            let mut object = pending(world)?;
            object["metadata"]["uid"] = json!(uid);
            object["metadata"]["labels"] = json!({"pod": label});
            Ok(object)
        };
        // The one before, which no policy selects.
        write(world, &object(world, &uid('a'), "old")?)?;
        world.enforced()?;
        let mut new = call(world, "ADD", "1.0.0")?;
        new.set(
            "CNI_ARGS",
            &format!("K8S_POD_NAMESPACE=x;K8S_POD_NAME=new;K8S_POD_UID={}", uid('b')),
        );
        let mut waiting = new.start()?;
        thread::sleep(Duration::from_millis(300));
        ensure!(
            !waiting.has_ended()?,
            "the pod before was taken for it: {:?}",
            waiting.end()?
        );
        write(world, &object(world, &uid('b'), "new")?)?;
        waiting.end()?.succeeded()?;
        world.expect(&JUDGED)
    })
}

#[test]
fn without_an_agent_a_pod_waits_then_fails_but_for_exempt_namespaces() -> Result<()> {
    World::without_agents(&Plan::one_node(&["x/a", "x/b"]))?.check(|world| {
        world.manifests.text("policy", POLICY)?;
        link(world)?;
        write(world, &pending(world)?)?;
        world.start_agents()?;
        world.agent(NODE)?.terminate()?;

        let mut short = call(world, "ADD", "1.0.0")?;
        edit(&mut short, |configuration| configuration["waitSeconds"] = json!(0.3))?;
        let answer = short.run()?;
        answer.failed(11)?;
        ensure!(
            answer.took >= Duration::from_millis(250),
            "it did not wait: {:?}",
            answer.took
        );
        // The socket of an agent that has ended is there still; without a run directory there is not even that.
        edit(&mut short, |configuration| {
            configuration["runDir"] = json!("/nowhere/weir")
        })?;
        short.run()?.failed(11)?;

        // kube-system by default; nobody where the list is empty.
        let mut exempt = call(world, "ADD", "1.0.0")?;
        exempt.set("CNI_ARGS", "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=new");
        let answer = exempt.run()?;
        answer.succeeded()?;
        ensure!(
            answer.output["ips"].is_array() && answer.notes.contains("exempt"),
            "{answer:?}"
        );
        edit(&mut exempt, |configuration| {
            configuration["exemptNamespaces"] = json!([]);
            configuration["waitSeconds"] = json!(0.1);
        })?;
        exempt.run()?.failed(11)?;
        edit(&mut short, |configuration| {
            configuration["exemptNamespaces"] = json!(["x"])
        })?;
        short.run()?.succeeded()?;
        // What needs no agent needs none.
        let mut del = short.clone();
        del.set("CNI_COMMAND", "DEL");
        del.run()?.succeeded()?;

        // An agent that comes while the plugin waits.
        let mut waiting = call(world, "ADD", "1.0.0")?.start()?;
        thread::sleep(Duration::from_millis(300));
        ensure!(!waiting.has_ended()?, "it did not wait: {:?}", waiting.end()?);
        world.agent(NODE)?.spawn()?;
        waiting.end()?.succeeded()?;
        enforced(world)?;
        world.expect(&JUDGED)
    })
}

#[test]
fn an_exempt_pod_that_started_without_an_agent_is_taken_over() -> Result<()> {
    world(Layout::PointToPoint)?.check(|world| {
        world.agent(NODE)?.terminate()?;
        link(world)?;
        let mut exempt = call(world, "ADD", "1.0.0")?;
        edit(&mut exempt, |configuration| {
            configuration["exemptNamespaces"] = json!(["x"])
        })?;
        exempt.run()?.succeeded()?;
        let verdict = world.verdict("x/b", POD, Family::V4, Protocol::Tcp, 80)?;
        ensure!(verdict == Verdict::Allow, "nobody enforces, and yet: {verdict}");
        let mut running = pending(world)?;
        let addresses = world.lab.pod(POD)?.addresses;
        running["status"]["podIPs"] = addresses
            .iter()
            .map(|address| json!({"ip": address.to_string()}))
            .collect();
        write(world, &running)?;
        let agent = world.agent(NODE)?;
        agent.spawn()?;
        agent.wait(ENFORCED)?;
        enforced(world)?;
        world.expect(&JUDGED)
    })
}

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

#[test]
fn every_version_speaks_its_own_commands() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        write(world, &pending(world)?)?;
        world.enforced()?;
        for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
            let add = call(world, "ADD", version)?;
            let answer = add.run()?;
            answer.succeeded().with_context(|| version.to_owned())?;
            let result = cni::result(version, world.lab.pod(POD)?);
            ensure!(answer.output == result, "{version}: {}", answer.output);
            for (command, first) in [("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")] {
                let mut call = add.clone();
                call.set("CNI_COMMAND", command);
                let answer = call.run()?;
                if version >= first {
                    answer.succeeded().with_context(|| format!("{version} {command}"))?;
                    ensure!(answer.output == Value::Null, "{command} says {}", answer.output);
                } else {
                    answer.failed(1).with_context(|| format!("{version} {command}"))?;
                    ensure!(answer.output["cniVersion"] == version, "{}", answer.output);
                }
            }
            let mut del = add;
            del.set("CNI_COMMAND", "DEL");
            del.run()?.succeeded()?;
        }
        // A result in another version than the configuration's is given on in the configuration's.
        let mut call = call(world, "ADD", "1.0.0")?;
        edit(&mut call, |configuration| {
            configuration["prevResult"]["cniVersion"] = json!("0.4.0")
        })?;
        let answer = call.run()?;
        answer.succeeded()?;
        ensure!(answer.output["cniVersion"] == "1.0.0", "{}", answer.output);
        Ok(())
    })
}

#[test]
fn status_says_whether_pods_can_be_attached() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        let run_dir = run_dir(world)?;
        let mut configuration = cni::configuration("1.1.0", &run_dir, None);
        configuration["waitSeconds"] = json!(1);
        let status = Call::new("STATUS", &configuration);
        status.run()?.succeeded()?;
        world.agent(NODE)?.terminate()?;
        status.run()?.failed(50)?;
        // The kubelet would take a node that fails STATUS for not ready, and its pods too.
        configuration["statusNeedsAgent"] = json!(false);
        Call::new("STATUS", &configuration).run()?.succeeded()
    })
}

#[test]
fn an_interface_without_a_side_on_the_host_is_refused() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        write(world, &pending(world)?)?;
        world.enforced()?;
        let netns = Arc::clone(&world.lab.pod(POD)?.netns);
        let mut batch = weir_tests::lab::ip::Batch::default();
        batch.add("link add other0 type bridge");
        batch.run(&netns)?;
        let with_result = |world: &mut World, host: Value| -> Result<Answer> {
            let mut call = call(world, "ADD", "1.0.0")?;
            call.set("CNI_IFNAME", "other0");
            edit(&mut call, |configuration| {
                configuration["prevResult"]["interfaces"] = host;
                configuration["prevResult"]["ips"] = json!([{"address": "10.244.1.10/32"}]);
            })?;
            call.run()
        };
        let answer = with_result(world, json!([]))?;
        answer.failed(100)?;
        ensure!(
            answer.output["details"]
                .as_str()
                .is_some_and(|text| text.contains("bridge")),
            "{answer:?}"
        );
        // Where the result names one interface on the host that can be a pod's, it is that.
        let interface = world.lab.pod(POD)?.interface.clone();
        with_result(world, json!([{"name": interface}, {"name": "other0", "sandbox": "/p"}]))?.succeeded()?;
        ensure!(enforced(world)?.interface == Some(interface), "{:?}", endpoint(world)?);
        Ok(())
    })
}

#[test]
fn an_agent_elsewhere_is_told_from_one_of_this_node() -> Result<()> {
    world(Layout::Routed)?.check(|world| {
        link(world)?;
        write(world, &pending(world)?)?;
        world.enforced()?;
        // The runtime runs in another network namespace than the agent, with an interface of the same number.
        let elsewhere = Arc::new(NetNs::new()?);
        let pod = NetNs::new()?;
        let mut batch = weir_tests::lab::ip::Batch::default();
        batch.add(format!("link add veth0 type veth peer name eth0 netns {}", pod.path()));
        batch.run(&elsewhere)?;
        let mut call = call(world, "ADD", "1.0.0")?.on(&elsewhere);
        call.set("CNI_NETNS", &pod.path());
        let answer = call.run()?;
        answer.failed(100)?;
        ensure!(
            answer.output["msg"]
                .as_str()
                .is_some_and(|text| text.contains("network namespace")),
            "{answer:?}"
        );
        Ok(())
    })
}

/// No agent, no root needed: what can be wrong with a call.
#[test]
fn what_a_runtime_does_wrong_is_said_in_the_protocol() -> Result<()> {
    let nowhere = Path::new("/nowhere/weir");
    let result = json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.1/32"}]});
    let configuration = cni::configuration("1.0.0", nowhere, Some(&result));
    let good = Call::new("ADD", &configuration).pod("x/a", "c", "/proc/self/ns/net");
    let failed = |code: u64, change: &dyn Fn(&mut Call)| -> Result<()> {
        let mut call = good.clone();
        change(&mut call);
        call.run()?
            .failed(code)
            .with_context(|| format!("{:?} {}", call.variables, String::from_utf8_lossy(&call.input)))
    };
    for input in ["", "{", "[]", "null", "\u{0}", r#"{"cniVersion":1}"#] {
        failed(6, &|call| call.input = input.into())?;
    }
    failed(6, &|call| call.input = vec![0xff; 1 << 16])?;
    failed(6, &|call| call.input = "[".repeat(100_000).into())?;
    for version in ["0.1.0", "0.2.0", "9.9.9", ""] {
        failed(1, &|call| {
            call.input = cni::configuration(version, nowhere, Some(&result)).to_string().into();
        })?;
    }
    failed(7, &|call| {
        call.input = cni::configuration("1.0.0", nowhere, None).to_string().into()
    })?;
    failed(7, &|call| {
        call.input = cni::configuration("1.0.0", nowhere, Some(&json!({})))
            .to_string()
            .into();
    })?;
    failed(7, &|call| {
        call.input = cni::configuration("1.0.0", Path::new("run"), Some(&result))
            .to_string()
            .into();
    })?;
    for (name, value) in [
        ("CNI_COMMAND", "add"),
        ("CNI_COMMAND", "DELETE"),
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "../../etc/passwd"),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", "a/b"),
        ("CNI_NETNS", ""),
        ("CNI_ARGS", "K8S_POD_NAME=a"),
        ("CNI_ARGS", "=;x"),
    ] {
        failed(4, &|call| call.set(name, value))?;
    }
    // The host's own namespace, a file that is none, one that is not there.
    failed(8, &|_| {})?;
    failed(8, &|call| call.set("CNI_NETNS", "/dev/null"))?;
    failed(8, &|call| call.set("CNI_NETNS", "/nowhere"))?;

    // A container that is no pod's is none of ours: given through, agent or not.
    let mut container = good.clone();
    container.set("CNI_ARGS", "");
    let answer = container.run()?;
    answer.succeeded()?;
    ensure!(answer.output == result, "{}", answer.output);

    let version = |input: &str| -> Result<Value> {
        let mut call = Call::new("VERSION", &Value::Null);
        call.input = input.into();
        let answer = call.run()?;
        answer.succeeded()?;
        Ok(answer.output)
    };
    let supported = json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]);
    for (input, said) in [(r#"{"cniVersion":"0.4.0"}"#, "0.4.0"), ("", "1.1.0"), ("{", "1.1.0")] {
        ensure!(
            version(input)? == json!({"cniVersion": said, "supportedVersions": supported}),
            "{input}: {}",
            version(input)?
        );
    }
    // Somebody who looks what this is.
    let mut nobody = Call::new("", &Value::Null);
    nobody.variables.clear();
    let answer = nobody.run()?;
    answer.succeeded()?;
    ensure!(
        answer.notes.contains("1.1.0") && answer.output == Value::Null,
        "{answer:?}"
    );
    Ok(())
}
