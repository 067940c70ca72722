//! What the plugin tells the agent of a pod's interface, and what the agent answers.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

/// An attachment by name, unique on a node (CNI spec, section 3).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentId {
    /// `CNI_CONTAINERID`: the pod's sandbox.
    pub container: String,
    /// `CNI_IFNAME`: the interface inside of the pod.
    pub interface: String,
}

impl AttachmentId {
    /// Whether these are names that a runtime may give (CNI spec, section 2). What is none must reach no path.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let container = self.container.as_bytes();
        let interface = self.interface.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-".contains(byte);
        container.first().is_some_and(u8::is_ascii_alphanumeric)
            && container.len() <= 192
            && container.iter().all(plain)
            // As the kernel's dev_valid_name: shorter than IFNAMSIZ, no slash, no colon, no space.
            && (1..16).contains(&interface.len())
            && !matches!(interface, b"." | b"..")
            && !interface.iter().any(|byte| b"/:".contains(byte) || byte.is_ascii_whitespace() || *byte == 0)
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.interface, self.container)
    }
}

/// The pod that a sandbox is for, as the kubelet names it in `CNI_ARGS`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    /// `K8S_POD_UID`, where the runtime gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The host's side of a pod's interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostSide {
    pub ifindex: u32,
    pub name: String,
    /// Packets on it have no Ethernet header.
    pub layer3: bool,
}

/// A pod's interface as the plugin before us in the chain has made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub id: AttachmentId,
    /// Name of the network configuration.
    pub network: String,
    pub pod: PodName,
    pub host: HostSide,
    /// The pod's addresses on this interface, as the result names them.
    pub addresses: Vec<IpAddr>,
}

/// A network namespace by device and inode of its file: the agent must be in the one that the interface is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsId {
    pub device: u64,
    pub inode: u64,
}

impl NetnsId {
    /// That of the calling thread.
    ///
    /// # Errors
    /// Without procfs.
    pub fn current() -> std::io::Result<Self> {
        Ok(Self::of(&std::fs::metadata("/proc/thread-self/ns/net")?))
    }

    #[must_use]
    pub fn of(file: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            device: file.dev(),
            inode: file.ino(),
        }
    }
}

/// What the plugin asks of the agent, one for each CNI command that concerns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "UPPERCASE")]
pub enum CniRequest {
    /// Answer when the pod's complete policy is enforced on its interface, and in any case within this time.
    Add {
        attachment: Attachment,
        /// Where `attachment.host` is.
        netns: NetnsId,
        timeout_ms: u64,
    },
    /// The sandbox goes, or is gone.
    Del { id: AttachmentId },
    /// Is the pod's policy enforced on its interface?
    Check { id: AttachmentId, pod: PodName },
    /// Of this network, these attachments are still there and no others.
    Gc { network: String, valid: Vec<AttachmentId> },
    /// Can pods be attached?
    Status,
}

/// What the agent says to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "lowercase")]
pub enum CniAnswer {
    Done,
    /// Not now: the same request can succeed later.
    Later {
        reason: String,
    },
    /// Not ever, as things are.
    Refused {
        reason: String,
        remedy: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_runtime_may_name_is_a_valid_id() {
        let valid = |container: &str, interface: &str| {
            AttachmentId {
                container: container.to_owned(),
                interface: interface.to_owned(),
            }
            .is_valid()
        };
        assert!(valid("0a1b", "eth0"));
        assert!(valid("pod-1_2.3", "net1"));
        for container in ["", "-a", ".", "..", "a/b", "../a", "a b", "ü", &"a".repeat(193)] {
            assert!(!valid(container, "eth0"), "{container}");
        }
        for interface in ["", ".", "..", "a/b", "a:b", "a b", "sixteencharacter"] {
            assert!(!valid("a", interface), "{interface}");
        }
    }
}
