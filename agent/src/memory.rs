//! How the process keeps its memory: small, since it runs on every node, and most of what a first sync takes (texts, JSON
//! trees, tables on their way to a larger size) is needed for a moment only.

/// Sets up the allocator. Before any thread is started.
///
/// One heap instead of one per thread: what the source's thread allocates is freed by the loop's, and in heaps of their
/// own the holes of one are of no use to another. Contention is no concern: small pieces come from caches of each thread.
/// Large pieces always get pages of their own, which go back when they are freed. (By default glibc stops that as soon as
/// the first of them is freed, and a table that grows leaves its earlier sizes behind as holes.)
pub fn economize() {
    #[cfg(target_env = "gnu")]
    {
        const LARGE: libc::c_int = 256 << 10;
        for (parameter, value) in [
            (libc::M_ARENA_MAX, 1),
            (libc::M_MMAP_THRESHOLD, LARGE),
            (libc::M_TRIM_THRESHOLD, LARGE),
        ] {
            // SAFETY: mallopt takes two integers, and no other thread is there yet. A parameter that it refuses stays as it
            // was, which costs memory only.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}

/// Gives pages that hold nothing any more back to the kernel. Takes some milliseconds with a large heap: not in the way
/// of a change.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes an integer, touches free memory only, and holds the allocator's own lock meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
}
