//! What is counted of every packet and every new flow. All per CPU: no atomics, summed by the agent.

use aya_ebpf::{
    macros::map,
    maps::{PerCpuArray, PerCpuHashMap},
};
use weir_common::{
    Direction,
    counters::{COUNTERS as COUNTERS_LENGTH, Counter, TALLIES as TALLIES_LENGTH, Tally, index},
    reason::Reason,
};

use crate::kernel;

#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(COUNTERS_LENGTH, 0);

#[map]
static TALLIES: PerCpuArray<u64> = PerCpuArray::with_max_entries(TALLIES_LENGTH, 0);

/// Elements are made by the agent, for the traces that it wants counted.
#[map]
static TRACES: PerCpuHashMap<u32, u64> = PerCpuHashMap::with_max_entries(65536, aya_ebpf::bindings::BPF_F_NO_PREALLOC);

/// Counts a packet under its reason.
#[inline(always)]
pub fn packet(reason: Reason, direction: Direction, packets: u32, bytes: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index(reason, direction)) {
        // SAFETY: this processor's own element, and programs of one hook do not interrupt each other.
        unsafe {
            (*counter).packets += packets as u64;
            (*counter).bytes += bytes as u64;
        }
    }
}

/// Counts what is no packet.
#[inline(always)]
pub fn tally(tally: Tally) {
    if let Some(counter) = TALLIES.get_ptr_mut(tally as u32) {
        // SAFETY: as above.
        unsafe { *counter += 1 }
    }
}

/// Counts a new flow under the rules that decided it.
#[inline(always)]
pub fn trace(trace: u32) {
    if let Some(counter) = TRACES.get_ptr_mut(&trace) {
        // SAFETY: a live element; it can be recycled at any time, so its word is written atomically: a wrong count
        // at worst.
        unsafe { kernel::add(counter, 1) }
    }
}
