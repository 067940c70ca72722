//! Programs that come from the distribution, and installing them.

use std::{process::Command, sync::Once};

use anyhow::{Result, bail};

use crate::{machine, process, setup::Verb};

/// A program, the Debian package that has it, and the verbs that run it.
pub struct Program {
    pub name: &'static str,
    package: &'static str,
    verbs: &'static [Verb],
}

/// Every program of the distribution that any verb runs.
const PROGRAMS: [Program; 13] = [
    Program {
        name: "cc",
        package: "gcc",
        verbs: &[
            Verb::Build,
            Verb::Demo,
            Verb::Test,
            Verb::Lint,
            Verb::Bench,
            Verb::Image,
            Verb::Cluster,
        ],
    },
    Program {
        name: "ip",
        package: "iproute2",
        verbs: &[Verb::Demo, Verb::Test, Verb::Bench, Verb::Cluster],
    },
    Program {
        name: "bridge",
        package: "iproute2",
        verbs: &[Verb::Test],
    },
    Program {
        name: "tc",
        package: "iproute2",
        verbs: &[Verb::Test],
    },
    Program {
        name: "nft",
        package: "nftables",
        verbs: &[Verb::Test, Verb::Bench, Verb::Cluster],
    },
    Program {
        name: "iptables",
        package: "iptables",
        verbs: &[Verb::Test, Verb::Bench, Verb::Cluster],
    },
    Program {
        name: "ipset",
        package: "ipset",
        verbs: &[Verb::Bench],
    },
    Program {
        name: "conntrack",
        package: "conntrack",
        verbs: &[Verb::Test, Verb::Bench, Verb::Cluster],
    },
    Program {
        name: "bpftool",
        package: "bpftool",
        verbs: &[Verb::Test, Verb::Bench, Verb::Cluster],
    },
    Program {
        name: "containerd",
        package: "containerd",
        verbs: &[Verb::Cluster],
    },
    Program {
        name: "ctr",
        package: "containerd",
        verbs: &[Verb::Cluster],
    },
    Program {
        name: "runc",
        package: "runc",
        verbs: &[Verb::Cluster],
    },
    // A CNI plugin, of which there are many.
    Program {
        name: "/usr/lib/cni/ptp",
        package: "containernetworking-plugins",
        verbs: &[Verb::Test, Verb::Cluster],
    },
];

/// The programs that a verb runs.
pub fn programs(verb: Verb) -> impl Iterator<Item = &'static Program> {
    PROGRAMS.iter().filter(move |program| program.verbs.contains(&verb))
}

/// The packages of those programs that are not there.
pub fn missing(programs: impl Iterator<Item = &'static Program>) -> Vec<&'static str> {
    let mut packages: Vec<_> = programs
        .filter(|p| process::find(p.name).is_none())
        .map(|p| p.package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Installs packages through apt-get. Its lists are brought up to date once, and only if the first attempt fails: on a
/// fresh machine they are empty, and later they may name versions that are gone.
pub fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if process::find("apt-get").is_none() {
        bail!("this machine has no apt-get; install with its own package manager what Debian calls: {list}");
    }
    if !machine::is_root() {
        bail!("not root; run: sudo apt-get install {list}");
    }
    eprintln!("setup: installing {list}");
    if let Err(first) = apt_get(&install_arguments(packages)) {
        static UPDATE: Once = Once::new();
        let mut updated = false;
        UPDATE.call_once(|| updated = apt_get(&["update"]).is_ok());
        if !updated {
            return Err(first);
        }
        apt_get(&install_arguments(packages))?;
    }
    Ok(())
}

fn install_arguments<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    ["install", "--yes", "--no-install-recommends"]
        .iter()
        .chain(packages)
        .copied()
        .collect()
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    process::output(apt.arg("-qq").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))?;
    Ok(())
}
