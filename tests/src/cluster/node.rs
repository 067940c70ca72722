//! A node: network, mount and host name namespaces with containerd, kubelet and, if asked for, kube-proxy in them.
//!
//! The node sees the machine's file system with directories of its own in place of `/run`, `/var`, `/opt`, `/etc/cni` and
//! `/sys/fs/bpf`; writes to the rest of `/etc` stay its own, too.

use std::{
    fs::{self, File},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use serde_json::{Value, json};

use super::{
    Cni, PAUSE_IMAGE, Proxy,
    binaries::Tool,
    cgroup,
    namespaces::apart,
    place::{self, Place},
    state::remove,
};
use crate::lab::netns::NetNs;

/// Where a node finds the cluster's programs and its own configuration.
const OWN: &str = "/run/weir-cluster";

/// Where Debian keeps the CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";

const BPFFS: &str = "/sys/fs/bpf";

/// One node of a cluster, by number from 1.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    pub place: &'a Place,
    pub number: usize,
}

impl Node<'_> {
    /// As Kubernetes knows it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// What of the node's file system is its own: `run`, `var`, `opt`, `cni` (its `/etc/cni`).
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.place.directory().join(self.name())
    }

    /// Makes the directories, configuration and control groups.
    ///
    /// # Errors
    /// The file system's.
    pub fn prepare(&self, cni: Cni) -> Result<()> {
        let directory = self.directory();
        for name in [
            "etc-upper",
            "etc-work",
            "cni/net.d",
            "opt/cni/bin",
            "run/weir-cluster/bin",
            "var/lib/containerd",
            "var/lib/cni",
            "var/lib/kubelet",
            "var/log/containers",
            "var/log/pods",
            "var/tmp",
        ] {
            let path = directory.join(name);
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        self.make_run()?;
        let plugins = fs::read_dir(PLUGINS)
            .with_context(|| format!("list {PLUGINS} (Debian: apt install containernetworking-plugins)"))?;
        for entry in plugins {
            let entry = entry?;
            let to = directory.join("opt/cni/bin").join(entry.file_name());
            fs::copy(entry.path(), &to).with_context(|| format!("copy to {}", to.display()))?;
        }
        let own = directory.join("run/weir-cluster");
        for (path, text) in [
            (directory.join("cni/net.d/10-weir-cluster.conflist"), self.conflist(cni)),
            (own.join("containerd.toml"), containerd()),
            (own.join("kubelet.json"), self.kubelet()),
            (own.join("resolv.conf"), format!("nameserver {}\n", place::DNS)),
        ] {
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        let keys = self.place.directory().join("keys");
        for (from, to) in [
            ("ca.crt".to_owned(), "ca.crt"),
            (format!("{}.crt", self.name()), "node.crt"),
            (format!("{}.key", self.name()), "node.key"),
            (format!("{}.conf", self.name()), "kubelet.conf"),
            ("proxy.conf".to_owned(), "proxy.conf"),
        ] {
            fs::copy(keys.join(&from), own.join(to)).with_context(|| format!("copy {from}"))?;
        }
        cgroup::make(&self.place.node_group(self.number))
    }

    /// What has to be in `/run` whenever the node starts.
    fn make_run(&self) -> Result<()> {
        for name in ["containerd", "lock", "netns"] {
            let path = self.directory().join("run").join(name);
            fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        }
        Ok(())
    }

    /// Empties what a machine has in memory: `/run`, also under its older name, except for the cluster's programs and
    /// configuration, which stand for what a machine has on its disk. The node has no processes any more.
    ///
    /// # Errors
    /// The file system's.
    pub fn forget(&self) -> Result<()> {
        let directory = self.directory();
        let own = Path::new(OWN).file_name();
        let run = directory.join("run");
        let mut gone = vec![directory.join("var/run")];
        for entry in fs::read_dir(&run).with_context(|| format!("list {}", run.display()))? {
            gone.push(entry?.path());
        }
        gone.iter()
            .filter(|path| path.file_name() != own)
            .try_for_each(|path| remove(path))?;
        self.make_run()
    }

    /// Makes the node's namespaces and starts the process that holds them.
    ///
    /// # Errors
    /// Without root; the mounts'.
    pub fn hold(&self, netns: &NetNs, binaries: &Path) -> Result<Child> {
        thread::scope(|scope| {
            scope
                .spawn(|| -> Result<Child> {
                    netns.enter().context("enter the node's network namespace")?;
                    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)
                        .context("make namespaces (root is needed)")?;
                    fs::write("/proc/sys/kernel/hostname", self.name()).context("set the node's host name")?;
                    self.mounts(binaries)?;
                    let mut command = holder();
                    apart(&mut command, cgroup::entrance(&self.place.node_group(self.number))?);
                    command.spawn().context("start the process that holds a node")
                })
                .join()
        })
        .map_err(|_| anyhow!("the thread that makes a node panicked"))?
    }

    /// The node's view of the file system, in a mount namespace just made.
    fn mounts(&self, binaries: &Path) -> Result<()> {
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .context("keep the node's mounts to itself")?;
        let directory = self.directory();
        bind(binaries, &directory.join("run/weir-cluster/bin"))?;
        let [lower, upper, work] = [
            PathBuf::from("/etc"),
            directory.join("etc-upper"),
            directory.join("etc-work"),
        ];
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        mount(
            Some("overlay"),
            "/etc",
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .context("mount the node's /etc")?;
        fs::create_dir_all("/etc/cni").context("make the node's /etc/cni")?;
        // By descriptors: one of these directories may hide the way to the others.
        let open = |name: &str| {
            let path = directory.join(name);
            File::open(&path).with_context(|| format!("open {}", path.display()))
        };
        for (source, target) in [
            (open("cni")?, "/etc/cni"),
            (open("opt")?, "/opt"),
            (open("var")?, "/var"),
            (open("run")?, "/run"),
        ] {
            bind(
                &PathBuf::from(format!("/proc/thread-self/fd/{}", source.as_raw_fd())),
                Path::new(target),
            )?;
        }
        while statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
            umount2(BPFFS, MntFlags::MNT_DETACH).context("unmount the machine's bpffs in the node")?;
        }
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).context("mount the node's bpffs")?;
        // What pods mount with propagation asks for shared mounts.
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_SHARED,
            None::<&str>,
        )
        .context("share the node's mounts with its pods")
    }

    /// The command of the container runtime, to be run in the node.
    #[must_use]
    pub fn containerd_command() -> Command {
        let mut command = Command::new("containerd");
        command.args(["--config", &format!("{OWN}/containerd.toml")]);
        command
    }

    /// The container runtime's socket, as the machine sees it.
    #[must_use]
    pub fn containerd_socket(&self) -> PathBuf {
        self.directory().join("run/containerd/containerd.sock")
    }

    #[must_use]
    pub fn kubelet_command(&self) -> Command {
        let mut command = Command::new(format!("{OWN}/bin/{}", Tool::Kubelet.name()));
        let [v4, v6] = place::node(self.number);
        command.args([
            format!("--config={OWN}/kubelet.json"),
            format!("--kubeconfig={OWN}/kubelet.conf"),
            format!("--hostname-override={}", self.name()),
            format!("--node-ip={v4},{v6}"),
            "--v=2".to_owned(),
        ]);
        command
    }

    /// None where the cluster has no kube-proxy.
    #[must_use]
    pub fn proxy_command(&self, proxy: Proxy) -> Option<Command> {
        let mode = proxy.mode()?;
        let mut command = Command::new(format!("{OWN}/bin/{}", Tool::Proxy.name()));
        command.args([
            format!("--kubeconfig={OWN}/proxy.conf"),
            format!("--proxy-mode={mode}"),
            format!("--hostname-override={}", self.name()),
            format!("--cluster-cidr={}", place::PODS),
            format!("--bind-address={}", place::node(self.number)[0]),
        ]);
        // These are settings of the machine, which a namespace cannot change.
        command.args([
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ]);
        Some(command)
    }

    fn conflist(&self, cni: Cni) -> String {
        let [v4, v6] = place::pods(self.number);
        let ipam = json!({
            "type": "host-local",
            "dataDir": "/run/cni-ipam",
            "ranges": [[{"subnet": v4}], [{"subnet": v6}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        });
        let main = match cni {
            Cni::Ptp => json!({"type": "ptp", "mtu": 1500, "ipMasq": false, "ipam": ipam}),
            Cni::Bridge => json!({
                "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "ipam": ipam,
            }),
        };
        pretty(&json!({
            // containerd 1.6 knows no later one.
            "cniVersion": "1.0.0",
            "name": "weir-cluster",
            "plugins": [main, {"type": "portmap", "capabilities": {"portMappings": true}}],
        }))
    }

    fn kubelet(&self) -> String {
        pretty(&json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": "0.0.0.0",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": format!("{OWN}/ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": format!("{OWN}/node.crt"),
            "tlsPrivateKeyFile": format!("{OWN}/node.key"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.place.node_group(self.number)),
            "cgroupsPerQOS": true,
            "enforceNodeAllocatable": [],
            "failCgroupV1": false,
            "failSwapOn": false,
            "clusterDNS": [place::DNS.to_string()],
            "clusterDomain": "cluster.local",
            "resolvConf": format!("{OWN}/resolv.conf"),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "podLogsDir": "/var/log/pods",
            // Room for tests that make many at once; the node's network has 253 addresses.
            "maxPods": 240,
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
            "nodeStatusUpdateFrequency": "5s",
            "syncFrequency": "10s",
            // The machine's disk and memory are not the node's to worry about, nor are images ever fetched again.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "imageMinimumGCAge": "24h",
            "localStorageCapacityIsolation": false,
            "makeIPTablesUtilChains": false,
        }))
    }
}

/// A process that does nothing but hold its namespaces.
#[must_use]
pub fn holder() -> Command {
    let mut command = Command::new("sleep");
    command
        .arg("infinity")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Imports an image archive into the container runtime of a node; `command` is one that runs in the node.
///
/// # Errors
/// What the runtime says.
pub fn import(archive: &Path, enter: impl FnOnce(&mut Command) -> Result<()>) -> Result<()> {
    let file = File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let mut command = Command::new("ctr");
    command
        .args(["--namespace", "k8s.io", "images", "import", "-"])
        // The node may see another file under that name, or none.
        .stdin(file);
    enter(&mut command)?;
    let output = command.output().context("start ctr (Debian: apt install containerd)")?;
    ensure!(
        output.status.success(),
        "{} cannot be imported: {}",
        archive.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn containerd() -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Lowering oom_score_adj takes CAP_SYS_RESOURCE, which containers of CI machines lack.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#
    )
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("mount {} in the node", target.display()))
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
