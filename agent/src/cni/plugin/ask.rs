//! Asking the agent. Blocking, and never for longer than was said.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt},
    time::TimeVal,
};

use crate::{
    cli::protocol::{Request, Response, VERSION, Verb, socket_path},
    cni::attachment::{CniAnswer, CniRequest},
};

/// Longest answer, bytes.
const MAX_ANSWER: u64 = 64 * 1024;

/// The agent answers by the deadline that it was given; so much later it is taken for stuck.
const SLACK: Duration = Duration::from_millis(500);

/// Why there is no answer.
#[derive(Debug)]
pub enum Unanswered {
    /// Nobody listens there.
    NoAgent(String),
    /// Somebody does, but ends the conversation, does not answer in time, or cannot be understood.
    Failed(String),
}

impl Unanswered {
    pub fn reason(&self) -> &str {
        match self {
            Self::NoAgent(reason) | Self::Failed(reason) => reason,
        }
    }
}

/// Asks the agent of a run directory once.
///
/// # Errors
/// There is no answer by the deadline.
pub fn ask(run_dir: &Path, request: CniRequest, deadline: Instant) -> Result<CniAnswer, Unanswered> {
    let path = socket_path(run_dir);
    let stream = open(&path, deadline + SLACK).map_err(|error| {
        let reason = format!("the agent's socket {}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Unanswered::NoAgent(reason),
            _ => Unanswered::Failed(reason),
        }
    })?;
    let answer = converse(stream, request, deadline + SLACK)
        .map_err(|error| Unanswered::Failed(format!("speaking with the agent: {error}")))?;
    match serde_json::from_str(&answer) {
        Ok(Response::Cni(answer)) => Ok(answer),
        // An agent of another version, or one that is ending.
        Ok(Response::Error(error)) => Err(Unanswered::Failed(format!("the agent says: {}", error.message))),
        Ok(_) => Err(Unanswered::Failed("the agent answered something else".to_owned())),
        Err(error) => Err(Unanswered::Failed(format!(
            "cannot understand the agent's answer: {error}"
        ))),
    }
}

/// Connects. Where the listener's queue is full the kernel waits as long as a write may.
fn open(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::SendTimeout, &timeval(left(deadline)?))?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(UnixStream::from(socket))
}

fn converse(stream: UnixStream, request: CniRequest, deadline: Instant) -> io::Result<String> {
    let mut line = serde_json::to_vec(&Request {
        version: VERSION,
        verb: Verb::Cni { request },
    })?;
    line.push(b'\n');
    stream.set_write_timeout(Some(left(deadline)?))?;
    (&stream).write_all(&line)?;
    stream.set_read_timeout(Some(left(deadline)?))?;
    let mut answer = String::new();
    BufReader::new((&stream).take(MAX_ANSWER)).read_line(&mut answer)?;
    if answer.ends_with('\n') {
        return Ok(answer);
    }
    Err(io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "it ended the conversation without an answer",
    ))
}

/// Time until the deadline. Never zero, which would mean for ever.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(left.max(Duration::from_millis(1)))
}

fn timeval(duration: Duration) -> TimeVal {
    TimeVal::new(
        duration.as_secs().try_into().unwrap_or(i64::MAX),
        duration.subsec_micros().into(),
    )
}
