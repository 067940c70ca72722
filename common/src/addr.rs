//! One address type for both families, so that no code exists twice.

use crate::pod;

/// An IPv6 address, or an IPv4 address mapped into IPv6 (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2).
///
/// Four words whose bytes in memory are in network order: what a packet holds can be copied in. Words, not a `u128`
/// (whose alignment of 16 map values do not have).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr(pub [u32; 4]);

const _: () = assert!(size_of::<Addr>() == 16 && align_of::<Addr>() == 4);
pod!(Addr);

impl Addr {
    /// `::`, also "no address".
    pub const UNSPECIFIED: Self = Self([0; 4]);
    /// Third word of every mapped IPv4 address.
    pub const MAPPED: u32 = 0xffff_u32.to_be();
    /// Length of the prefix that all IPv4 addresses share.
    pub const V4_PREFIX: u32 = 96;

    /// From four bytes as they stand in an IPv4 header, read as a native word.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, Self::MAPPED, word])
    }

    /// True for a mapped IPv4 address.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::MAPPED
    }

    /// True for `fe80::/10` (RFC 4291 section 2.5.6).
    #[inline(always)]
    #[must_use]
    pub const fn is_v6_link_local(&self) -> bool {
        u32::from_be(self.0[0]) & 0xffc0_0000 == 0xfe80_0000
    }

    /// True for IPv6 multicast `ff00::/8` and IPv4 multicast `224.0.0.0/4`.
    #[inline(always)]
    #[must_use]
    pub const fn is_multicast(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) & 0xf000_0000 == 0xe000_0000
        } else {
            u32::from_be(self.0[0]) & 0xff00_0000 == 0xff00_0000
        }
    }
}

#[cfg(feature = "user")]
mod user {
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::Addr;

    impl From<Ipv6Addr> for Addr {
        fn from(ip: Ipv6Addr) -> Self {
            let octets = ip.octets();
            let mut words = [0_u32; 4];
            for (word, chunk) in words.iter_mut().zip(octets.chunks_exact(4)) {
                *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            }
            Self(words)
        }
    }

    impl From<Ipv4Addr> for Addr {
        fn from(ip: Ipv4Addr) -> Self {
            Self::from_v4_word(u32::from_ne_bytes(ip.octets()))
        }
    }

    impl From<IpAddr> for Addr {
        fn from(ip: IpAddr) -> Self {
            match ip {
                IpAddr::V4(ip) => ip.into(),
                IpAddr::V6(ip) => ip.into(),
            }
        }
    }

    impl From<Addr> for IpAddr {
        fn from(addr: Addr) -> Self {
            let mut octets = [0_u8; 16];
            for (chunk, word) in octets.chunks_exact_mut(4).zip(addr.0) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            let v6 = Ipv6Addr::from(octets);
            if addr.is_v4() {
                v6.to_ipv4_mapped().map_or(Self::V6(v6), Self::V4)
            } else {
                Self::V6(v6)
            }
        }
    }

    impl core::fmt::Display for Addr {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            IpAddr::from(*self).fmt(f)
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn both_families_survive_the_round_trip() {
            for text in [
                "10.1.2.3",
                "0.0.0.0",
                "255.255.255.255",
                "::",
                "::1",
                "2001:db8::17",
                "fe80::1",
            ] {
                let ip: IpAddr = text.parse().expect("a literal address");
                assert_eq!(IpAddr::from(Addr::from(ip)), ip);
            }
        }

        #[test]
        fn classes_of_addresses() {
            let addr = |text: &str| Addr::from(text.parse::<IpAddr>().expect("a literal address"));
            assert!(addr("10.0.0.1").is_v4() && !addr("2001:db8::1").is_v4());
            assert!(addr("fe80::1").is_v6_link_local() && !addr("fec0::1").is_v6_link_local());
            assert!(
                addr("ff02::1").is_multicast() && addr("224.0.0.1").is_multicast() && !addr("10.0.0.1").is_multicast()
            );
        }
    }
}
