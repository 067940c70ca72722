//! Packets, byte by byte, for the programs' tests: Ethernet frames that may be as malformed as a test needs them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;

/// A frame of any EtherType.
#[must_use]
pub fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IP packet in its frame; the family is the addresses'.
#[must_use]
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    Ip::new(source, destination, protocol).frame(payload)
}

/// An IP header whose fields a test may set.
#[derive(Clone, Debug)]
pub struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub hops: u8,
    /// Fragments: identification, offset in bytes, more to follow.
    pub fragment: Option<(u32, u16, bool)>,
    /// IPv4: options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv6: extension headers by number and whole length, before the fragment header if there is one.
    pub extensions: Vec<(u8, usize)>,
}

impl Ip {
    #[must_use]
    pub fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self {
            source,
            destination,
            protocol,
            hops: 64,
            fragment: None,
            options: Vec::new(),
            extensions: Vec::new(),
        }
    }

    /// The packet in its frame.
    #[must_use]
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let packet = self.packet(payload);
        ethernet(if self.source.is_ipv4() { 0x0800 } else { 0x86dd }, &packet)
    }

    /// The packet without a link-layer header.
    ///
    /// # Panics
    /// The addresses are of two families.
    #[must_use]
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.v4(source, destination, payload),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.v6(source, destination, payload),
            _ => panic!("{} and {} are of two families", self.source, self.destination),
        }
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
        let header = 20 + self.options.len();
        let (id, offset, more) = self.fragment.unwrap_or((0, 0, false));
        let mut packet = vec![0x40 | (header / 4) as u8, 0];
        packet.extend(((header + payload.len()) as u16).to_be_bytes());
        packet.extend((id as u16).to_be_bytes());
        packet.extend(((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
        packet.extend([self.hops, self.protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(&self.options);
        let checksum = checksum(&packet);
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet.extend(payload);
        packet
    }

    fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let mut chain: Vec<(u8, Vec<u8>)> = self
            .extensions
            .iter()
            .map(|&(number, length)| {
                let mut header = vec![0; length];
                header[1] = if number == 51 { length / 4 - 2 } else { length / 8 - 1 } as u8;
                (number, header)
            })
            .collect();
        if let Some((id, offset, more)) = self.fragment {
            let mut header = vec![0, 0];
            header.extend((offset | u16::from(more)).to_be_bytes());
            header.extend(id.to_be_bytes());
            chain.push((44, header));
        }
        let mut next = self.protocol;
        for (number, header) in chain.iter_mut().rev() {
            header[0] = next;
            next = *number;
        }
        let body: Vec<u8> = chain
            .into_iter()
            .flat_map(|(_, header)| header)
            .chain(payload.iter().copied())
            .collect();
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend((body.len() as u16).to_be_bytes());
        packet.extend([next, self.hops]);
        packet.extend(source.octets());
        packet.extend(destination.octets());
        packet.extend(body);
        packet
    }
}

/// A TCP header of 20 bytes and four bytes of payload.
#[must_use]
pub fn tcp_segment(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut header = ports(source, destination);
    header.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header.extend(b"weir");
    header
}

#[must_use]
pub fn udp_datagram(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let mut header = ports(source, destination);
    header.extend((8 + payload.len() as u16).to_be_bytes());
    header.extend([0, 0]);
    header.extend(payload);
    header
}

/// An SCTP common header and one chunk of a type, without value.
#[must_use]
pub fn sctp_packet(source: u16, destination: u16, chunk: u8) -> Vec<u8> {
    let mut header = ports(source, destination);
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, chunk, 0, 0, 4]);
    header
}

/// An ICMP or ICMPv6 message: type, code, the identifier (or what stands there), and what follows.
#[must_use]
pub fn icmp_message(kind: u8, code: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend([0, 1]);
    message.extend(payload);
    message
}

#[must_use]
pub fn tcp(source: IpAddr, destination: IpAddr, ports: (u16, u16), flags: u8) -> Vec<u8> {
    ip(source, destination, TCP, &tcp_segment(ports.0, ports.1, flags))
}

#[must_use]
pub fn udp(source: IpAddr, destination: IpAddr, ports: (u16, u16)) -> Vec<u8> {
    ip(source, destination, UDP, &udp_datagram(ports.0, ports.1, b"weir"))
}

#[must_use]
pub fn sctp(source: IpAddr, destination: IpAddr, ports: (u16, u16), chunk: u8) -> Vec<u8> {
    ip(source, destination, SCTP, &sctp_packet(ports.0, ports.1, chunk))
}

/// ICMP in IPv4, ICMPv6 in IPv6.
#[must_use]
pub fn icmp(source: IpAddr, destination: IpAddr, kind: u8, code: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let protocol = if source.is_ipv4() { ICMP } else { ICMPV6 };
    ip(source, destination, protocol, &icmp_message(kind, code, id, payload))
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

/// RFC 1071.
fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    #[test]
    fn another_parser_understands_the_packets() {
        let v4: (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let v6: (IpAddr, IpAddr) = ([1, 2, 3, 4, 5, 6, 7, 8].into(), [8, 7, 6, 5, 4, 3, 2, 1].into());
        for (source, destination) in [v4, v6] {
            let frame = tcp(source, destination, (1000, 80), SYN);
            let sliced = SlicedPacket::from_ethernet(&frame).expect("a sound packet");
            match (sliced.net, source) {
                (Some(NetSlice::Ipv4(ip)), IpAddr::V4(source)) => assert_eq!(ip.header().source_addr(), source),
                (Some(NetSlice::Ipv6(ip)), IpAddr::V6(source)) => assert_eq!(ip.header().source_addr(), source),
                other => panic!("{other:?}"),
            }
            let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
                panic!("no TCP: {:?}", sliced.transport);
            };
            assert_eq!((tcp.source_port(), tcp.destination_port(), tcp.syn()), (1000, 80, true));
        }
        let mut ip = Ip::new(v6.0, v6.1, UDP);
        ip.extensions = vec![(0, 8), (43, 16), (60, 24), (51, 16)];
        let frame = ip.frame(&udp_datagram(53, 54, b"data"));
        let sliced = SlicedPacket::from_ethernet(&frame).expect("a sound packet");
        let Some(TransportSlice::Udp(udp)) = sliced.transport else {
            panic!("no UDP: {:?}", sliced.transport);
        };
        assert_eq!((udp.source_port(), udp.destination_port()), (53, 54));
    }
}
