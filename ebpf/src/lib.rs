//! What Weir's eBPF programs do with a packet.
//!
//! ```text
//! endpoint ─> parse ─> link control, closed, source ─> fragment ─> connection ─┬─> established ─────────> verdict
//!                                                                              └─> policy ─> new entry ─┘
//! ```
//!
//! The library compiles for the host as well as for the BPF target, so its logic is unit-tested with plain `cargo
//! test`. Maps stand beside the only module that uses them; `verdict` is the only exit.
//! The larger parts are stages, which the verifier checks once each (`stage`).
#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod conntrack;
mod counters;
mod direct;
mod endpoint;
mod event;
mod flow;
mod fragment;
mod kernel;
mod open;
mod packet;
mod parse;
mod policy;
mod program;
mod related;
mod scratch;
mod source;
mod stage;
mod verdict;

pub use packet::Skb;
pub use program::run;
