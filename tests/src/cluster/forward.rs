//! A way from the machine's loopback to the API server, which listens in a namespace: a kubeconfig that any program on
//! the machine can use.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread,
};

use anyhow::{Context, Result};
use nix::sys::socket::{Shutdown as Both, shutdown};

use super::place;
use crate::lab::netns::NetNs;

/// Serves a listener's connections until it is closed, each by one into the namespace.
pub fn forward(listener: &TcpListener, netns: &NetNs) -> Result<()> {
    netns.run(|| {
        let [address, _] = place::control();
        let server = SocketAddr::new(address, place::API_PORT);
        loop {
            let client = match listener.accept() {
                Ok((client, _)) => client,
                // Closed: see `Forward`.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accept a connection to the API server"),
            };
            // Down for the moment: the client hears it by the end of its connection.
            let Ok(server) = TcpStream::connect(server) else {
                continue;
            };
            // A new thread keeps the namespace, but the sockets are made already.
            if let Err(error) = join(client, server) {
                eprintln!("cluster: forward a connection to the API server: {error}");
            }
        }
    })
}

fn join(client: TcpStream, server: TcpStream) -> io::Result<()> {
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    let (from, to) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || copy(&from, &to));
    thread::spawn(move || copy(&server, &client));
    Ok(())
}

/// Copies one direction. Its end, whatever kind, is the other side's end too.
fn copy(mut from: &TcpStream, mut to: &TcpStream) {
    if io::copy(&mut from, &mut to).is_ok() {
        let _ = to.shutdown(Shutdown::Write);
    } else {
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}

/// A thread that forwards; it ends with this value.
#[derive(Debug)]
pub struct Forward {
    listener: TcpListener,
    thread: Option<thread::JoinHandle<()>>,
}

impl Forward {
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(listener: TcpListener, netns: NetNs) -> Result<Self> {
        let own = listener.try_clone().context("duplicate a listener")?;
        let thread = thread::Builder::new()
            .name("api-forward".into())
            .spawn(move || {
                if let Err(error) = forward(&own, &netns) {
                    eprintln!("cluster: {error:#}");
                }
            })
            .context("start the thread that forwards to the API server")?;
        Ok(Self {
            listener,
            thread: Some(thread),
        })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // Wakes the thread with "invalid input".
        let _ = shutdown(self.listener.as_raw_fd(), Both::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
