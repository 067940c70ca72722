//! Policy CIDRs: they nest or are disjoint, so each address has one most specific one, its region.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    ops::RangeInclusive,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use smallvec::SmallVec;

use crate::policy::model::Family;

/// The first of the IPv4 addresses mapped into IPv6 (RFC 4291 section 2.5.5.2).
const MAPPED: u128 = 0xffff_0000_0000;
const MAPPED_LENGTH: u8 = 96;

/// An address as a number, IPv4 mapped into IPv6.
#[must_use]
pub fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => MAPPED | u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// Back from [`number`].
#[must_use]
pub fn address(number: u128) -> IpAddr {
    let v6 = Ipv6Addr::from(number);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

/// A prefix of either family, without host bits. Ordered by first address, the less specific first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    first: u128,
    length: u8,
}

impl Cidr {
    pub const V4: Self = Self {
        first: MAPPED,
        length: MAPPED_LENGTH,
    };
    pub const V6: Self = Self { first: 0, length: 0 };

    /// The prefix of a single address.
    #[must_use]
    pub const fn host(number: u128) -> Self {
        Self {
            first: number,
            length: 128,
        }
    }

    /// None for an IPv6 prefix inside the mapped addresses: no packet has such an address, and the maps mean IPv4 by it.
    #[must_use]
    pub fn new(net: IpNet) -> Option<Self> {
        match net.trunc() {
            IpNet::V4(net) => Some(Self {
                first: number(IpAddr::V4(net.network())),
                length: MAPPED_LENGTH + net.prefix_len(),
            }),
            IpNet::V6(net) => {
                let cidr = Self {
                    first: u128::from(net.network()),
                    length: net.prefix_len(),
                };
                (!Self::V4.covers(cidr)).then_some(cidr)
            }
        }
    }

    #[must_use]
    pub const fn family(self) -> Family {
        if self.length >= MAPPED_LENGTH && self.first >> 32 == MAPPED >> 32 {
            Family::V4
        } else {
            Family::V6
        }
    }

    /// The prefix that holds the whole family.
    #[must_use]
    pub const fn root(self) -> Self {
        match self.family() {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }

    const fn mask(length: u8) -> u128 {
        if length == 0 { 0 } else { u128::MAX << (128 - length) }
    }

    /// All addresses of the prefix. (For `::/0` the mapped IPv4 addresses too.)
    #[must_use]
    pub const fn numbers(self) -> RangeInclusive<u128> {
        self.first..=self.first | !Self::mask(self.length)
    }

    const fn covers(self, other: Self) -> bool {
        self.length <= other.length && other.first & Self::mask(self.length) == self.first
    }

    /// Bits of the prefix, from the 128 of the mapped form.
    #[must_use]
    pub const fn length(self) -> u8 {
        self.length
    }

    #[must_use]
    pub fn net(self) -> IpNet {
        match (self.family(), address(self.first)) {
            (Family::V4, IpAddr::V4(first)) => {
                Ipv4Net::new(first, self.length - MAPPED_LENGTH).map_or(IpNet::V4(Ipv4Net::default()), IpNet::V4)
            }
            _ => Ipv6Net::new(Ipv6Addr::from(self.first), self.length).map_or(IpNet::V6(Ipv6Net::default()), IpNet::V6),
        }
    }
}

/// The prefixes that split addresses, with what is kept for each.
#[derive(Debug, Default)]
pub struct Regions<T> {
    /// By first address, then length: what is inside a prefix follows it.
    map: BTreeMap<Cidr, T>,
    /// How many prefixes there are of each length: lookups try only those.
    lengths: BTreeMap<u8, usize>,
}

/// A region and those around it, the most specific first; the last is the family's root.
pub type Chain = SmallVec<[Cidr; 6]>;

impl<T> Regions<T> {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            map: BTreeMap::new(),
            lengths: BTreeMap::new(),
        }
    }

    #[must_use]
    pub fn count(&self) -> usize {
        self.map.len()
    }

    #[must_use]
    pub fn get(&self, cidr: Cidr) -> Option<&T> {
        self.map.get(&cidr)
    }

    pub fn get_mut(&mut self, cidr: Cidr) -> Option<&mut T> {
        self.map.get_mut(&cidr)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Cidr, &T)> {
        self.map.iter().map(|(&cidr, value)| (cidr, value))
    }

    pub fn insert(&mut self, cidr: Cidr, value: T) {
        if self.map.insert(cidr, value).is_none() {
            *self.lengths.entry(cidr.length).or_default() += 1;
        }
    }

    pub fn remove(&mut self, cidr: Cidr) -> Option<T> {
        let value = self.map.remove(&cidr)?;
        if let Some(count) = self.lengths.get_mut(&cidr.length) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&cidr.length);
            }
        }
        Some(value)
    }

    /// The prefixes that hold all of `cidr` (itself included, where it is one), the most specific first.
    #[must_use]
    pub fn chain(&self, cidr: Cidr) -> Chain {
        let root = cidr.root();
        self.lengths
            .range(root.length..=cidr.length)
            .rev()
            .map(|(&length, _)| Cidr {
                first: cidr.first & Cidr::mask(length),
                length,
            })
            .filter(|around| self.map.contains_key(around))
            .collect()
    }

    /// The most specific prefix that holds an address.
    #[must_use]
    pub fn of(&self, number: u128) -> Cidr {
        self.around(Cidr {
            first: number,
            length: 128,
        })
    }

    /// The most specific prefix that holds all of `cidr`, itself included.
    #[must_use]
    pub fn around(&self, cidr: Cidr) -> Cidr {
        let root = cidr.root();
        self.lengths
            .range(root.length..=cidr.length)
            .rev()
            .map(|(&length, _)| Cidr {
                first: cidr.first & Cidr::mask(length),
                length,
            })
            .find(|around| self.map.contains_key(around))
            .unwrap_or(root)
    }

    /// The prefixes inside `cidr`, itself included where it is one.
    pub fn within(&self, cidr: Cidr) -> impl Iterator<Item = (Cidr, &T)> {
        let end = Cidr {
            first: *cidr.numbers().end(),
            length: 128,
        };
        self.map
            .range(cidr..=end)
            .map(|(&inner, value)| (inner, value))
            .filter(move |(inner, _)| inner.root() == cidr.root())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        Cidr::new(text.parse().expect("a literal prefix")).expect("not a mapped prefix")
    }

    fn regions(texts: &[&str]) -> Regions<()> {
        let mut regions = Regions::new();
        regions.insert(Cidr::V4, ());
        regions.insert(Cidr::V6, ());
        for text in texts {
            regions.insert(cidr(text), ());
        }
        regions
    }

    #[test]
    fn the_most_specific_prefix_wins_within_the_family() {
        let regions = regions(&["10.0.0.0/8", "10.1.0.0/16", "2001:db8::/32"]);
        let of = |text: &str| regions.of(number(text.parse().expect("a literal address")));
        assert_eq!(of("10.1.2.3"), cidr("10.1.0.0/16"));
        assert_eq!(of("10.2.2.3"), cidr("10.0.0.0/8"));
        assert_eq!(of("192.0.2.1"), Cidr::V4);
        assert_eq!(of("2001:db8::1"), cidr("2001:db8::/32"));
        assert_eq!(of("2001:db9::1"), Cidr::V6);
        assert_eq!(
            regions.chain(cidr("10.1.0.0/16")).as_slice(),
            [cidr("10.1.0.0/16"), cidr("10.0.0.0/8"), Cidr::V4]
        );
    }

    #[test]
    fn inside_a_prefix_are_only_prefixes_of_its_family() {
        let regions = regions(&["10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "2001:db8::/32"]);
        let within = |of: Cidr| regions.within(of).map(|(inner, ())| inner).collect::<Vec<_>>();
        assert_eq!(within(cidr("10.0.0.0/8")), [cidr("10.0.0.0/8"), cidr("10.1.0.0/16")]);
        assert_eq!(within(Cidr::V6), [Cidr::V6, cidr("2001:db8::/32")]);
        assert_eq!(within(Cidr::V4).len(), 4);
    }

    #[test]
    fn mapped_prefixes_are_no_ipv6() {
        assert_eq!(Cidr::new("::ffff:10.0.0.0/104".parse().expect("a prefix")), None);
        assert_eq!(cidr("::/0"), Cidr::V6);
        assert_eq!(Cidr::V4.net().to_string(), "0.0.0.0/0");
        assert_eq!(Cidr::V6.net().to_string(), "::/0");
        assert_eq!(cidr("10.1.0.0/16").net().to_string(), "10.1.0.0/16");
    }
}
