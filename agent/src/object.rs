//! The eBPF object that build.rs compiled, embedded.

/// The bytes of the ELF object. aya parses them in place, so they are aligned as an ELF header must be.
pub static BYTES: &[u8] = {
    #[repr(C, align(32))]
    struct Aligned<Bytes: ?Sized>(Bytes);
    static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("WEIR_BPF_OBJECT")));
    &OBJECT.0
};

#[cfg(test)]
mod tests {
    use super::BYTES;

    #[test]
    fn is_an_aligned_elf_object_with_btf() {
        assert_eq!(BYTES.as_ptr().align_offset(8), 0);
        assert_eq!(&BYTES[..4], b"\x7fELF");
        let has = |name: &[u8]| BYTES.windows(name.len()).any(|bytes| bytes == name);
        assert!(
            has(b".BTF\0"),
            "no BTF: maps could not be described, nor programs shown by bpftool"
        );
        assert!(has(b"Dual BSD/GPL"), "no licence: the kernel would refuse most helpers");
    }
}
