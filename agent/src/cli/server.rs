//! The agent's end of the socket.
//!
//! Every connection is a task of its own with limits on size, number and time, so that no client can hold up anything
//! but itself.

use std::{
    io,
    os::fd::AsRawFd,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket},
        stat::{Mode, fchmod},
    },
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, oneshot},
    time::timeout,
};
use tracing::{debug, warn};

use super::protocol::{self, MAX_REQUEST, Request, Response, VERSION, Verb};
use crate::{
    cni::attachment::CniRequest,
    control::query::{Query, QueryError, QuerySender},
    flow::{
        filter::Filter,
        hub::{Hub, Item, RECENT},
    },
    metrics::Instruments,
};

/// Connections at once: readers of flows, and the plugin for as many pods as a node may start together.
const MAX_CLIENTS: usize = 256;

/// For the request to arrive, and for the control loop to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// For a client to take what was sent to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// All that the socket and the health port need of the agent.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    pub queries: QuerySender,
    pub flows: Arc<Hub>,
    /// Name of the node, for lines about lost records.
    pub node: Arc<str>,
    pub instruments: Arc<Instruments>,
}

impl ControlHandle {
    /// Asks the control loop.
    ///
    /// # Errors
    /// It has ended, or does not answer in time.
    pub async fn ask<T>(
        &self,
        patience: Duration,
        query: impl FnOnce(oneshot::Sender<T>) -> Query,
    ) -> Result<T, QueryError> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.queries.send(query(reply)).await.ok()?;
            answer.await.ok()
        };
        match timeout(patience, asked).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(QueryError::new("the agent is shutting down")),
            Err(_) => Err(
                QueryError::new(format!("the agent did not answer within {} s", patience.as_secs()))
                    .remedy("it may be busy with a large change: try again, and look at its log"),
            ),
        }
    }
}

/// Listens in the run directory, for root only. Call it with the run directory's lock held: a socket that is there
/// belongs to nobody any more.
///
/// # Errors
/// As of `bind`: the directory cannot be written, the path is longer than 107 bytes.
pub fn bind_socket(run_dir: &Path) -> io::Result<UnixListener> {
    let path = protocol::socket_path(run_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let address = UnixAddr::new(&path).map_err(|errno| match errno {
        Errno::ENAMETOOLONG => io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{} is too long for a socket: choose a shorter --run-dir",
                path.display()
            ),
        ),
        other => other.into(),
    })?;
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    // Before bind, the mode of the socket becomes the mode of the file: at no moment can others connect.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &address)?;
    listen(&socket, Backlog::new(128).unwrap_or(Backlog::MAXCONN))?;
    UnixListener::from_std(socket.into())
}

/// Answers until it is dropped.
pub async fn serve(listener: UnixListener, handle: ControlHandle) {
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        // Waiting for a place before accepting leaves the others in the kernel's queue.
        let Ok(place) = clients.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let handle = handle.clone();
                tokio::spawn(async move {
                    if let Err(error) = client(stream, &handle).await {
                        debug!("socket client: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, for example: that passes, and must not spin.
                warn!("cannot accept on the agent's socket: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn client(stream: UnixStream, handle: &ControlHandle) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(MAX_REQUEST));
    let mut line = Vec::new();
    match timeout(TIMEOUT, reader.read_until(b'\n', &mut line)).await {
        Ok(read) => read?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let request = match parse(&line) {
        Ok(request) => request,
        Err(error) => return respond(&mut writer, &Response::Error(error)).await,
    };
    match request.verb {
        Verb::Flows { follow, last, filter } => {
            // A reader that hangs up while there is nothing to send is noticed by the end of its half.
            let hangup = async {
                let mut rest = [0; 64];
                // Whatever else it sends is too much, and means the same.
                let _ = reader.get_mut().get_mut().read(&mut rest).await;
            };
            tokio::pin!(hangup);
            flows(&mut writer, handle, follow, last, filter, hangup).await
        }
        verb => respond(&mut writer, &answer(verb, handle).await).await,
    }
}

fn parse(line: &[u8]) -> Result<Request, QueryError> {
    if line.last() != Some(&b'\n') {
        return Err(QueryError::new(format!(
            "the request is no line of at most {MAX_REQUEST} bytes"
        )));
    }
    // The version first: a request of another one need not parse.
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let malformed = |error: serde_json::Error| QueryError::new(format!("cannot understand the request: {error}"));
    let Version { version } = serde_json::from_slice(line).map_err(malformed)?;
    if version != VERSION {
        return Err(QueryError::new(format!(
            "the agent speaks version {VERSION} of its protocol, the request is of version {version}"
        ))
        .remedy("use the weir binary that the agent runs from"));
    }
    serde_json::from_slice(line).map_err(malformed)
}

async fn answer(verb: Verb, handle: &ControlHandle) -> Response {
    let answer = match verb {
        Verb::Status => handle
            .ask(TIMEOUT, Query::Status)
            .await
            .map(|report| Response::Status(Box::new(report))),
        Verb::Wait { timeout_ms } => {
            let wait = Duration::from_millis(timeout_ms.min(protocol::MAX_WAIT));
            let deadline = Instant::now() + wait;
            handle
                .ask(wait + TIMEOUT, |reply| Query::Wait { deadline, reply })
                .await
                .map(Response::Wait)
        }
        Verb::Explain { request } => handle
            .ask(TIMEOUT, |reply| Query::Explain { request, reply })
            .await
            .and_then(|answer| answer)
            .map(|explanation| Response::Explain(Box::new(explanation))),
        Verb::Dump { what } => handle
            .ask(TIMEOUT, |reply| Query::Dump { what, reply })
            .await
            .and_then(|answer| answer)
            .map(Response::Dump),
        Verb::Detach => handle
            .ask(TIMEOUT, Query::Detach)
            .await
            .and_then(|answer| answer)
            .map(Response::Detach),
        Verb::Cni { request } => {
            let wait = match &request {
                CniRequest::Add { timeout_ms, .. } => Duration::from_millis((*timeout_ms).min(protocol::MAX_WAIT)),
                _ => Duration::ZERO,
            };
            let deadline = Instant::now() + wait;
            handle
                .ask(wait + TIMEOUT, |reply| Query::Cni {
                    request,
                    deadline,
                    reply,
                })
                .await
                .map(Response::Cni)
        }
        Verb::Flows { .. } => Err(QueryError::new("flows is a stream")),
    };
    answer.unwrap_or_else(Response::Error)
}

async fn flows(
    writer: &mut (impl AsyncWriteExt + Unpin),
    handle: &ControlHandle,
    follow: bool,
    last: usize,
    filter: Filter,
    mut hangup: impl Future<Output = ()> + Unpin,
) -> io::Result<()> {
    let recording = *handle.flows.wanted().borrow();
    let last = last.min(RECENT);
    if !follow {
        let recent = handle.flows.recent(&filter, last);
        respond(
            writer,
            &Response::Flows {
                recent: recent.len(),
                recording,
            },
        )
        .await?;
        return write_items(writer, handle, recent.into_iter().map(Item::Record)).await;
    }
    let (recent, mut subscription) = handle.flows.subscribe(filter, last);
    respond(
        writer,
        &Response::Flows {
            recent: recent.len(),
            recording,
        },
    )
    .await?;
    write_items(writer, handle, recent.into_iter().map(Item::Record)).await?;
    loop {
        let item = tokio::select! {
            item = subscription.next() => item,
            () = &mut hangup => return Ok(()),
        };
        let Some(item) = item else {
            return Ok(());
        };
        let more = std::iter::from_fn(|| subscription.try_next()).take(1024);
        write_items(writer, handle, std::iter::once(item).chain(more)).await?;
    }
}

async fn write_items(
    writer: &mut (impl AsyncWriteExt + Unpin),
    handle: &ControlHandle,
    items: impl Iterator<Item = Item>,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    for item in items {
        item.write_line(&handle.node, &mut buffer);
        if buffer.len() >= 64 * 1024 {
            write(writer, &buffer).await?;
            buffer.clear();
        }
    }
    write(writer, &buffer).await
}

async fn respond(writer: &mut (impl AsyncWriteExt + Unpin), response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    write(writer, &line).await
}

async fn write(writer: &mut (impl AsyncWriteExt + Unpin), bytes: &[u8]) -> io::Result<()> {
    match timeout(WRITE_TIMEOUT, writer.write_all(bytes)).await {
        Ok(written) => written,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
