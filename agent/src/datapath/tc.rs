//! clsact qdiscs and their filters, for kernels without TCX: rtnetlink, one blocking request at a time.
//!
//! A filter of ours is recognised by priority, handle and name together. Priority [`PRIORITY`] runs behind Cilium's
//! and AWS's (1) and before whatever lets the kernel choose (49152 downwards, as Calico does).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use weir_common::{Direction, layout::program};

/// Priority of our filters.
pub(super) const PRIORITY: u16 = 5;
/// Handle of our filters: "Weir" in ASCII.
pub(super) const HANDLE: u32 = 0x5765_6972;

const CLSACT: &str = "clsact";
/// `ETH_P_ALL` in network order: filters of ours see every protocol.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// A bpf filter on a clsact hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub priority: u16,
    pub handle: u32,
    pub name: String,
    pub program_id: u32,
}

impl Filter {
    /// Priority, handle and name are those of our filters.
    pub(super) fn is_ours(&self, direction: Direction) -> bool {
        self.priority == PRIORITY && self.handle == HANDLE && self.name == program_name(direction)
    }
}

/// Name of the program (and of the filter) on the hook of a direction.
pub(super) const fn program_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Egress => program::FROM_POD,
        Direction::Ingress => program::TO_POD,
    }
}

/// The clsact hook of a direction: what the pod sends comes in on the host's side.
const fn parent(direction: Direction) -> u32 {
    match direction {
        Direction::Egress => 0xffff_fff2,
        Direction::Ingress => 0xffff_fff3,
    }
}

/// Adds a clsact qdisc. False: there already is one.
///
/// `EEXIST`: an `ingress` qdisc of somebody else (the bandwidth plugin's) is in its place. That would take filters for both
/// hooks, and run both on what comes in.
pub(super) fn add_clsact(ifindex: u32) -> io::Result<bool> {
    let mut message = clsact(ifindex);
    message.attributes.push(TcAttribute::Kind(CLSACT.into()));
    let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    match request(RouteNetlinkMessage::NewQueueDiscipline(message), flags) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) && is_clsact(ifindex)? => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether what stands on the interface's hooks is a clsact qdisc.
fn is_clsact(ifindex: u32) -> io::Result<bool> {
    let question = RouteNetlinkMessage::GetQueueDiscipline(clsact(ifindex));
    Ok(request(question, NLM_F_DUMP)?.iter().any(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) => {
            let kind = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == CLSACT);
            // The kernel tells of all interfaces, whichever is asked for.
            qdisc.header.index == ifindex as i32 && qdisc.attributes.iter().any(kind)
        }
        _ => false,
    }))
}

/// Removes the clsact qdisc if no filter is left on it. True: it is gone.
pub(super) fn remove_empty_clsact(ifindex: u32) -> io::Result<bool> {
    for direction in [Direction::Egress, Direction::Ingress] {
        if any_filter(ifindex, direction)? {
            return Ok(false);
        }
    }
    match request(RouteNetlinkMessage::DelQueueDiscipline(clsact(ifindex)), NLM_F_ACK) {
        Ok(_) => Ok(true),
        // EINVAL: the interface has no qdisc on that hook.
        Err(error) if is_absent(&error) || error.raw_os_error() == Some(libc::EINVAL) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Puts our filter onto a hook, or atomically replaces the program of the one that is there.
pub(super) fn put_filter(ifindex: u32, direction: Direction, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut message = filter(ifindex, direction);
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.into()));
    message.attributes.push(TcAttribute::Options(vec![
        TcOption::Bpf(TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32)),
        TcOption::Bpf(TcFilterBpfOption::ProgName(program_name(direction).into())),
        TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
    ]));
    request(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_ACK | NLM_F_CREATE).map(drop)
}

/// Removes our filter from a hook. False: it was not there.
pub(super) fn remove_filter(ifindex: u32, direction: Direction) -> io::Result<bool> {
    if !filters(ifindex, direction)?
        .iter()
        .any(|filter| filter.is_ours(direction))
    {
        return Ok(false);
    }
    let mut message = filter(ifindex, direction);
    message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.into()));
    match request(RouteNetlinkMessage::DelTrafficFilter(message), NLM_F_ACK) {
        Ok(_) => Ok(true),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Asks for our filters one by one, through one socket: looking at all pods' hooks again and again must cost next to nothing.
pub(super) struct Asker(Socket);

impl Asker {
    pub(super) fn open() -> io::Result<Self> {
        open().map(Self)
    }

    /// The program of our filter on a hook. None: it is not there; nor, perhaps, are its qdisc and its interface.
    pub(super) fn program(&self, ifindex: u32, direction: Direction) -> io::Result<Option<u32>> {
        let mut question = filter(ifindex, direction);
        question.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.into()));
        match converse(&self.0, RouteNetlinkMessage::GetTrafficFilter(question), 0) {
            Ok(answers) => Ok(answers.iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewTrafficFilter(message) => parse(message)
                    .filter(|filter| filter.is_ours(direction))
                    .map(|filter| filter.program_id),
                _ => None,
            })),
            // EINVAL: no qdisc, no filter at all on the hook, or one of another kind in that place.
            Err(error) if is_absent(&error) || error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The bpf filters of a hook, ours and others. An interface without clsact, or none at all, has none.
pub(super) fn filters(ifindex: u32, direction: Direction) -> io::Result<Vec<Filter>> {
    Ok(dump_filters(ifindex, direction)?.iter().filter_map(parse).collect())
}

fn any_filter(ifindex: u32, direction: Direction) -> io::Result<bool> {
    Ok(!dump_filters(ifindex, direction)?.is_empty())
}

fn dump_filters(ifindex: u32, direction: Direction) -> io::Result<Vec<TcMessage>> {
    let mut message = TcMessage::default();
    message.header.index = ifindex as i32;
    message.header.parent = TcHandle::from(parent(direction));
    let answers = match request(RouteNetlinkMessage::GetTrafficFilter(message), NLM_F_DUMP) {
        Ok(answers) => answers,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let filter = |answer| match answer {
        RouteNetlinkMessage::NewTrafficFilter(message) => Some(message),
        _ => None,
    };
    Ok(answers.into_iter().filter_map(filter).collect())
}

fn parse(message: &TcMessage) -> Option<Filter> {
    let handle = u32::from(message.header.handle);
    if handle == 0 {
        // The classifier itself, announced before its filters.
        return None;
    }
    let mut filter = Filter {
        priority: (message.header.info >> 16) as u16,
        handle,
        name: String::new(),
        program_id: 0,
    };
    let mut is_bpf = false;
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => is_bpf = kind == TcFilterBpf::KIND,
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name.clone_from(name),
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program_id = *id,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    is_bpf.then_some(filter)
}

/// The interface, its qdisc or its filter went away before we came.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT))
}

fn clsact(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex as i32;
    message.header.handle = TcHandle::from(0xffff_0000);
    message.header.parent = TcHandle::CLSACT;
    message
}

fn filter(ifindex: u32, direction: Direction) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex as i32;
    message.header.handle = TcHandle::from(HANDLE);
    message.header.parent = TcHandle::from(parent(direction));
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(ALL_PROTOCOLS);
    message
}

/// Sends one request and collects what comes back until it is acknowledged or the dump ends. Answers that cannot be
/// parsed (kinds of filters that netlink-packet-route does not know well) are left out.
fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    converse(&open()?, message, flags)
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// [`request`] on a socket on which nothing else is under way. Without `NLM_F_ACK` and `NLM_F_DUMP` the first answer is the last.
fn converse(socket: &Socket, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        // Each message: struct nlmsghdr (16 bytes, its first word the length), padded to four bytes.
        while let Some(length) = rest.first_chunk().map(|word| u32::from_ne_bytes(*word) as usize) {
            if length < 16 || length > rest.len() {
                break;
            }
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..length]).map(|answer| answer.payload) {
                Ok(NetlinkPayload::Done(_)) => return Ok(answers),
                Ok(NetlinkPayload::Error(error)) if error.code.is_none() => return Ok(answers),
                Ok(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                Ok(NetlinkPayload::InnerMessage(answer)) => answers.push(answer),
                Ok(_) | Err(_) => {}
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        if flags & (NLM_F_ACK | NLM_F_DUMP) == 0 {
            return Ok(answers);
        }
    }
}
