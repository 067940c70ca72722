//! Non-blocking sockets, a thin layer over the system calls.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    self as sys, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, setsockopt, sockopt,
};

use crate::lab::address::Family;

/// A socket of the calling thread's namespace.
///
/// # Errors
/// The kernel's.
pub fn open(family: Family, kind: SockType, protocol: Option<SockProtocol>) -> io::Result<OwnedFd> {
    let family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(sys::socket(family, kind, flags, protocol)?)
}

/// A raw socket: receives every packet of the protocol that reaches the namespace.
///
/// # Errors
/// Without `CAP_NET_RAW`.
pub fn raw(family: Family, protocol: u8) -> io::Result<OwnedFd> {
    let family = match family {
        Family::V4 => libc::AF_INET,
        Family::V6 => libc::AF_INET6,
    };
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) with plain integers (nix knows no SCTP protocol for raw sockets).
    let fd = unsafe { libc::socket(family, kind, libc::c_int::from(protocol)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

/// Binds to a port on every address.
///
/// # Errors
/// The kernel's, `AddrInUse` if the port is taken.
pub fn bind(socket: &OwnedFd, family: Family, port: u16) -> io::Result<()> {
    let any = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    setsockopt(socket, sockopt::ReuseAddr, &true)?;
    Ok(sys::bind(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(any, port)),
    )?)
}

/// Listens for TCP connections.
///
/// # Errors
/// The kernel's.
pub fn listen(socket: &OwnedFd) -> io::Result<()> {
    Ok(sys::listen(socket, sys::Backlog::new(1024)?)?)
}

/// Accepts a connection; it does not block either.
///
/// # Errors
/// `WouldBlock` if there is none.
pub fn accept(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let fd = sys::accept4(socket.as_raw_fd(), SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) })
}

/// Closing resets the connection: no TIME-WAIT that would hold the port.
///
/// # Errors
/// The kernel's.
pub fn reset_on_close(socket: &OwnedFd) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(setsockopt(socket, sockopt::Linger, &linger)?)
}

/// Starts to connect. TCP: the answer is waited for elsewhere.
///
/// # Errors
/// The kernel's, if it cannot even begin.
pub fn connect(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    match sys::connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The error that a pending operation left.
///
/// # Errors
/// That error.
pub fn take_error(socket: &OwnedFd) -> io::Result<()> {
    match sys::getsockopt(&socket.as_fd(), sockopt::SocketError)? {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Sends on a connected socket.
///
/// # Errors
/// The kernel's.
pub fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(sys::send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)?)
}

/// Receives on a connected socket; 0 is the end of a stream.
///
/// # Errors
/// The kernel's, `WouldBlock` if there is nothing.
pub fn recv(socket: &OwnedFd, bytes: &mut [u8]) -> io::Result<usize> {
    Ok(sys::recv(socket.as_raw_fd(), bytes, MsgFlags::empty())?)
}

/// Sends a datagram.
///
/// # Errors
/// The kernel's.
pub fn send_to(socket: &OwnedFd, bytes: &[u8], to: SocketAddr) -> io::Result<usize> {
    let to = SockaddrStorage::from(to);
    Ok(sys::sendto(socket.as_raw_fd(), bytes, &to, MsgFlags::MSG_NOSIGNAL)?)
}

/// Receives a datagram and who sent it. IPv4-mapped senders are given as IPv4.
///
/// # Errors
/// The kernel's, `WouldBlock` if there is none.
pub fn recv_from(socket: &OwnedFd, bytes: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    let (length, from) = sys::recvfrom::<SockaddrStorage>(socket.as_raw_fd(), bytes)?;
    let from = from.as_ref().and_then(|from| {
        let v4 = from
            .as_sockaddr_in()
            .map(|v4| SocketAddr::new(v4.ip().into(), v4.port()));
        v4.or_else(|| {
            from.as_sockaddr_in6()
                .map(|v6| SocketAddr::new(v6.ip().into(), v6.port()))
        })
    });
    let from = from.ok_or_else(|| io::Error::other("a datagram without a sender"))?;
    Ok((length, SocketAddr::new(from.ip().to_canonical(), from.port())))
}
