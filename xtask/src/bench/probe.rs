//! A flow of packets that shows when a verdict changes.

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::node::Pod;

/// So many probes in a row with one verdict: what one lost packet cannot pretend.
const CERTAIN: usize = 5;

/// How long a change may take before the run is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the sender does until the next packet is due.
#[derive(Clone, Copy)]
pub enum Between {
    /// It looks whether the packet has arrived, all the time.
    Look(Duration),
    /// It sleeps: somebody else needs the CPU.
    Sleep(Duration),
}

/// A flow of UDP packets, and what becomes of each. Delivery between two pods of one node is part of sending, so whether a
/// packet arrived is known before the next is sent.
pub struct Probe {
    sender: UdpSocket,
    receiver: UdpSocket,
    sent: u64,
    between: Between,
}

impl Probe {
    pub fn new(client: &Pod, server: &Pod, between: Between) -> Result<Self> {
        let receiver = server.netns.run(|| Ok(UdpSocket::bind((server.address, 5_300))?))?;
        let sender = client.netns.run(|| Ok(UdpSocket::bind((client.address, 5_301))?))?;
        receiver.set_nonblocking(true)?;
        let address: SocketAddr = receiver.local_addr()?;
        sender.connect(address)?;
        if let Between::Sleep(_) = between {
            // Sleeps end when they should, not 50 µs later.
            nix::sys::prctl::set_timerslack(1)?;
        }
        Ok(Self {
            sender,
            receiver,
            sent: 0,
            between,
        })
    }

    /// Sends one packet; returns when, and whether it had arrived when the next one is due.
    fn one(&mut self) -> Result<(Instant, bool)> {
        self.sent += 1;
        let at = Instant::now();
        self.sender.send(&self.sent.to_ne_bytes()).context("sending a probe")?;
        let arrived = match self.between {
            Between::Look(time) => {
                let mut arrived = self.has_arrived();
                while at.elapsed() <= time {
                    arrived = arrived || self.has_arrived();
                }
                arrived
            }
            Between::Sleep(time) => {
                thread::sleep(time.saturating_sub(at.elapsed()));
                self.has_arrived()
            }
        };
        Ok((at, arrived))
    }

    /// Whether the last packet is among those that wait at the receiver.
    fn has_arrived(&self) -> bool {
        let mut seen = [0; 8];
        let mut arrived = false;
        while let Ok(8) = self.receiver.recv(&mut seen) {
            arrived |= u64::from_ne_bytes(seen) == self.sent;
        }
        arrived
    }

    /// Sends until the verdict is certain; returns when the first packet that met it was sent.
    pub fn expect(&mut self, allow: bool) -> Result<Instant> {
        let start = Instant::now();
        let mut first = None;
        let mut in_a_row = 0;
        while start.elapsed() < PATIENCE {
            let (at, arrived) = self.one()?;
            if arrived == allow {
                in_a_row += 1;
                let first = *first.get_or_insert(at);
                if in_a_row == CERTAIN {
                    return Ok(first);
                }
            } else {
                (first, in_a_row) = (None, 0);
            }
        }
        let wanted = if allow { "allowed" } else { "forbidden" };
        bail!("packets were not {wanted} within {PATIENCE:?}")
    }

    /// Sends for this long, while nothing changes.
    pub fn pause(&mut self, allow: bool, time: Duration) -> Result<()> {
        let pause = Instant::now();
        while pause.elapsed() < time {
            let (_, arrived) = self.one()?;
            ensure!(
                arrived == allow,
                "a verdict changed before anything was written, or a packet was lost"
            );
        }
        Ok(())
    }
}
