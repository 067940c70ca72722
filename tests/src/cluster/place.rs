//! Names, addresses and paths: everything of a cluster that follows from its name.

use std::{
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use anyhow::{Result, ensure};

/// Length of the networks of nodes, and of each node's pods.
pub const V4_BITS: u8 = 24;
pub const V6_BITS: u8 = 64;

/// Services, as the API server takes them.
pub const SERVICES: &str = "10.96.0.0/16,fd00:77:fffe::/112";
/// All pods.
pub const PODS: &str = "10.244.0.0/16,fd00:77::/40";
/// The Service of the cluster's DNS.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// The Service of the API server: the first address.
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Where the API server listens.
pub const API_PORT: u16 = 6443;

/// The most nodes that the address plan has room for.
pub const MOST_NODES: usize = 200;

const PREFIX: &str = "weir-cluster-";

/// What a cluster of some name is called on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    name: String,
}

impl Place {
    /// # Errors
    /// If the name does not suit as a part of file names.
    pub fn new(name: &str) -> Result<Self> {
        ensure!(
            !name.is_empty()
                && name.len() <= 32
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
            "{name:?} is no name for a cluster: at most 32 letters, digits and dashes"
        );
        Ok(Self { name: name.to_owned() })
    }

    /// The clusters that have left something on this machine.
    #[must_use]
    pub fn existing() -> Vec<Self> {
        let Ok(entries) = env::temp_dir().read_dir() else {
            return Vec::new();
        };
        entries
            .flatten()
            .filter_map(|entry| Self::new(entry.file_name().to_str()?.strip_prefix(PREFIX)?).ok())
            .collect()
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything that a cluster keeps in files.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        env::temp_dir().join(format!("{PREFIX}{}", self.name))
    }

    /// The control group of everything that runs.
    #[must_use]
    pub fn group(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    /// That of one node.
    #[must_use]
    pub fn node_group(&self, node: usize) -> String {
        format!("{}/node{node}", self.group())
    }
}

/// The control plane's addresses.
#[must_use]
pub fn control() -> [IpAddr; 2] {
    host(2)
}

/// A node's addresses; nodes count from 1.
#[must_use]
pub fn node(number: usize) -> [IpAddr; 2] {
    host(u8::try_from(10 + number).unwrap_or(u8::MAX))
}

fn host(number: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(172, 31, 0, number).into(),
        Ipv6Addr::new(0xfd00, 0x77, 0xffff, 0, 0, 0, 0, number.into()).into(),
    ]
}

/// The networks of a node's pods.
#[must_use]
pub fn pods(node: usize) -> [String; 2] {
    [
        format!("10.244.{node}.0/{V4_BITS}"),
        format!("fd00:77:{node:x}::/{V6_BITS}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::{MOST_NODES, Place, node, pods};

    #[test]
    fn names_are_safe_in_paths() {
        assert!(Place::new("weir-1").is_ok());
        for bad in ["", "a/b", "..", "a b"] {
            assert!(Place::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_plan_has_room_for_all_nodes() {
        assert_eq!(node(MOST_NODES)[0].to_string(), "172.31.0.210");
        assert_eq!(pods(17), ["10.244.17.0/24", "fd00:77:11::/64"]);
    }
}
