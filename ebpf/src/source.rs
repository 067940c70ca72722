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

use crate::{
    endpoint::Endpoint,
    flow::same,
    parse::Network,
    scratch::{Scratch, own},
    stage::stage,
};

#[map]
static SOURCES: LpmTrie<SourceKey, u32> = LpmTrie::with_max_entries(4096, 0);

/// Checks the source address of a packet that the pod sent.
///
/// # Errors
/// [`Reason::SpoofedSource`], or [`Reason::Unstable`].
#[inline(always)]
pub fn check(entry: *const EndpointEntry, scratch: &mut Scratch) -> Result<(), Reason> {
    let Scratch { endpoint, network, .. } = &mut *scratch;
    if endpoint.has(EndpointEntry::ANY_SOURCE) {
        return Ok(());
    }
    let mut own = Endpoint::address(entry, network.v4);
    if !endpoint.is_current(entry) {
        let Some(entry) = endpoint.refresh() else {
            return Err(Reason::Unstable);
        };
        own = Endpoint::address(entry, network.v4);
        if !endpoint.is_current(entry) {
            return Err(Reason::Unstable);
        }
    }
    let unspecified = own.0[0] | own.0[1] | own.0[2] | own.0[3] == 0;
    if same(&network.source, &own) && !unspecified {
        return Ok(());
    }
    // SAFETY: this packet's working memory.
    if unsafe { weir_other_source(scratch) } != 0 {
        Ok(())
    } else {
        Err(Reason::SpoofedSource)
    }
}

stage! {
    /// Checks a source that is not the endpoint's address; 0 where the pod may not use it.
    pub fn weir_other_source(scratch: *mut Scratch) -> u32 {
        // SAFETY: this packet's working memory.
        match unsafe { own(scratch) } {
            Some(scratch) => is_other_source(&scratch.endpoint, &scratch.network) as u32,
            None => 0,
        }
    }
}

#[inline(always)]
fn is_other_source(endpoint: &Endpoint, network: &Network) -> bool {
    // Every IPv6 interface has a link-local address of its own choice; it is good for talking on the link only.
    if !network.v4
        && network.source.is_v6_link_local()
        && (network.destination.is_v6_link_local() || network.destination.is_multicast())
    {
        return true;
    }
    if endpoint.has(EndpointEntry::MORE_SOURCES) {
        let key = Key::new(
            SOURCE_KEY_PREFIX + 128,
            SourceKey {
                endpoint: endpoint.id(),
                addr: network.source,
            },
        );
        return SOURCES.get(&key).is_some();
    }
    false
}
