//! A real Kubernetes cluster out of namespaces: no Docker, no virtual machine, nothing simulated.
//!
//! etcd, kube-apiserver, controller manager and scheduler run in one network namespace; each [`node`] is a network, mount
//! and host name namespace with containerd, kubelet and CNI plugins of its own. Everything is dual-stack, with RBAC and
//! node authorization on. Without nodes it is a control plane alone, for tests of many objects.
//!
//! All processes are in control groups of the cluster's name and all files in one directory, so that a cluster can be
//! taken away whole whatever became of the process that made it. One that belongs to a process ends with it: on drop,
//! on a signal, or, after a kill, when the next cluster is made.

pub mod api;
pub mod binaries;
mod certificates;
mod cgroup;
mod control;
pub mod dns;
pub mod etcd;
pub mod forward;
pub mod images;
pub mod namespaces;
mod network;
mod node;
mod options;
pub mod place;
mod process;
mod programs;
mod reboot;
mod state;

use std::{
    net::{Ipv4Addr, TcpListener},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, ensure};

use self::{
    api::Api,
    binaries::{Binaries, Tool},
    forward::Forward,
    namespaces::Namespaces,
    network::Network,
    node::Node,
    place::Place,
    process::Processes,
    state::{State, Teardown},
};
use crate::lab::{Addresses, netns::NetNs};

pub use control::{Component, server};
pub use options::{Cni, Lifetime, Options, Proxy};
pub use programs::is_ready;

/// The image that holds a pod's namespaces: agnhost, which can do that, too.
pub const PAUSE_IMAGE: &str = "localhost/agnhost:test";
/// The image of the cluster's DNS.
pub const DNS_IMAGE: &str = "localhost/coredns:test";

/// A cluster that runs.
pub struct Cluster {
    place: Place,
    /// Changes where a node is rebooted.
    state: Mutex<State>,
    binaries: Binaries,
    api: Api,
    // In this order: nobody asks the API server any more, everything ends, its remains are collected.
    _forward: Option<Forward>,
    _teardown: Option<Teardown>,
    processes: Processes,
}

impl Cluster {
    /// Makes a cluster; returns when the API server and all nodes are ready. Removes first what dead processes left.
    ///
    /// # Errors
    /// Without root; if there is a cluster of that name; if a part does not start, with where its log is.
    pub fn up(options: &Options) -> Result<Self> {
        ensure!(
            options.nodes <= place::MOST_NODES,
            "a cluster has at most {} nodes",
            place::MOST_NODES
        );
        ensure!(
            !options.dns || (options.nodes > 0 && options.proxy != Proxy::None),
            "CoreDNS needs a node to run on and a kube-proxy for its Service"
        );
        let tools: &[Tool] = if options.nodes == 0 {
            &Tool::CONTROL_PLANE
        } else {
            &Tool::ALL
        };
        let binaries = Binaries::ensure(tools)?;
        state::remove_orphans();
        let place = match &options.name {
            Some(name) => Place::new(name)?,
            None => own_place()?,
        };
        let teardown = Teardown::new(&place)?;
        let mut made = Self::make(options, place, binaries, teardown)?;
        if let Lifetime::Machine { .. } = options.lifetime
            && let Some(teardown) = made._teardown.take()
        {
            let mut state = made.state();
            state.owner = None;
            state.save(&made.place)?;
            drop(state);
            teardown.disarm();
        }
        Ok(made)
    }

    fn make(options: &Options, place: Place, binaries: Binaries, teardown: Teardown) -> Result<Self> {
        let directory = place.directory();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on the loopback")?;
        let port = listener.local_addr().context("the port of a listener")?.port();
        control::make_keys(&directory, options.nodes, port)?;
        cgroup::make(&place.group())?;
        let processes = Processes::new(&directory.join("log"))?;
        let network = Network::new(options.nodes)?;
        let hold = |netns: &NetNs| -> Result<i32> {
            let mut command = node::holder();
            netns.command(&mut command)?;
            processes.start("holder", command, &place.group())
        };
        let mut state = State {
            owner: Some(i32::try_from(std::process::id())?),
            fabric: hold(&network.fabric)?,
            control: hold(&network.control)?,
            nodes: Vec::new(),
            proxy: options.proxy,
            api_server: options.api_server.clone(),
        };
        for (index, netns) in network.nodes.iter().enumerate() {
            let node = Node {
                place: &place,
                number: index + 1,
            };
            node.prepare(options.cni)?;
            let holder = node.hold(netns, binaries.directory())?;
            state.nodes.push(processes.adopt(holder));
        }
        state.save(&place)?;
        let forward = Self::forward(options, &place, &processes, listener, &network.control)?;
        let api = Api::new(&directory.join("kubeconfig"))?;
        let cluster = Self {
            place,
            state: Mutex::new(state),
            binaries,
            api,
            _forward: forward,
            _teardown: Some(teardown),
            processes,
        };
        let mut images = options.images.clone();
        if options.nodes > 0 {
            images.extend(images::archives(&cluster.binaries)?);
        }
        thread::scope(|scope| {
            let (cluster, images) = (&cluster, &images);
            let nodes: Vec<_> = cluster
                .numbers()
                .map(|number| scope.spawn(move || cluster.start_runtime(number, images)))
                .collect();
            for component in Component::ALL {
                cluster.start(component)?;
            }
            nodes
                .into_iter()
                .try_for_each(|node| node.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        for number in cluster.numbers() {
            cluster.start_kubelet(number)?;
        }
        cluster.await_nodes()?;
        if options.dns {
            dns::install(&cluster.api)?;
        }
        Ok(cluster)
    }

    fn forward(
        options: &Options,
        place: &Place,
        processes: &Processes,
        listener: TcpListener,
        control: &NetNs,
    ) -> Result<Option<Forward>> {
        let Lifetime::Machine { forward } = &options.lifetime else {
            let netns = NetNs::open(Path::new(&control.path()))?;
            return Forward::start(listener, netns).map(Some);
        };
        let (program, arguments) = forward.split_first().context("no program forwards to the API server")?;
        let mut command = Command::new(program);
        command.args(arguments).arg(place.name()).stdin(OwnedFd::from(listener));
        processes.start("forward", command, &place.group())?;
        Ok(None)
    }

    /// A cluster that any process has made, to be used by this one.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn attach(name: &str) -> Result<Self> {
        let place = Place::new(name)?;
        let state = State::load(&place)?
            .filter(|state| cgroup::contains(&place.group(), state.control))
            .with_context(|| format!("no cluster {name} is running: `cargo xtask cluster up` makes one"))?;
        let directory = place.directory();
        Ok(Self {
            api: Api::new(&directory.join("kubeconfig"))?,
            binaries: Binaries::ensure(&Tool::CONTROL_PLANE)?,
            processes: Processes::new(&directory.join("log"))?,
            place,
            state: Mutex::new(state),
            _forward: None,
            _teardown: None,
        })
    }

    /// Takes a cluster away, whoever made it and whatever is left of it. That there is none is fine.
    ///
    /// # Errors
    /// If something of it withstands.
    pub fn down(name: &str) -> Result<()> {
        state::destroy(&Place::new(name)?)
    }

    /// A client with all rights.
    #[must_use]
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// A kubeconfig with all rights, for programs on this machine.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.place.directory().join("kubeconfig")
    }

    /// The same for programs in the cluster's network.
    #[must_use]
    pub fn inner_kubeconfig(&self) -> PathBuf {
        control::kubeconfig(&self.place.directory(), "admin")
    }

    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Where logs, keys and the nodes' files are.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.place.directory()
    }

    /// The nodes' numbers, from 1. Kubernetes knows them as `node1`, `node2` …
    pub fn numbers(&self) -> impl Iterator<Item = usize> + use<> {
        1..=self.state().nodes.len()
    }

    /// The namespaces of a node, to run programs in.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn node(&self, number: usize) -> Result<Namespaces> {
        Namespaces::of(self.holder(number)?)
    }

    /// The root of a node's file system, as this machine sees it.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn node_root(&self, number: usize) -> Result<PathBuf> {
        Ok(Path::new("/proc").join(self.holder(number)?.to_string()).join("root"))
    }

    /// Runs a program on a node and returns what it says.
    ///
    /// # Errors
    /// If it cannot be started or fails.
    pub fn run_on(&self, number: usize, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.args(arguments);
        self.node(number)?.command(&mut command)?;
        let output = command.output().with_context(|| format!("start {program}"))?;
        ensure!(
            output.status.success(),
            "{program} {} fails on node{number}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes a host outside of the cluster that all nodes reach without translation of addresses. It stays until the
    /// cluster goes; its namespace lasts as long as the value.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn add_external(&self, addresses: Addresses) -> Result<NetNs> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let fabric = network_of(self.state().fabric)?;
        let others: Vec<NetNs> = std::iter::once(self.control_network())
            .chain(self.numbers().map(|number| self.node_network(number)))
            .collect::<Result<_>>()?;
        network::add_external(&fabric, &others, number, addresses)
    }

    /// The network namespace of a node.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn node_network(&self, number: usize) -> Result<NetNs> {
        network_of(self.holder(number)?)
    }

    /// The network namespace of the control plane.
    ///
    /// # Errors
    /// If the cluster is gone.
    pub fn control_network(&self) -> Result<NetNs> {
        network_of(self.state().control)
    }

    /// `kubectl` with all rights.
    #[must_use]
    pub fn kubectl(&self) -> Command {
        let mut command = Command::new(self.binaries.path(Tool::Kubectl));
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Gives every node an image archive.
    ///
    /// # Errors
    /// What a container runtime says.
    pub fn load(&self, archive: &Path) -> Result<()> {
        self.numbers().try_for_each(|number| self.import(number, archive))
    }

    fn import(&self, number: usize, archive: &Path) -> Result<()> {
        let namespaces = self.node(number)?;
        node::import(archive, |command| namespaces.command(command))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn member(&self, number: usize) -> Node<'_> {
        Node {
            place: &self.place,
            number,
        }
    }

    fn holder(&self, number: usize) -> Result<i32> {
        let index = number.checked_sub(1).context("nodes count from 1")?;
        let state = self.state();
        let holders = &state.nodes;
        let pid = *holders
            .get(index)
            .with_context(|| format!("the cluster has {} nodes, no node{number}", holders.len()))?;
        // Another process may have that number by now.
        ensure!(
            cgroup::contains(&self.place.group(), pid),
            "the cluster {} has ended",
            self.place.name()
        );
        Ok(pid)
    }
}

/// Forwards the connections of the listener that is this process's standard input to the API server of a cluster, until
/// the process is killed: what [`Lifetime::Machine`] needs a program for.
///
/// # Errors
/// If there is no such cluster, or standard input is no listener.
pub fn forward_from_standard_input(name: &str) -> Result<()> {
    let place = Place::new(name)?;
    let state = State::load(&place)?.with_context(|| format!("there is no cluster {name}"))?;
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let listener = TcpListener::from(input.context("take standard input for a listener")?);
    forward::forward(&listener, &network_of(state.control)?)
}

fn own_place() -> Result<Place> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    Place::new(&format!(
        "{}-{}",
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    ))
}

fn network_of(pid: i32) -> Result<NetNs> {
    NetNs::open(&Path::new("/proc").join(pid.to_string()).join("ns/net"))
}
