//! What runtimes say to the plugin, right and wrong, and what it answers.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::{
    lab::{
        Layout, NetNs,
        cni::{self, Answer, Call},
        ip::Batch,
    },
    world::World,
};

use super::{NODE, POD, call, edit, endpoint, enforced, link, pending, run_dir, world, write};

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
        let mut batch = Batch::default();
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
        let mut batch = Batch::default();
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
