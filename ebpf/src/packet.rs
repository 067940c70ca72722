//! The packet as the hook hands it over.

use aya_ebpf::bindings::__sk_buff;

/// What the logic needs of a packet. The kernel's `__sk_buff` in the programs, a slice of bytes in unit tests.
pub trait Packet: Copy {
    /// Length in bytes from the first header that the hook shows, also of what does not lie in linear memory.
    fn len(&self) -> u32;
    /// EtherType, host order.
    fn protocol(&self) -> u16;
    /// Carries the tag of a VLAN beside its data. (Not one of VLAN 0, which says only a priority.)
    fn tagged(&self) -> bool;
    fn ifindex(&self) -> u32;
    /// The interface that the packet came in by; 0: the node itself made it.
    fn ingress_ifindex(&self) -> u32;
    /// The frame was addressed to this interface.
    fn to_host(&self) -> bool;
    /// Packets on the wire that this one stands for.
    fn segments(&self) -> u32;
    /// Not one packet of the wire, but a number of segments yet to be cut (or just merged).
    fn segmented(&self) -> bool;
    /// Copies `N` words that begin `offset` bytes into the packet; `None` where it ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]>;
}

/// The kernel's packet.
#[derive(Clone, Copy)]
pub struct Skb(*mut __sk_buff);

impl Skb {
    /// # Safety
    /// `skb` must be the context that the kernel gave to the running program.
    #[inline(always)]
    pub const unsafe fn new(skb: *mut __sk_buff) -> Self {
        Self(skb)
    }

    /// The context, to be handed to a stage.
    #[inline(always)]
    pub const fn context(self) -> *mut __sk_buff {
        self.0
    }
}

/// Bits of a tag that name the VLAN.
const VLAN_ID: u32 = 0xfff;

macro_rules! field {
    ($self:ident, $field:ident) => {
        // SAFETY: `Skb::new` was promised the running program's context; the verifier checks the field's offset.
        unsafe { (*$self.0).$field }
    };
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        field!(self, len)
    }

    #[inline(always)]
    fn protocol(&self) -> u16 {
        u16::from_be(field!(self, protocol) as u16)
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        // The kernel sets the tag aside before the programs run, and drops one of VLAN 0 after them (IEEE 802.1Q 9.6).
        field!(self, vlan_present) != 0 && field!(self, vlan_tci) & VLAN_ID != 0
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        field!(self, ifindex)
    }

    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        field!(self, ingress_ifindex)
    }

    #[inline(always)]
    fn to_host(&self) -> bool {
        // PACKET_HOST (include/uapi/linux/if_packet.h)
        field!(self, pkt_type) == 0
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        let segments = field!(self, gso_segs);
        if segments == 0 { 1 } else { segments }
    }

    #[inline(always)]
    fn segmented(&self) -> bool {
        field!(self, gso_size) != 0
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        /// Offsets up to here are good for direct access: the verifier wants a bound.
        const NEAR: u32 = 0x7fff;
        let mut words = core::mem::MaybeUninit::<[u32; N]>::uninit();
        if offset <= NEAR {
            let start = field!(self, data) as usize + offset as usize;
            if start + 4 * N <= field!(self, data_end) as usize {
                let mut direct = [0; N];
                let mut i = 0;
                while i < N {
                    // SAFETY: the word lies before the end of the packet's linear data. It is read by one load of
                    // four bytes, aligned or not, which all machines can that we are built for (x86-64, arm64);
                    // on others the verifier refuses the program.
                    direct[i] = unsafe { crate::kernel::read((start as *const u32).add(i)) };
                    i += 1;
                }
                return Some(direct);
            }
        }
        // SAFETY: the buffer holds 4 * N bytes, and the helper fills it whole or fails; any bits are valid words.
        unsafe {
            let result = aya_ebpf::helpers::generated::bpf_skb_load_bytes(
                self.0.cast(),
                offset,
                words.as_mut_ptr().cast(),
                4 * N as u32,
            );
            if result == 0 { Some(words.assume_init()) } else { None }
        }
    }
}

#[cfg(test)]
pub mod test {
    use super::Packet;

    /// A packet in plain memory.
    pub struct Bytes {
        pub data: Vec<u8>,
        pub protocol: u16,
        pub tagged: bool,
        pub segmented: bool,
    }

    impl Bytes {
        /// A packet that begins with its network header.
        pub fn layer3(data: Vec<u8>) -> Self {
            let protocol = if data.first().is_some_and(|byte| byte >> 4 == 6) {
                0x86dd
            } else {
                0x0800
            };
            Self {
                data,
                protocol,
                tagged: false,
                segmented: false,
            }
        }
    }

    impl Packet for &Bytes {
        fn len(&self) -> u32 {
            self.data.len() as u32
        }

        fn protocol(&self) -> u16 {
            self.protocol
        }

        fn tagged(&self) -> bool {
            self.tagged
        }

        fn ifindex(&self) -> u32 {
            1
        }

        fn ingress_ifindex(&self) -> u32 {
            0
        }

        fn to_host(&self) -> bool {
            true
        }

        fn segments(&self) -> u32 {
            1
        }

        fn segmented(&self) -> bool {
            self.segmented
        }

        fn load<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
            let bytes = self.data.get(offset as usize..)?.get(..4 * N)?;
            let mut words = [0_u32; N];
            for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
                *word = u32::from_ne_bytes(bytes.try_into().expect("chunks of four"));
            }
            Some(words)
        }
    }
}
