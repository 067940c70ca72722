//! A node, the datapath on one of its pods' interfaces, and packets through it.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use weir::{
    datapath::{AttachMode, Datapath, Inherited, InterfaceBinding, Options, Report, detach_all},
    policy::plan::{EndpointPolicy, Op},
};
use weir_common::{
    Direction,
    policy::{Decision, DirectionPolicy, Row, Slot},
    reason::Reason,
};
use weir_tests::lab::{Families, Family, Lab, Layout, NetNs, PodPlan};
pub const POD: &str = "x/a";
pub const PEER: &str = "x/b";
pub const PORT: u16 = 4242;
/// How long a packet may take where it must arrive, and how long one is waited for that must not.
pub const PATIENCE: Duration = Duration::from_secs(5);
pub const SILENCE: Duration = Duration::from_millis(100);

/// A node with two pods, of which the first gets an interface of ours.
pub struct Machine {
    pub lab: Lab,
    pub node: Arc<NetNs>,
    pub ifindex: u32,
    pub interface: String,
    pub address: IpAddr,
}

impl Machine {
    pub fn new() -> Result<Self> {
        let mut lab = Lab::new(Families::V4)?;
        lab.add_node("one", Layout::Routed)?;
        lab.add_pods(&[PodPlan::new(POD, "one"), PodPlan::new(PEER, "one")])?;
        let node = Arc::clone(&lab.node("one")?.netns);
        let interface = lab.pod(POD)?.interface.clone();
        let ifindex = node.run(|| Ok(nix::net::if_::if_nametoindex(interface.as_str())?))?;
        let address = lab.address(POD, Family::V4)?;
        Ok(Self {
            lab,
            node,
            ifindex,
            interface,
            address,
        })
    }

    pub fn options(&self, attach: AttachMode) -> Options {
        Options {
            attach,
            connections: 4_096,
            unconfirmed: 1_024,
            ..Options::new(self.bpffs(), self.run_dir())
        }
    }

    pub fn bpffs(&self) -> PathBuf {
        self.lab.scratch().bpffs().join("weir")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.lab.directory().join("run")
    }

    /// Starts as an agent in the node's namespace would.
    pub fn start(&self, attach: AttachMode) -> Result<(Datapath, Inherited)> {
        self.start_with(self.options(attach))
    }

    pub fn start_with(&self, options: Options) -> Result<(Datapath, Inherited)> {
        self.node.run(|| Ok(Datapath::start(options)?))
    }

    /// Binds the pod to its interface, gives it a policy and attaches it.
    pub fn enforce(&self, datapath: &mut Datapath, id: u32, allow: bool) -> Result<()> {
        self.node.run(|| {
            datapath.set_interface(self.binding(id))?;
            datapath.execute(&[policy(id, allow)])?;
            datapath.attach(id)?;
            Ok(())
        })
    }

    /// The same for a pod that its runtime waits with.
    pub fn enforce_at_once(&self, datapath: &mut Datapath, id: u32, allow: bool) -> Result<()> {
        self.node.run(|| {
            datapath.set_interface(self.binding(id))?;
            datapath.execute(&[policy(id, allow)])?;
            datapath.attach_at_once(id)?;
            Ok(())
        })
    }

    pub fn binding(&self, id: u32) -> InterfaceBinding {
        InterfaceBinding {
            id,
            ifindex: self.ifindex,
            name: self.interface.clone(),
            addresses: vec![self.address],
            ..InterfaceBinding::default()
        }
    }

    pub fn finish(&self, datapath: &mut Datapath) -> Result<()> {
        self.node.run(|| Ok(datapath.finish_first_sync()?))
    }

    pub fn detach(&self) -> Result<Report> {
        self.node.run(|| Ok(detach_all(&self.bpffs(), &self.run_dir())?))
    }

    pub fn socket(&self, pod: &str) -> Result<UdpSocket> {
        let address = self.lab.address(pod, Family::V4)?;
        self.lab
            .pod(pod)?
            .netns
            .run(|| Ok(UdpSocket::bind(SocketAddr::new(address, 0))?))
    }

    pub fn wire(&self) -> Result<Wire> {
        let address = self.lab.address(PEER, Family::V4)?;
        let receiver = self
            .lab
            .pod(PEER)?
            .netns
            .run(|| Ok(UdpSocket::bind(SocketAddr::new(address, PORT))?))?;
        Ok(Wire {
            sender: self.socket(POD)?,
            receiver,
            to: SocketAddr::new(address, PORT),
        })
    }

    /// What `tc` says in the node's namespace.
    pub fn tc(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tc");
        command.args(arguments);
        self.node.command(&mut command)?;
        Ok(String::from_utf8_lossy(&command.output()?.stdout).into_owned())
    }

    pub fn has_clsact(&self) -> Result<bool> {
        Ok(self.tc(&["qdisc", "show", "dev", &self.interface])?.contains("clsact"))
    }

    /// Names of the programs on the interface: of TCX links, and of clsact filters as `tc` shows them.
    pub fn programs(&self) -> Result<(Vec<String>, Vec<String>)> {
        let tcx = self.node.run(|| {
            let mut names = Vec::new();
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                let (_, programs) = SchedClassifier::query_tcx(&self.interface, hook)?;
                names.extend(
                    programs
                        .iter()
                        .filter_map(|program| program.name_as_str().map(str::to_owned)),
                );
            }
            Ok(names)
        })?;
        let mut filters = Vec::new();
        for hook in ["ingress", "egress"] {
            let shown = self.tc(&["filter", "show", "dev", &self.interface, hook])?;
            let mut names: Vec<String> = Vec::new();
            names.extend(
                shown
                    .split_whitespace()
                    .filter(|word| word.starts_with("weir_"))
                    .map(str::to_owned),
            );
            // The filter's name and the program's are the same.
            names.dedup();
            filters.append(&mut names);
        }
        Ok((tcx, filters))
    }

    /// Nothing of ours is on the interface.
    pub fn is_bare(&self) -> Result<bool> {
        let (tcx, filters) = self.programs()?;
        Ok(tcx.is_empty() && filters.is_empty() && !self.has_clsact()?)
    }
}

/// A sender in the pod, a receiver in its peer.
pub struct Wire {
    pub sender: UdpSocket,
    pub receiver: UdpSocket,
    pub to: SocketAddr,
}

impl Wire {
    /// A packet comes through, possibly after some that were lost while a neighbour was resolved.
    pub fn passes(&self) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.one(SILENCE)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sends all the time while something is done, and makes sure that nothing arrives.
    pub fn nothing_slips_through<T>(&self, action: impl FnOnce() -> Result<T>) -> Result<T> {
        let stop = Arc::new(AtomicBool::new(false));
        let flood = {
            let (stop, sender, to) = (Arc::clone(&stop), self.sender.try_clone()?, self.to);
            thread::spawn(move || {
                let mut sent = 0_u64;
                while !stop.load(Ordering::Relaxed) || sent < 1_000 {
                    sent += u64::from(sender.send_to(b"flood", to).is_ok());
                }
                sent
            })
        };
        let done = action();
        stop.store(true, Ordering::Relaxed);
        let sent = flood.join().map_err(|_| anyhow::anyhow!("the flood panicked"))?;
        let done = done?;
        self.receiver.set_read_timeout(Some(SILENCE))?;
        let leaked = self.receiver.recv_from(&mut [0; 16]);
        ensure!(leaked.is_err(), "a packet of {sent} slipped through");
        Ok(done)
    }

    pub fn is_cut(&self) -> Result<bool> {
        Ok(!self.one(SILENCE)? && !self.one(SILENCE)?)
    }

    fn one(&self, wait: Duration) -> Result<bool> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let payload = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        self.sender.send_to(&payload, self.to)?;
        self.receiver.set_read_timeout(Some(wait))?;
        let mut buffer = [0; 16];
        loop {
            match self.receiver.recv_from(&mut buffer) {
                // One that was late belongs to an earlier question.
                Ok((4, _)) if buffer[..4] == payload => return Ok(true),
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

pub fn policy(endpoint: u32, allow: bool) -> Op {
    let everything = DirectionPolicy {
        table: 0,
        default_row: Row {
            base: [Decision::new(allow, false, 0); Slot::COUNT],
            ..Row::default()
        },
    };
    Op::SetPolicy(EndpointPolicy {
        endpoint,
        egress: everything,
        ingress: everything,
        egress_isolated: true,
        ingress_isolated: true,
        ..EndpointPolicy::default()
    })
}

pub fn names(dir: &Path) -> Result<BTreeSet<String>> {
    fs::read_dir(dir)
        .with_context(|| dir.display().to_string())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

pub fn count(datapath: &Datapath, reason: Reason, direction: Direction) -> Result<u64> {
    let counters = datapath.counters()?;
    let found = counters
        .packets
        .iter()
        .find(|(r, d, _)| (*r, *d) == (reason, direction));
    Ok(found.map_or(0, |(_, _, counter)| counter.packets))
}
