//! What can go wrong between the agent and the kernel: each says what, where, and what to do about it.

use std::{io, path::PathBuf};

use thiserror::Error;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Error)]
pub enum Error {
    #[error("this kernel is {release}; Weir needs Linux 6.1 or later")]
    KernelTooOld { release: String },

    #[error("not privileged: {missing} missing; run as root, or grant CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    NotPrivileged { missing: String },

    #[error("{path} is not on a BPF file system; mount one: mount -t bpf bpf {mount_point}", path = path.display(), mount_point = mount_point.display())]
    NotBpffs { path: PathBuf, mount_point: PathBuf },

    #[error("another agent{} runs with this run directory ({path}); stop it, or give this one its own --run-dir", holder(*pid), path = path.display())]
    RunDirInUse { path: PathBuf, pid: Option<u32> },

    #[error("another agent uses {path}; stop it, or give this one its own --bpffs", path = path.display())]
    BpffsInUse { path: PathBuf },

    #[error(
        "{path} has {found}, but this version of Weir needs {expected}: another version pinned it under the same layout number; stop every agent, run `weir detach --bpffs {root}`, and start again", path = path.display(), root = root.display()
    )]
    ForeignShape {
        path: PathBuf,
        root: PathBuf,
        found: String,
        expected: String,
    },

    #[error("{path}: cannot {action}: {source}", path = path.display())]
    Path {
        path: PathBuf,
        action: &'static str,
        source: io::Error,
    },

    #[error("the embedded eBPF object cannot be read ({detail}); this binary is broken: build it again")]
    Object { detail: String },

    #[error("the kernel refused to load the eBPF programs: {detail}")]
    Load { detail: String },

    #[error("map {map}: cannot {action}: {source}")]
    Map {
        map: &'static str,
        action: &'static str,
        source: io::Error,
    },

    #[error("map {map} is full ({capacity} entries)")]
    MapFull { map: &'static str, capacity: u32 },

    #[error("this kernel has no TCX (Linux 6.6 and later have it); use --attach auto or --attach tc")]
    NoTcx,

    #[error("{interface} (index {ifindex}): cannot {action}: {source}{hint}")]
    Interface {
        interface: String,
        ifindex: u32,
        action: &'static str,
        source: io::Error,
        hint: &'static str,
    },

    #[error("cannot {action} through netlink: {source}")]
    Netlink { action: &'static str, source: io::Error },

    #[error("endpoint {id} is not known; its interface was never set or it was removed")]
    UnknownEndpoint { id: u32 },

    #[error("endpoint {id} cannot be attached before it has {missing}")]
    EndpointIncomplete { id: u32, missing: &'static str },

    #[error("no endpoint id is free: all {limit} are named by endpoints or by entries of the connection table")]
    NoEndpointId { limit: u32 },

    #[error("the agent{} still runs; stop it before detaching", holder(*pid))]
    AgentRuns { pid: Option<u32> },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

impl Error {
    pub(super) fn path(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Path { path, action, source }
    }

    /// An operation on an interface, which is named where it still exists.
    pub(super) fn interface(ifindex: u32, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Interface {
            interface: super::sys::interface_name(ifindex).unwrap_or_else(|| "vanished interface".into()),
            ifindex,
            action,
            hint: match source.raw_os_error() {
                Some(libc::EINVAL) => {
                    "; a qdisc of kind `ingress` leaves no room for clsact: use --attach tcx, or remove it"
                }
                _ => "",
            },
            source,
        }
    }

    /// The interface went while something was done to it.
    #[must_use]
    pub fn is_vanished_interface(&self) -> bool {
        matches!(self, Self::Interface { source, .. } if source.raw_os_error() == Some(libc::ENODEV))
    }

    /// A failed map operation of aya. A full map gets an error of its own.
    pub(super) fn map(map: &'static str, action: &'static str, capacity: u32, error: aya::maps::MapError) -> Self {
        use aya::maps::MapError;
        let source = match error {
            MapError::SyscallError(error) => error.io_error,
            MapError::KeyNotFound | MapError::ElementNotFound => io::Error::from_raw_os_error(libc::ENOENT),
            MapError::OutOfBounds { .. } => io::Error::from_raw_os_error(libc::E2BIG),
            other => io::Error::other(other),
        };
        match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => Self::MapFull { map, capacity },
            _ => Self::Map { map, action, source },
        }
    }
}
