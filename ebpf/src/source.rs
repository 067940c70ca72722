//! A pod sends from its own addresses only.

use aya_ebpf::{
    macros::map,
    maps::{LpmTrie, lpm_trie::Key},
};
use weir_common::{
    endpoint::EndpointEntry,
    identity::{SOURCE_KEY_PREFIX, SourceKey},
    reason::Reason,
};

use crate::{endpoint::Endpoint, flow::same, parse::Network};

#[map]
static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::with_max_entries(4096, 0);

/// Checks the source address of a packet that the pod sent.
///
/// # Errors
/// [`Reason::SpoofedSource`], or [`Reason::Unstable`].
#[inline(always)]
pub fn check(endpoint: &mut Endpoint, network: &Network) -> Result<(), Reason> {
    if endpoint.has(EndpointEntry::ANY_SOURCE) {
        return Ok(());
    }
    let mut own = endpoint.address(network.v4);
    if !endpoint.is_current() {
        if !endpoint.refresh() {
            return Err(Reason::Unstable);
        }
        own = endpoint.address(network.v4);
        if !endpoint.is_current() {
            return Err(Reason::Unstable);
        }
    }
    let unspecified = own.0[0] | own.0[1] | own.0[2] | own.0[3] == 0;
    if same(&network.source, &own) && !unspecified {
        return Ok(());
    }
    other(endpoint, network)
}

/// Checks a source that is not the endpoint's address.
#[inline(never)]
fn other(endpoint: &Endpoint, network: &Network) -> Result<(), Reason> {
    // Every IPv6 interface has a link-local address of its own choice; it is good for talking on the link only.
    if !network.v4
        && network.source.is_v6_link_local()
        && (network.destination.is_v6_link_local() || network.destination.is_multicast())
    {
        return Ok(());
    }
    if endpoint.has(EndpointEntry::MORE_SOURCES) {
        let key = Key::new(
            SOURCE_KEY_PREFIX + 128,
            SourceKey {
                endpoint: endpoint.id(),
                addr: network.source,
            },
        );
        if SOURCES.get(&key).is_some() {
            return Ok(());
        }
    }
    Err(Reason::SpoofedSource)
}
