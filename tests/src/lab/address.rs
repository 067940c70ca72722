//! Address plan of the lab: every IPv4 address has an IPv6 twin that keeps its last 32 bits, so a policy written for one
//! family can be asked in the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

/// Network of the IPv6 twins: a unique local prefix ("weir" in ASCII) of 96 bits.
const TWINS: [u16; 6] = [0xfd00, 0x7765, 0x6972, 0, 0, 0];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The network of all its addresses.
    #[must_use]
    pub const fn everything(self) -> &'static str {
        match self {
            Self::V4 => "0.0.0.0/0",
            Self::V6 => "::/0",
        }
    }
}

/// Which families the lab's hosts have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Families {
    V4,
    V6,
    Dual,
}

impl Families {
    #[must_use]
    pub const fn has(self, family: Family) -> bool {
        matches!(
            (self, family),
            (Self::Dual, _) | (Self::V4, Family::V4) | (Self::V6, Family::V6)
        )
    }
}

/// The addresses of one host or pod, at most one of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Addresses {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// The planned IPv4 address and its twin, as far as the families ask for them.
    #[must_use]
    pub fn planned(plan: Ipv4Addr, families: Families) -> Self {
        Self {
            v4: families.has(Family::V4).then_some(plan),
            v6: families.has(Family::V6).then(|| twin(plan)),
        }
    }

    #[must_use]
    pub fn of(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.v4.map(IpAddr::V4),
            Family::V6 => self.v6.map(IpAddr::V6),
        }
    }

    /// The IPv4 address that the plan had, also where there is only its twin.
    #[must_use]
    pub fn plan(&self) -> Option<Ipv4Addr> {
        self.v4.or_else(|| {
            let [.., a, b, c, d] = self.v6?.octets();
            Some(Ipv4Addr::new(a, b, c, d))
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

impl From<IpAddr> for Addresses {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self { v4: Some(v4), v6: None },
            IpAddr::V6(v6) => Self { v4: None, v6: Some(v6) },
        }
    }
}

/// The IPv6 twin of an IPv4 address.
#[must_use]
pub fn twin(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets();
    let [p0, p1, p2, p3, p4, p5] = TWINS;
    Ipv6Addr::new(
        p0,
        p1,
        p2,
        p3,
        p4,
        p5,
        u16::from_be_bytes([a, b]),
        u16::from_be_bytes([c, d]),
    )
}

/// The IPv6 twin of an IPv4 network: all of IPv6 for all of IPv4, else the network of the twins. IPv6 stays as it is.
#[must_use]
pub fn twin_net(net: IpNet) -> IpNet {
    match net {
        IpNet::V4(v4) if v4.prefix_len() == 0 => IpNet::V6(Ipv6Net::default()),
        IpNet::V4(v4) => IpNet::V6(Ipv6Net::new_assert(twin(v4.addr()), v4.prefix_len() + 96)),
        IpNet::V6(_) => net,
    }
}

/// Replaces every IPv4 network in a text by its twin.
#[must_use]
pub fn twin_nets(text: &str) -> String {
    let of_net = |c: char| c.is_ascii_digit() || c == '.' || c == '/';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(of_net) {
        let (before, from) = rest.split_at(start);
        let (token, after) = from.split_at(from.find(|c| !of_net(c)).unwrap_or(from.len()));
        out.push_str(before);
        match token.parse::<IpNet>() {
            Ok(net) => out.push_str(&twin_net(net).to_string()),
            Err(_) => out.push_str(token),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Length of a prefix that holds this address alone.
#[must_use]
pub const fn host_bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

#[cfg(test)]
mod tests {
    use super::{twin, twin_net, twin_nets};

    #[test]
    fn twins_keep_the_last_bits_and_all_stays_all() {
        assert_eq!(
            twin([10, 244, 7, 17].into()),
            "fd00:7765:6972::10.244.7.17".parse::<std::net::Ipv6Addr>().unwrap()
        );
        assert_eq!(twin_net("0.0.0.0/0".parse().unwrap()), "::/0".parse().unwrap());
        assert_eq!(
            twin_net("10.244.7.0/24".parse().unwrap()),
            "fd00:7765:6972::10.244.7.0/120".parse().unwrap()
        );
    }

    #[test]
    fn networks_in_a_text_are_replaced_and_nothing_else() {
        assert_eq!(
            twin_nets("v1.2 cidr: 10.0.0.0/8, port: 80\n- '0.0.0.0/0'"),
            "v1.2 cidr: fd00:7765:6972::a00:0/104, port: 80\n- '::/0'"
        );
    }
}
