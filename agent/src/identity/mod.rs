//! Peers (pods, sets, CIDRs, nodes) -> identities -> classes. Pure.
