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

/// Gives pages that hold nothing any more back to the kernel, and lets go of those of the program. Takes some milliseconds
/// with a large heap: not in the way of a change.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes an integer, touches free memory only, and holds the allocator's own lock meanwhile.
    unsafe {
        libc::malloc_trim(0);
    }
    release_program();
}

/// Lets go of the pages of the program and its libraries that are as their files have them. Most of them only a start
/// needs: the command line, the object that is loaded into the kernel, lists of whole clusters. What is run again is
/// mapped again from the page cache, 16 pages at once, which takes a microsecond.
fn release_program() {
    #[cfg(target_os = "linux")]
    // SAFETY: `release_segments` is of the type that is called, and takes no data.
    unsafe {
        libc::dl_iterate_phdr(Some(release_segments), std::ptr::null_mut());
    }
}

/// Of one program or library: the segments that are never written.
#[cfg(target_os = "linux")]
unsafe extern "C" fn release_segments(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _data: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the loader hands out a description that is valid during the call, with as many headers as it says.
    let (base, headers) = unsafe {
        let info = &*info;
        (
            info.dlpi_addr as usize,
            std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()),
        )
    };
    // SAFETY: these take an integer, and read what the kernel told at the start.
    let (vdso, page) = unsafe {
        (
            libc::getauxval(libc::AT_SYSINFO_EHDR) as usize,
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    // The kernel's own piece of code is of no file.
    let page = match usize::try_from(page) {
        Ok(page) if page > 0 && base != vdso => page,
        _ => return 0,
    };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        // Whole pages only: those at the ends may be shared with what is written.
        let start = (base + header.p_vaddr as usize).next_multiple_of(page);
        let end = (base + (header.p_vaddr + header.p_filesz) as usize) / page * page;
        if start < end {
            // SAFETY: the pages belong to a private mapping of a file and are never written (the loader relocates only
            // writable segments), so they come back as they are. Where the kernel refuses, they stay.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    /// Resident pages of files, in kB.
    fn resident_files() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
        let field = status.lines().find_map(|line| line.strip_prefix("RssFile:"));
        let number = field.and_then(|field| field.split_whitespace().next()?.parse().ok());
        number.expect("a number of kilobytes")
    }

    #[test]
    fn what_is_let_go_of_is_not_resident_and_comes_back() {
        let before = resident_files();
        // Tests beside this one map their pages again.
        let after = (0..100).map(|_| {
            super::trim();
            resident_files()
        });
        assert!(after.min().is_some_and(|least| least < before / 2), "of {before} kB");
        // Code and constants are as they were.
        assert_eq!(format!("{:?}", [1.5, f64::NAN]), "[1.5, NaN]");
    }
}
