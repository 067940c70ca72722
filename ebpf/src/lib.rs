//! What Weir's eBPF programs do with a packet.
//!
//! The library compiles for the host as well as for the BPF target, so its logic is unit-tested with plain `cargo test`.
#![cfg_attr(target_arch = "bpf", no_std)]
