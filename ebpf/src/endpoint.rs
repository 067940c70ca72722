//! Whose interface a packet passes.

use aya_ebpf::{macros::map, maps::HashMap};
use weir_common::{Addr, Direction, endpoint::EndpointEntry, policy::DirectionPolicy, reason::Reason};

use crate::kernel;

#[map]
static ENDPOINTS: HashMap<u32, EndpointEntry> = HashMap::with_max_entries(4096, 0);

/// Which version of an endpoint a packet is judged by, and the part of it that every packet needs.
///
/// The endpoint's map element can be recycled for another endpoint while it is read. It is always written whole, from its first
/// word to its last. So who reads the last word first, then what it wants, then the first word, and finds the two
/// words equal, has read one version. (Loads are not reordered with loads on x86-64; elsewhere this rests on the
/// helper calls between them.)
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Endpoint {
    stamp: u64,
    ifindex: u32,
    flags: u32,
}

macro_rules! field {
    ($entry:expr, $($field:tt)+) => {{
        let entry: *const EndpointEntry = $entry;
        // SAFETY: `entry` came out of the map for this program run, all its fields are plain integers, and who
        // reads them checks the stamps afterwards.
        unsafe { kernel::read(&raw const (*entry).$($field)+) }
    }};
}

impl Endpoint {
    /// Finds the endpoint behind an interface; returns its map element.
    ///
    /// # Errors
    /// [`Reason::NoEndpoint`], or [`Reason::Unstable`] where the value changed during two reads.
    #[inline(always)]
    pub fn find(&mut self, ifindex: u32) -> Result<*const EndpointEntry, Reason> {
        let mut tries = 0;
        loop {
            let Some(entry) = ENDPOINTS.get_ptr(&ifindex) else {
                return Err(Reason::NoEndpoint);
            };
            let stamp = field!(entry, stamp_end);
            let found = field!(entry, ifindex);
            let flags = field!(entry, flags);
            if field!(entry, stamp) == stamp && found == ifindex {
                self.stamp = stamp;
                self.ifindex = ifindex;
                self.flags = flags;
                return Ok(entry);
            }
            tries += 1;
            if tries == 2 {
                return Err(Reason::Unstable);
            }
        }
    }

    #[inline(always)]
    pub const fn id(&self) -> u32 {
        (self.stamp >> 32) as u32
    }

    #[inline(always)]
    pub const fn epoch(&self) -> u32 {
        self.stamp as u32
    }

    #[inline(always)]
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }

    /// Nothing may pass in this direction.
    #[inline(always)]
    pub const fn is_closed(&self, direction: Direction) -> bool {
        self.has(match direction {
            Direction::Egress => EndpointEntry::EGRESS_CLOSED,
            Direction::Ingress => EndpointEntry::INGRESS_CLOSED,
        })
    }

    /// Some policy selects the endpoint in this direction.
    #[inline(always)]
    pub const fn is_isolated(&self, direction: Direction) -> bool {
        self.has(match direction {
            Direction::Egress => EndpointEntry::EGRESS_ISOLATED,
            Direction::Ingress => EndpointEntry::INGRESS_ISOLATED,
        })
    }

    /// True while the element still holds the version that was read.
    #[inline(always)]
    pub fn is_current(&self, entry: *const EndpointEntry) -> bool {
        field!(entry, stamp) == self.stamp
    }

    /// Looks the endpoint up again after it changed; `None` where the interface has another owner by now.
    #[inline(always)]
    pub fn refresh(&mut self) -> Option<*const EndpointEntry> {
        let old = *self;
        match self.find(old.ifindex) {
            Ok(entry) if self.id() == old.id() => Some(entry),
            _ => {
                *self = old;
                None
            }
        }
    }

    /// The endpoint's own address of one family. The caller asks [`Self::is_current`] afterwards.
    #[inline(always)]
    pub fn address(entry: *const EndpointEntry, v4: bool) -> Addr {
        if v4 { field!(entry, addr4) } else { field!(entry, addr6) }
    }

    /// The policy of one direction. The caller asks [`Self::is_current`] after reading it.
    #[inline(always)]
    pub const fn policy(entry: *const EndpointEntry, direction: Direction) -> *const DirectionPolicy {
        match direction {
            // SAFETY: a live map element; only addresses are computed.
            Direction::Egress => unsafe { &raw const (*entry).egress },
            // SAFETY: as above.
            Direction::Ingress => unsafe { &raw const (*entry).ingress },
        }
    }

    /// Until when connections are adopted. The caller asks [`Self::is_current`] afterwards.
    #[inline(always)]
    pub fn adopt_until(entry: *const EndpointEntry) -> u64 {
        field!(entry, adopt_until)
    }
}
