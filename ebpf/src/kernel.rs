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

/// Copies plain memory of a multiple of eight bytes word by word. (Rust's own copies of more than a few words become
/// calls of a byte loop on this target.)
///
/// # Safety
/// Both must point to live memory of `T`, which is aligned to eight, without padding, and not overlapping.
#[inline(always)]
pub unsafe fn copy<T>(from: *const T, to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let mut i = 0;
    while i < size_of::<T>() / 8 {
        // SAFETY: the caller's promise.
        unsafe { write(to.cast::<u64>().add(i), read(from.cast::<u64>().add(i))) };
        i += 1;
    }
}

/// Copies plain memory of a multiple of four bytes word by word.
///
/// # Safety
/// As [`copy`], with an alignment of four.
#[inline(always)]
pub unsafe fn copy_words<T>(from: *const T, to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(4) && align_of::<T>() >= 4) };
    let mut i = 0;
    while i < size_of::<T>() / 4 {
        // SAFETY: the caller's promise.
        unsafe { write(to.cast::<u32>().add(i), read(from.cast::<u32>().add(i))) };
        i += 1;
    }
}

/// Makes plain memory of a multiple of four bytes zero, word by word. (What Rust and LLVM make of several zeros in a row
/// is a call of a byte loop on this target.)
///
/// # Safety
/// `to` must point to live memory of `T`, which is aligned to four, and valid with all bits zero.
#[inline(always)]
pub unsafe fn clear_words<T>(to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(4) && align_of::<T>() >= 4) };
    let mut i = 0;
    while i < size_of::<T>() / 4 {
        // SAFETY: the caller's promise.
        unsafe { write(to.cast::<u32>().add(i), 0) };
        i += 1;
    }
}

/// As [`clear_words`], of a multiple of eight bytes.
///
/// # Safety
/// As [`clear_words`], with an alignment of eight.
#[inline(always)]
pub unsafe fn clear<T>(to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) };
    let mut i = 0;
    while i < size_of::<T>() / 8 {
        // SAFETY: the caller's promise.
        unsafe { write(to.cast::<u64>().add(i), 0) };
        i += 1;
    }
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
