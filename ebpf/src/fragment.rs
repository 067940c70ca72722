//! Fragments follow their first one, which alone carries ports.

use aya_ebpf::{macros::map, maps::LruHashMap};
use weir_common::{
    fragment::{FRAGMENT_LIFETIME, FragmentEntry, FragmentKey},
    policy::IPPROTO_TCP,
    reason::Reason,
};

use crate::{
    kernel,
    parse::{Network, transport::Transport},
    scratch::{Scratch, own},
    stage::stage,
};

#[map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentEntry> = LruHashMap::with_max_entries(8192, 0);

stage! {
    /// Makes a first fragment known, or completes a later one by what its first said. 0 where the fragment must be
    /// dropped, for the reason in the working memory.
    pub fn weir_fragment(scratch: *mut Scratch) -> u32 {
        // SAFETY: this packet's working memory.
        let Some(scratch) = (unsafe { own(scratch) }) else {
            return 0;
        };
        let Scratch { reason, flow, network, header, .. } = scratch;
        match follow(flow.key.endpoint(), flow.now, network, header) {
            Ok(()) => 1,
            Err(error) => {
                *reason = error;
                0
            }
        }
    }
}

/// # Errors
/// The fragment's reason to be dropped.
#[inline(always)]
fn follow(endpoint: u32, now: u64, network: &mut Network, transport: &mut Transport) -> Result<(), Reason> {
    let key = FragmentKey {
        endpoint_protocol: endpoint << 8 | network.fragment_protocol as u32,
        id: network.fragment_id,
        source: network.source,
        destination: network.destination,
    };
    let known = match FRAGMENTS.get_ptr(&key) {
        Some(found) => {
            let entry = read(found);
            // Still there after the read: so it was not recycled for another datagram meanwhile.
            if FRAGMENTS.get_ptr(&key) == Some(found) && entry.expires > now {
                Some(entry)
            } else {
                None
            }
        }
        None => None,
    };
    if network.fragment_offset == 0 {
        let entry = first(known, network, transport, now)?;
        return FRAGMENTS.insert(&key, &entry, 0).map_err(|_| Reason::FragmentOrphan);
    }
    let entry = later(known, network)?;
    network.protocol = entry.protocol;
    transport.source_port = entry.source_port;
    transport.destination_port = entry.destination_port;
    transport.icmp = entry.icmp;
    transport.flags = 0;
    transport.tcp_flags = 0;
    Ok(())
}

#[inline(always)]
fn read(entry: *const FragmentEntry) -> FragmentEntry {
    // SAFETY: the pointer came out of the map in this program run; the type is plain data.
    unsafe { kernel::read(entry) }
}

/// What a first fragment, whose transport header is whole, makes known.
#[inline(always)]
fn first(
    known: Option<FragmentEntry>,
    network: &Network,
    transport: &Transport,
    now: u64,
) -> Result<FragmentEntry, Reason> {
    let entry = FragmentEntry {
        expires: now + FRAGMENT_LIFETIME,
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        header: (network.transport - network.fragment_start) as u16 + transport.header,
        icmp: transport.icmp,
        protocol: network.protocol,
        pad: [0; 7],
    };
    match known {
        Some(known)
            if known.source_port != entry.source_port
                || known.destination_port != entry.destination_port
                || known.header != entry.header
                || known.icmp != entry.icmp
                || known.protocol != entry.protocol =>
        {
            Err(Reason::FragmentDisagrees)
        }
        _ => Ok(entry),
    }
}

/// What its first fragment says of a later one, if it may follow.
#[inline(always)]
fn later(known: Option<FragmentEntry>, network: &Network) -> Result<FragmentEntry, Reason> {
    // No TCP header ends within eight bytes, so this can only mean to rewrite one (RFC 1858, RFC 3128).
    if network.fragment_protocol == IPPROTO_TCP && network.fragment_offset == 8 {
        return Err(Reason::FragmentOverlap);
    }
    match known {
        None => Err(Reason::FragmentOrphan),
        Some(entry) if network.fragment_offset < entry.header as u32 => Err(Reason::FragmentOverlap),
        Some(entry) => Ok(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 5;

    fn network(offset: u32) -> Network {
        Network {
            fragment: true,
            fragment_offset: offset,
            fragment_protocol: IPPROTO_TCP,
            protocol: IPPROTO_TCP,
            fragment_start: 20,
            transport: 20,
            ..Network::default()
        }
    }

    fn transport() -> Transport {
        Transport {
            source_port: 1000,
            destination_port: 80,
            header: 32,
            ..Transport::default()
        }
    }

    #[test]
    fn a_first_fragment_lives_for_thirty_seconds_and_remembers_its_header() {
        let entry = first(None, &network(0), &transport(), NOW).expect("first of its datagram");
        assert_eq!(
            (
                entry.expires,
                entry.source_port,
                entry.destination_port,
                entry.header,
                entry.protocol
            ),
            (NOW + 30_000_000_000, 1000, 80, 32, IPPROTO_TCP)
        );
    }

    #[test]
    fn headers_behind_extension_headers_count_from_the_start_of_the_piece() {
        let network = Network {
            transport: 48,
            ..network(0)
        };
        assert_eq!(first(None, &network, &transport(), NOW).expect("first").header, 28 + 32);
    }

    #[test]
    fn a_second_first_fragment_may_only_repeat_the_first() {
        let known = first(None, &network(0), &transport(), NOW).expect("first");
        assert!(first(Some(known), &network(0), &transport(), NOW).is_ok());
        for other in [
            Transport {
                source_port: 1001,
                ..transport()
            },
            Transport {
                destination_port: 22,
                ..transport()
            },
            Transport {
                header: 20,
                ..transport()
            },
            Transport { icmp: 1, ..transport() },
        ] {
            assert_eq!(
                first(Some(known), &network(0), &other, NOW),
                Err(Reason::FragmentDisagrees)
            );
        }
    }

    #[test]
    fn a_later_fragment_starts_behind_the_transport_header() {
        let known = first(None, &network(0), &transport(), NOW).expect("first");
        assert_eq!(later(None, &network(1480)), Err(Reason::FragmentOrphan));
        assert_eq!(later(None, &network(8)), Err(Reason::FragmentOverlap));
        for offset in [8, 16, 24] {
            assert_eq!(later(Some(known), &network(offset)), Err(Reason::FragmentOverlap));
        }
        assert_eq!(later(Some(known), &network(32)), Ok(known));
    }
}
