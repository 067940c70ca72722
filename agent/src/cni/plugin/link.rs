//! The host's side of a container's interface.
//!
//! The plugin's process has one thread, so it can enter the container's network namespace and come back.

use std::{fs::File, io, os::fd::AsFd, path::Path};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

use super::error::{CniError, Code};
use crate::cni::attachment::{HostSide, NetnsId};

/// The kernel answers at once; this ends what has gone wrong.
const PATIENCE: TimeVal = TimeVal::new(5, 0);

/// What is looked at of an interface.
#[derive(Debug)]
struct Link {
    index: u32,
    name: String,
    kind: Option<InfoKind>,
    layer3: bool,
    /// `IFLA_LINK`: of a veth or netkit, the index of its other side, in that side's namespace.
    peer: Option<u32>,
}

impl Link {
    /// Both kinds have a side in the container and one on the host.
    fn is_pair(&self) -> bool {
        matches!(self.kind, Some(InfoKind::Veth | InfoKind::Netkit))
    }

    fn side(self) -> HostSide {
        HostSide {
            ifindex: self.index,
            name: self.name,
            layer3: self.layer3,
        }
    }

    fn kind_name(&self) -> String {
        self.kind
            .as_ref()
            .map_or_else(|| "device without a kind".to_owned(), ToString::to_string)
    }
}

/// Finds the host's side of an interface in a network namespace: the other end of a pair, else the one interface of
/// the host that the plugins before us name and that can be a pod's. Also, where that is.
///
/// # Errors
/// No such namespace or interface, nothing of it on the host, no permission.
pub fn host_side<'a>(
    netns: &Path,
    interface: &str,
    named: impl Iterator<Item = &'a str>,
) -> Result<(HostSide, NetnsId), CniError> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| CniError::new(Code::Io, format!("cannot {what}"), error.to_string())
    };
    let own = File::open("/proc/thread-self/ns/net").map_err(io("open this process's network namespace"))?;
    let own_id = NetnsId::of(&own.metadata().map_err(io("look at this process's network namespace"))?);
    let not_one = |error: io::Error| {
        CniError::new(
            Code::InvalidNetns,
            "CNI_NETNS is no network namespace",
            format!("{}: {error}", netns.display()),
        )
    };
    let container = File::open(netns).map_err(not_one)?;
    if NetnsId::of(&container.metadata().map_err(not_one)?) == own_id {
        return Err(CniError::new(
            Code::InvalidNetns,
            "CNI_NETNS is the host's own network namespace",
            netns.display().to_string(),
        ));
    }
    enter(&container).map_err(not_one)?;
    let inside = by_name(interface);
    enter(&own).map_err(io("return to the host's network namespace"))?;
    let inside = inside
        .map_err(io("look at the container's interfaces"))?
        .ok_or_else(|| {
            CniError::new(
                Code::InvalidConfiguration,
                format!("there is no interface {interface} in the container"),
                format!(
                    "{} has none: weir-cni is chained after the plugin that makes it",
                    netns.display()
                ),
            )
        })?;
    let look = || io("look at the host's interfaces");
    if let Some(peer) = inside.peer.filter(|_| inside.is_pair())
        && let Some(outside) = by_index(peer).map_err(look())?
        && outside.is_pair()
        && outside.peer == Some(inside.index)
    {
        return Ok((outside.side(), own_id));
    }
    let mut sides = Vec::new();
    for name in named {
        if let Some(link) = by_name(name).map_err(look())?
            && (link.is_pair() || matches!(link.kind, Some(InfoKind::Tun)))
        {
            sides.push(link.side());
        }
    }
    if let [side] = sides.as_slice() {
        return Ok((side.clone(), own_id));
    }
    Err(CniError::new(
        Code::NotEnforced,
        format!("{interface} has no side on the host that policy could be enforced on"),
        format!(
            "it is a {}, and the plugins before weir-cni name {} interface of the host that could be its other side; \
             policy is enforced on veth and netkit pairs (exempt the namespace to run its pods without policy)",
            inside.kind_name(),
            if sides.is_empty() { "no" } else { "more than one" },
        ),
    ))
}

fn enter(netns: impl AsFd) -> io::Result<()> {
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

fn by_name(name: &str) -> io::Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    ask(message)
}

fn by_index(index: u32) -> io::Result<Option<Link>> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    ask(message)
}

/// One question to the kernel, in the current namespace. None: there is no such interface.
fn ask(question: LinkMessage) -> io::Result<Option<Link>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(RouteNetlinkMessage::GetLink(question)));
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    socket.send(&buffer, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let malformed = |error: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, error.to_string());
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(|error| malformed(&error))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(Some(read(&link))),
        NetlinkPayload::Error(error) => {
            let error = error.to_io();
            match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENODEV) => Ok(None),
                _ => Err(error),
            }
        }
        other => Err(malformed(&format!("an answer of another kind: {other:?}"))),
    }
}

fn read(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        layer3: message.header.link_layer_type != LinkLayerType::Ether,
        peer: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Link(index) => link.peer = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    // Kernels before 5.3 leave it out where both sides happen to have one index.
    if link.is_pair() {
        link.peer.get_or_insert(link.index);
    }
    link
}
