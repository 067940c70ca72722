//! The datapath in the kernel: loading, attaching, taking over, growing, and leaving.
//!
//! Needs root. Packets stay within network namespaces made here.

mod batches;
mod hooks;
mod interfaces;
mod machine;
mod settle;
mod tables;
mod takeover;

/// Both are moved into threads of their own.
const _: fn() = || {
    fn can_move<T: Send>() {}
    can_move::<weir::datapath::Datapath>();
    can_move::<weir::datapath::Sweeper>();
};
