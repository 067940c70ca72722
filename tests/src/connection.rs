//! A connection that tells whether it still lives.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// An echo that has not come by then never comes.
const SLOWEST: Duration = Duration::from_secs(10);

/// Nothing heard for that long, on a machine where an echo takes microseconds: nothing passes.
const SILENCE: Duration = Duration::from_millis(500);

/// A TCP connection to an echo server.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    sent: u64,
    /// Segments that were lost before: a SYN while neighbours were still being asked for.
    lost_before: u32,
}

impl Connection {
    /// Takes over a connected stream.
    ///
    /// # Errors
    /// If its options cannot be set.
    pub fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let lost_before = lost(&stream)?;
        Ok(Self {
            stream,
            sent: 0,
            lost_before,
        })
    }

    /// Whether an echo comes, however slow the machine is. False: nothing came, or the connection has ended.
    ///
    /// # Errors
    /// If something else comes back.
    pub fn echoes(&mut self) -> Result<bool> {
        self.echo(SLOWEST)
    }

    /// Whether no echo comes: the connection is cut or has ended.
    ///
    /// # Errors
    /// If something else comes back.
    pub fn is_cut(&mut self) -> Result<bool> {
        self.echo(SILENCE).map(|echoed| !echoed)
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

    /// Segments that were lost since the connection stands.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn lost(&self) -> Result<u32> {
        lost(&self.stream).map(|lost| lost.saturating_sub(self.lost_before))
    }

    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// Segments that the kernel has sent again, less those of which the other end says that it had them already (DSACK, RFC
/// 2883). A machine that stands still for longer than the retransmission time-out sends again what was never lost.
fn lost(stream: &TcpStream) -> Result<u32> {
    tcp_info(stream).map(|info| info.tcpi_total_retrans.saturating_sub(info.tcpi_dsack_dups))
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
    let counted = std::mem::offset_of!(libc::tcp_info, tcpi_dsack_dups) + size_of::<u32>();
    ensure!(
        length as usize >= counted,
        "TCP_INFO: {length} bytes; a kernel before 4.19 does not count duplicates"
    );
    Ok(info)
}
