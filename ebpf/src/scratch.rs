//! Working memory: the stack's 512 bytes are not enough.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use weir_common::{
    Direction,
    conntrack::{CtEntry, CtKey},
    event::DenialEntry,
    reason::Reason,
};

use crate::{
    endpoint::Endpoint,
    flow::Flow,
    parse::{Network, transport::Transport},
    policy::{Answer, Question},
    related::Quoted,
    stage::memory,
};

/// What is known of the packet in hand, and what is being built because of it. Nothing in it outlives the packet.
///
/// A program that keeps its variables here is also quicker to verify: the verifier does not tell one value from
/// another in a map, so it does not walk the same code once for each.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Scratch {
    /// What becomes of the packet, on its way to the exit.
    pub reason: Reason,
    pub endpoint: Endpoint,
    pub flow: Flow,
    pub network: Network,
    pub header: Transport,
    pub quoted: Quoted,
    /// The other end's key of the flow in hand, where that end is a pod of this node too.
    pub mirror: CtKey,
    pub open: Open,
    pub denial: DenialEntry,
}

/// What judging a flow needs.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Open {
    pub question: Question,
    pub answer: Answer,
    /// Until when the endpoint's connections are adopted.
    pub adopt_until: u64,
    pub entry: CtEntry,
}

/// One for each direction. TC programs run with bottom halves disabled, so no two of one hook share a processor.
#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(2, 0);

/// A stage's own way to the working memory that its caller hands over.
///
/// Before kernel commit d1673304097c (Linux 6.2) keys and values for maps must lie on the stack or in a map, and what a
/// stage's argument points to is neither as far as the verifier knows. The argument is there all the same: without it
/// the compiler would not know that a stage changes what it points to.
///
/// # Safety
/// `scratch` is null, or what [`of`] gave to the caller, with the packet's direction in it.
#[inline(always)]
pub unsafe fn own<'a>(scratch: *mut Scratch) -> Option<&'a mut Scratch> {
    // SAFETY: the caller's promise.
    of(unsafe { memory(scratch) }?.flow.direction())
}

/// This processor's working memory for packets of one direction.
#[inline(always)]
pub fn of(direction: Direction) -> Option<&'static mut Scratch> {
    // SAFETY: array elements live as long as their map, all of `Scratch` is plain data, and nobody else has this
    // processor's element now (see above).
    SCRATCH
        .get_ptr_mut(direction as u32)
        .map(|scratch| unsafe { &mut *scratch })
}
