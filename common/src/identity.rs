//! Address -> identity -> class: who a peer is, as far as policies can tell.

use crate::{Addr, pod};

/// Value of the address map (exact pod and node addresses) and of the CIDR trie.
///
/// Eight bytes, read as one word: an element that is recycled for another address between lookup and read shows by
/// its tag.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AddressEntry {
    /// Index into the identity array.
    pub identity: u32,
    /// Last word of the address (exact map only).
    pub tag: u32,
}

/// Value of the identity array.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct IdentityEntry {
    pub class: u32,
    /// [`IdentityEntry::LOCAL_NODE`] or 0.
    pub flags: u32,
}

impl IdentityEntry {
    /// The address is one of this node's own: packets that the node itself originates are exempt.
    pub const LOCAL_NODE: u32 = 1;
}

/// The class of an address that no map knows (which does not happen: the trie holds both families' roots).
pub const CLASS_UNKNOWN: u32 = 0;

/// Longest-prefix key of source addresses that an endpoint may use besides its own (allowedSourcePrefixes).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceKey {
    /// Endpoint id; matched whole, so any byte order does.
    pub endpoint: u32,
    pub addr: Addr,
}

/// Bits of [`SourceKey`] before the address.
pub const SOURCE_KEY_PREFIX: u32 = 32;

const _: () = assert!(size_of::<AddressEntry>() == 8);
const _: () = assert!(size_of::<IdentityEntry>() == 8);
const _: () = assert!(size_of::<SourceKey>() == 20);
pod!(AddressEntry, IdentityEntry, SourceKey);
