//! The narrow doors to the kernel: its clock, and memory that it shares with other processors.

use core::ptr;

/// `CLOCK_MONOTONIC`, coarse (it moves with the timer tick, 1 to 10 ms), ns. A precise read costs six times as much.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes no arguments and is open to TC programs since 5.11.
    unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns() }
}

/// Adds to a counter that other processors add to at the same time.
///
/// # Safety
/// `counter` must point to a live, aligned map value.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, value: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise. The instruction is BPF's oldest atomic (xadd), which compilers emit for no
    // Rust construct on this target.
    unsafe {
        core::arch::asm!("lock *(u64 *)({counter} + 0) += {value}", counter = in(reg) counter, value = in(reg) value);
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        core::sync::atomic::AtomicU64::from_ptr(counter).fetch_add(value, core::sync::atomic::Ordering::Relaxed);
    }
}

/// Reads what another processor may be writing: exactly once, in the order of the program text.
///
/// # Safety
/// `value` must point to live, aligned memory, and `T` must be valid for every bit pattern.
#[inline(always)]
pub unsafe fn read<T: Copy>(value: *const T) -> T {
    // SAFETY: the caller's promise.
    unsafe { ptr::read_volatile(value) }
}

/// Writes what another processor may be reading.
///
/// # Safety
/// `value` must point to a live, aligned map value.
#[inline(always)]
pub unsafe fn write<T: Copy>(value: *mut T, new: T) {
    // SAFETY: the caller's promise.
    unsafe { ptr::write_volatile(value, new) }
}
