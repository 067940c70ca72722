//! The eBPF programs in the kernel, one packet at a time: every way through the parser and every verdict.
//!
//! Needs root. Sends nothing: packets are handed to the programs by `BPF_PROG_TEST_RUN`.

mod compiled;
mod connections;
mod direct;
mod events;
mod fragments;
mod icmp;
mod malformed;
mod parsing;
mod policy;
mod sources;
mod verifier;
mod world;
