//! A connection that tells whether it still lives.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// A TCP connection to an echo server.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    sent: u64,
}

impl Connection {
    /// Takes over a connected stream.
    ///
    /// # Errors
    /// If its options cannot be set.
    pub fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        Ok(Self { stream, sent: 0 })
    }

    /// Sends a number and waits for its echo. False: nothing came in time, or the connection has ended.
    ///
    /// # Errors
    /// If something else comes back.
    pub fn echo(&mut self, patience: Duration) -> Result<bool> {
        self.sent += 1;
        let bytes = self.sent.to_be_bytes();
        self.stream.set_read_timeout(Some(patience))?;
        if self.stream.write_all(&bytes).is_err() {
            return Ok(false);
        }
        let mut back = [0; 8];
        match self.stream.read_exact(&mut back) {
            Ok(()) => {
                ensure!(
                    back == bytes,
                    "sent {}, got {} back",
                    self.sent,
                    u64::from_be_bytes(back)
                );
                Ok(true)
            }
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock
                | ErrorKind::TimedOut
                | ErrorKind::UnexpectedEof
                | ErrorKind::ConnectionReset
                | ErrorKind::HostUnreachable => Ok(false),
                _ => Err(error).context("read an echo"),
            },
        }
    }

    /// Segments that the kernel has had to send again: packets were lost.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn retransmitted(&self) -> Result<u32> {
        tcp_info(&self.stream).map(|info| info.tcpi_total_retrans)
    }

    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

fn tcp_info(stream: &TcpStream) -> Result<libc::tcp_info> {
    // SAFETY: all integers; zero is a value of each.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>())?;
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is that long.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    ensure!(result == 0, "TCP_INFO: {}", std::io::Error::last_os_error());
    Ok(info)
}
