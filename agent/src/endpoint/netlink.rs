//! The sockets: one that listens to what changes, one that asks.

use std::{io, net::IpAddr};

use futures_util::{Stream, TryStreamExt};
use netlink_packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourFlags, NeighbourState},
    route::{RouteAttribute, RouteMessage, RouteType},
};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};

use super::{
    locate::Asked,
    tables::{Tables, Touched, gateway},
};

/// Room for a storm of notifications, bytes. What does not fit is found again by a dump.
const RECEIVE_BUFFER: usize = 4 << 20;

const GROUPS: [MulticastGroup; 10] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
    MulticastGroup::Tc,
];

/// What the listening socket says.
pub(super) enum Heard {
    /// Messages, each with whether it replaces another.
    Messages(Vec<(RouteNetlinkMessage, bool)>),
    /// The kernel had more to say than there was room for.
    Overrun,
}

/// Listens to changes of links, neighbours, addresses, routes, rules and traffic control.
pub(super) struct Monitor(TokioSocket);

impl Monitor {
    /// Opens the socket in the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let inner = socket.socket_mut();
        inner.bind(&SocketAddr::new(0, 0))?;
        // More than rmem_max is cut silently; then dumps do more of the work.
        inner.set_rx_buf_sz(RECEIVE_BUFFER as libc::c_int)?;
        for group in GROUPS {
            inner.add_membership(group as u32)?;
        }
        Ok(Self(socket))
    }

    /// Waits for the next messages. Cancel safe: a datagram is received whole or not at all.
    pub(super) async fn next(&mut self) -> io::Result<Heard> {
        let datagram = match self.0.recv_from_full().await {
            Ok((datagram, _)) => datagram,
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Heard::Overrun),
            Err(error) => return Err(error),
        };
        let mut messages = Vec::new();
        let mut rest = datagram.as_slice();
        // Each message: struct nlmsghdr (16 bytes, its first word the length), padded to four bytes.
        while let Some(length) = rest.first_chunk().map(|word| u32::from_ne_bytes(*word) as usize) {
            if length < 16 || length > rest.len() {
                break;
            }
            // What netlink-packet-route cannot parse is of a kind that we do not look for.
            if let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length]) {
                let replace = message.header.flags & NLM_F_REPLACE != 0;
                if let NetlinkPayload::InnerMessage(inner) = message.payload {
                    messages.push((inner, replace));
                }
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(Heard::Messages(messages))
    }
}

/// Asks the kernel.
#[derive(Clone)]
pub(super) struct Asker(Handle);

impl Asker {
    /// Opens the socket in the network namespace of the calling thread. Must be called within a tokio runtime.
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Everything there is, now.
    pub(super) async fn dump(&self) -> Result<Tables, rtnetlink::Error> {
        let mut tables = Tables::default();
        take(&mut tables, self.0.link().get().execute(), RouteNetlinkMessage::NewLink).await?;
        take(
            &mut tables,
            self.0.address().get().execute(),
            RouteNetlinkMessage::NewAddress,
        )
        .await?;
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut all = RouteMessage::default();
            all.header.address_family = family;
            take(
                &mut tables,
                self.0.route().get(all).execute(),
                RouteNetlinkMessage::NewRoute,
            )
            .await?;
        }
        for family in [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Bridge] {
            let neighbours = self.0.neighbours().get().set_address_family(family);
            take(&mut tables, neighbours.execute(), RouteNetlinkMessage::NewNeighbour).await?;
        }
        Ok(tables)
    }

    /// Device and gateway of the route that the kernel would take (it follows the rules).
    pub(super) async fn route(&self, address: IpAddr) -> Asked {
        let wanted: RouteMessage = match address {
            IpAddr::V4(v4) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(v4, 32)
                .build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(v6, 128)
                .build(),
        };
        let mut answers = std::pin::pin!(self.0.route().get(wanted).execute());
        match answers.try_next().await {
            Ok(Some(route)) if route.header.kind == RouteType::Unicast => {
                let oif = route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
                Ok(oif.map(|oif| (oif, route.attributes.iter().find_map(gateway))))
            }
            Ok(Some(route)) => Err(format!("the kernel's is of type {:?}", route.header.kind)),
            Ok(None) => Ok(None),
            Err(rtnetlink::Error::NetlinkError(error)) => Err(error.to_io().to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Has the kernel resolve a neighbour (ARP, neighbour discovery), as if a packet were to be sent to it.
    ///
    /// `forget`: first forget what was learnt of it. A stale entry is otherwise probed for eight seconds at a link-layer
    /// address that has perhaps gone with an earlier pod, before the kernel asks everybody again.
    pub(super) async fn solicit(&self, ifindex: u32, address: IpAddr, forget: bool) -> Result<(), rtnetlink::Error> {
        if forget {
            let mut stale = self.0.neighbours().add(ifindex, address);
            let stale = stale.message_mut().clone();
            self.0.neighbours().del(stale).execute().await?;
        }
        self.0
            .neighbours()
            .add(ifindex, address)
            .flags(NeighbourFlags::Use)
            .state(NeighbourState::None)
            .replace()
            .execute()
            .await
    }
}

async fn take<T>(
    tables: &mut Tables,
    messages: impl Stream<Item = Result<T, rtnetlink::Error>>,
    wrap: fn(T) -> RouteNetlinkMessage,
) -> Result<(), rtnetlink::Error> {
    let mut messages = std::pin::pin!(messages);
    while let Some(message) = messages.try_next().await? {
        let _: Touched = tables.apply(&wrap(message), false);
    }
    Ok(())
}
