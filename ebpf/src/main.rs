//! The eBPF object: program entry points, licence and panic handler. Everything else is in the library.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{macros::classifier, programs::TcContext};
    use weir_common::Direction;
    use weir_ebpf::Skb;

    /// Host ingress: what the pod sends.
    #[classifier]
    pub fn weir_from_pod(ctx: TcContext) -> i32 {
        // SAFETY: the context of this run.
        weir_ebpf::run(unsafe { Skb::new(ctx.skb.skb) }, Direction::Egress)
    }

    /// Host egress: what the pod receives.
    #[classifier]
    pub fn weir_to_pod(ctx: TcContext) -> i32 {
        // SAFETY: the context of this run.
        weir_ebpf::run(unsafe { Skb::new(ctx.skb.skb) }, Direction::Ingress)
    }

    /// The kernel hands helpers such as `bpf_probe_read_kernel` only to programs whose licence it counts as GPL.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual BSD/GPL\0";

    /// Never runs: the verifier refuses a program in which it could be reached.
    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }
}

/// The programs run in the kernel only.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
