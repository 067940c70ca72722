//! The CNI plugin as the agent installs it, chained after the distribution's own plugins, and taken away again.

use std::{
    fs::{self, Permissions},
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use weir::control::query::EndpointState;
use weir_tests::{
    lab::{
        Family, NetNs,
        agent::AgentOptions,
        cni::{Call, Chain, PLUGIN},
        manifests,
    },
    world::{ENFORCED, Plan, World, pod_file},
};

const NODE: &str = "node-1";
const POD: &str = "x/new";
/// Where Debian's package containernetworking-plugins has them.
const PLUGINS: &str = "/usr/lib/cni";
const LIST: &str = "10-lab.conflist";

/// x/new may speak with x/a alone.
const POLICY: &str = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: new, namespace: x}
spec:
  podSelector: {matchLabels: {pod: new}}
  policyTypes: [Egress]
  egress:
  - to:
    - podSelector: {matchLabels: {pod: a}}
";

/// A node's directories.
struct Node {
    directory: TempDir,
}

impl Node {
    fn new() -> Result<Self> {
        let node = Self {
            directory: tempfile::Builder::new().prefix("weir-cni-").tempdir()?,
        };
        fs::create_dir(node.conf())?;
        fs::create_dir(node.bin())?;
        Ok(node)
    }

    fn conf(&self) -> PathBuf {
        self.directory.path().join("net.d")
    }

    fn bin(&self) -> PathBuf {
        self.directory.path().join("bin")
    }

    fn list(&self) -> PathBuf {
        self.conf().join(LIST)
    }

    fn arguments(&self) -> Vec<String> {
        let path = |path: PathBuf| path.display().to_string();
        vec![
            "--cni-conf-dir".to_owned(),
            path(self.conf()),
            "--cni-bin-dir".to_owned(),
            path(self.bin()),
        ]
    }

    /// A list whose first plugin makes interfaces, as text that no program would format so.
    fn write(&self, plugin: &Value) -> Result<String> {
        let mut plugin = plugin.clone();
        plugin["ipam"] = json!({
            "type": "host-local",
            "dataDir": self.directory.path().join("ipam"),
            "ranges": [[{"subnet": "10.99.7.0/24"}], [{"subnet": "fd99:7::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        });
        let text = format!("{{ \"cniVersion\":\"0.4.0\",\n\t\"name\" : \"lab\", \"plugins\": [\n\t\t{plugin} ] }}\n\n");
        fs::write(self.list(), &text)?;
        Ok(text)
    }

    fn is_chained(&self) -> bool {
        let list = fs::read(self.list()).ok();
        let list: Option<Value> = list.and_then(|text| serde_json::from_slice(&text).ok());
        list.and_then(|list| {
            list["plugins"].as_array()?.last()?["type"]
                .as_str()
                .map(|last| last == PLUGIN)
        })
        .unwrap_or_default()
    }

    fn await_chained(&self) -> Result<()> {
        let deadline = Instant::now() + ENFORCED;
        while !self.is_chained() {
            ensure!(
                Instant::now() < deadline,
                "not chained: {}",
                fs::read_to_string(self.list())?
            );
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Nothing of ours is left.
    fn is_as_before(&self, text: &str) -> Result<()> {
        let left = fs::read_to_string(self.list())?;
        ensure!(left == text, "not what it was: {left}");
        let names =
            |path: &Path| -> io::Result<Vec<_>> { fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect() };
        ensure!(
            names(&self.conf())? == [LIST],
            "left in the directory: {:?}",
            names(&self.conf())?
        );
        ensure!(
            names(&self.bin())?.is_empty(),
            "left of plugins: {:?}",
            names(&self.bin())?
        );
        Ok(())
    }
}

fn world(node: &Node) -> Result<World> {
    let mut world = World::new(&Plan {
        options: AgentOptions {
            arguments: node.arguments(),
            ..AgentOptions::default()
        },
        ..Plan::one_node(&["x/a", "x/b"])
    })?;
    world.policy("policy", POLICY)?;
    let labels = manifests::labels(&[("pod", "new")]);
    let mut object = manifests::Pod {
        namespace: "x",
        name: "new",
        labels: &labels,
        service_account: "default",
        node: NODE,
        ports: &[],
        addresses: world.lab.pod("x/a")?.addresses,
        host_network: false,
    }
    .object();
    object["status"] = json!({"phase": "Pending"});
    world.manifests.object(&pod_file(POD), &object)?;
    world.enforced()?;
    Ok(world)
}

/// The first thing that a process of the pod does.
fn reaches(pod: &NetNs, to: IpAddr, patience: Duration) -> Result<bool> {
    pod.run(
        || match TcpStream::connect_timeout(&SocketAddr::new(to, 80), patience) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => Ok(false),
            Err(error) => Err(error).context("connect"),
        },
    )
}

fn chained_after(plugin: &Value) -> Result<()> {
    ensure!(
        Path::new(PLUGINS).join("ptp").exists(),
        "no plugins in {PLUGINS}: install Debian's package containernetworking-plugins (`cargo xtask setup`)"
    );
    let node = Node::new()?;
    let before = node.write(plugin)?;
    world(&node)?.check(|world| {
        // An agent that is ready has installed the plugin.
        ensure!(node.is_chained(), "not chained: {}", fs::read_to_string(node.list())?);
        let report = world
            .status(NODE)?
            .cni
            .context("the status says nothing of the plugin")?;
        ensure!(
            report.installed == Some(node.list()) && report.problems.is_empty(),
            "{report:?}"
        );

        let pod = NetNs::new()?;
        let sandbox = Call::new("ADD", &Value::Null).pod(POD, "sandbox-1", &pod.path());
        let netns = Arc::clone(&world.lab.node(NODE)?.netns);
        let chain = || Chain::read(&node.list(), &[Path::new(PLUGINS), &node.bin()], &netns);
        let added = chain()?.add(&sandbox)?;
        added.succeeded()?;
        for family in [Family::V4, Family::V6] {
            let b = world.lab.address("x/b", family)?;
            ensure!(
                !reaches(&pod, b, Duration::from_millis(300))?,
                "{family:?}: policy denies this"
            );
            let a = world.lab.address("x/a", family)?;
            ensure!(
                reaches(&pod, a, Duration::from_secs(20))?,
                "{family:?}: policy allows this"
            );
        }
        let endpoint = world
            .status(NODE)?
            .endpoints
            .into_iter()
            .find(|endpoint| endpoint.pod == "new");
        let endpoint = endpoint.context("the agent does not know the pod")?;
        ensure!(
            endpoint.state == EndpointState::Enforced && endpoint.addresses.len() == 2,
            "{endpoint:?}"
        );

        // The network's own agent writes its list again.
        node.write(plugin)?;
        node.await_chained()?;
        chain()?.del(&sandbox, &added.output)?;
        let endpoints = world.status(NODE)?.endpoints;
        ensure!(endpoints.iter().all(|endpoint| endpoint.pod != "new"), "{endpoints:?}");

        // An agent that ends leaves it, and the next one finds it.
        let agent = world.agent(NODE)?;
        agent.terminate()?;
        ensure!(node.is_chained(), "an agent that ends has taken it away");
        agent.spawn()?;
        agent.wait(ENFORCED)?;
        agent.detach()?;
        agent.await_end()?;
        ensure!(!agent.run_dir().exists(), "the run directory is left");
        node.is_as_before(&before)
    })
}

#[test]
fn chained_after_ptp() -> Result<()> {
    chained_after(&json!({"type": "ptp", "ipMasq": false, "mtu": 1400}))
}

#[test]
fn chained_after_bridge() -> Result<()> {
    chained_after(&json!({"type": "bridge", "bridge": "weir-lab0", "isGateway": true, "mtu": 1400}))
}

#[test]
fn detach_takes_the_plugin_away_without_an_agent() -> Result<()> {
    let node = Node::new()?;
    let before = node.write(&json!({"type": "ptp"}))?;
    world(&node)?.check(|world| {
        ensure!(node.is_chained(), "not chained");
        let agent = world.agent(NODE)?;
        agent.kill()?;
        let bpffs = agent.bpffs().display().to_string();
        let arguments = [
            &["detach".to_owned(), "--bpffs".to_owned(), bpffs],
            node.arguments().as_slice(),
        ]
        .concat();
        for again in [false, true] {
            let output = agent.verb(&arguments)?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(
                output.status.success(),
                "{said}{}",
                String::from_utf8_lossy(&output.stderr)
            );
            ensure!(said.contains("removed the CNI plugin") != again, "{said}");
            node.is_as_before(&before)?;
        }
        Ok(())
    })
}

/// `helm upgrade --set cni.install=false`: nothing of the plugin is left that would stop pods once Weir is gone.
#[test]
fn switched_off_it_is_taken_away_and_pods_stay_enforced() -> Result<()> {
    let node = Node::new()?;
    let before = node.write(&json!({"type": "ptp"}))?;
    world(&node)?.check(|world| {
        ensure!(node.is_chained(), "not chained");
        let agent = world.agent(NODE)?;
        agent.terminate()?;
        ensure!(node.is_chained(), "an agent that ends has taken it away");
        agent.options().arguments.push("--cni-install=false".to_owned());
        agent.spawn()?;
        agent.wait(ENFORCED)?;
        let deadline = Instant::now() + ENFORCED;
        while let Err(error) = node.is_as_before(&before) {
            ensure!(Instant::now() < deadline, "{error:#}");
            thread::sleep(Duration::from_millis(20));
        }
        let report = world
            .status(NODE)?
            .cni
            .context("the status says nothing of the plugin")?;
        ensure!(
            !report.failed && report.installed.is_none() && report.problems.is_empty(),
            "{report:?}"
        );
        let endpoints = world.status(NODE)?.endpoints;
        let enforced = endpoints
            .iter()
            .filter(|endpoint| endpoint.state == EndpointState::Enforced);
        ensure!(enforced.count() == 2, "{endpoints:?}");

        // And on again.
        let agent = world.agent(NODE)?;
        agent.terminate()?;
        agent.options().arguments.pop();
        agent.spawn()?;
        agent.wait(ENFORCED)?;
        ensure!(node.is_chained(), "not chained again");
        agent.detach()?;
        agent.await_end()?;
        node.is_as_before(&before)
    })
}

/// As from the chart: root without the capabilities that make it more than the owner of its files.
#[test]
fn directories_and_files_of_others() -> Result<()> {
    const SOMEBODY: u32 = 1234;
    let node = Node::new()?;
    let before = node.write(&json!({"type": "ptp"}))?;
    fs::set_permissions(node.list(), Permissions::from_mode(0o640))?;
    world(&node)?.check(|world| {
        ensure!(node.is_chained(), "not chained");
        let agent = world.agent(NODE)?;
        agent.kill()?;
        agent.detach()?;
        for path in [node.list(), node.bin()] {
            chown(path, Some(SOMEBODY), None)?;
        }
        let netns = NetNs::new()?;
        let detach = || -> Result<Output> {
            let mut command = Command::new("setpriv");
            command
                .arg("--bounding-set=-dac_override,-dac_read_search,-chown,-fowner,-fsetid")
                .arg(weir_tests::binary::weir()?)
                .arg("detach")
                .arg("--bpffs")
                .arg(agent.bpffs())
                .arg("--run-dir")
                .arg(agent.run_dir())
                .args(node.arguments());
            netns.command(&mut command)?;
            command.output().with_context(|| format!("run {command:?}"))
        };

        // The list is in a directory of root's, and can be replaced; the plugin is not.
        let output = detach()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success() && said.contains("DAC_OVERRIDE") && said.contains("belongs to user 1234"),
            "{said}"
        );
        ensure!(fs::read_to_string(node.list())? == before, "the entry is still there");
        let list = fs::metadata(node.list())?;
        ensure!(list.mode() & 0o7777 == 0o640 && list.uid() == 0, "{list:?}");

        chown(node.bin(), Some(0), None)?;
        let output = detach()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        node.is_as_before(&before)
    })
}

#[test]
fn what_cannot_be_read_is_told_and_left_alone() -> Result<()> {
    let node = Node::new()?;
    fs::write(node.list(), "{ \"cniVersion\": ")?;
    let plan = Plan {
        options: AgentOptions {
            arguments: node.arguments(),
            ..AgentOptions::default()
        },
        ..Plan::one_node(&["x/a"])
    };
    World::without_agents(&plan)?.check(|world| {
        let agent = weir_tests::lab::Agent::start(&world.lab, NODE, world.manifests.directory(), plan.options.clone())?;
        world.agents.insert(NODE.to_owned(), agent);
        let deadline = Instant::now() + ENFORCED;
        let report = loop {
            // No socket yet, or not tried yet.
            let report = world.status(NODE).ok().and_then(|status| status.cni);
            match report.filter(|report| report.failed) {
                Some(report) => break report,
                None => ensure!(Instant::now() < deadline, "the status says nothing of a failure"),
            }
            thread::sleep(Duration::from_millis(20));
        };
        ensure!(report.installed.is_none() && report.problems.len() == 1, "{report:?}");
        // Pods would start without the plugin: the agent is not ready, and says why.
        let error = world
            .agent(NODE)?
            .wait(Duration::from_millis(100))
            .expect_err("it is ready")
            .to_string();
        ensure!(error.contains("the CNI plugin is not installed"), "{error}");
        let shown = world.agent(NODE)?.verb(["status"])?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        ensure!(shown.contains("not chained") && shown.contains(LIST), "{shown}");
        ensure!(
            fs::read_to_string(node.list())? == "{ \"cniVersion\": ",
            "it was touched"
        );
        // Somebody mends it.
        node.write(&json!({"type": "ptp"}))?;
        node.await_chained()?;
        world.agent(NODE)?.wait(ENFORCED)
    })
}
