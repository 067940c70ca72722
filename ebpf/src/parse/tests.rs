//! The parsers on the host: against another parser's packets, cut at every byte, and on random bytes.

use etherparse::{IpFragOffset, Ipv4Header, Ipv6FragmentHeader, PacketBuilder, TcpOptionElement};
use proptest::prelude::*;
use weir_common::{Addr, reason::Reason};

use super::{Extent, Network, ethernet::Link, ipv4, ipv6, transport, transport::Transport};
use crate::packet::test::Bytes;

/// Both layers of a packet that begins with its network header.
fn parse(data: &[u8]) -> Result<(Network, Transport), Reason> {
    let packet = Bytes::layer3(data.to_vec());
    let mut network = Network::default();
    let mut header = Transport::default();
    match Link::of(&packet) {
        Link::Ipv6 => ipv6::parse(&packet, 0, Extent::Whole, &mut network)?,
        _ => ipv4::parse(&packet, 0, Extent::Whole, &mut network)?,
    }
    if !network.is_later_fragment() {
        transport::parse(&packet, &network, &mut header)?;
    }
    Ok((network, header))
}

fn write(builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    builder.write(&mut data, payload).expect("a sound packet");
    data
}

proptest! {
    #[test]
    fn tcp_over_ipv4(
        source: [u8; 4], destination: [u8; 4], ports: (u16, u16), ttl: u8, ack: bool, options in 0..4_usize,
        payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let all = [
            TcpOptionElement::MaximumSegmentSize(1460),
            TcpOptionElement::WindowScale(7),
            TcpOptionElement::SelectiveAcknowledgementPermitted,
            TcpOptionElement::Timestamp(1, 2),
        ];
        let mut builder = PacketBuilder::ipv4(source, destination, ttl)
            .tcp(ports.0, ports.1, 7, 1024)
            .options(&all[..options])
            .expect("options that fit")
            .syn();
        if ack {
            builder = builder.ack(9);
        }
        let data = write(builder, &payload);
        let (network, header) = parse(&data).expect("a sound packet");
        prop_assert_eq!(network.source, Addr::from_v4_word(u32::from_ne_bytes(source)));
        prop_assert_eq!(network.destination, Addr::from_v4_word(u32::from_ne_bytes(destination)));
        prop_assert_eq!((network.protocol, network.hops, network.v4, network.fragment), (6, ttl, true, false));
        prop_assert_eq!((network.transport, network.end as usize), (20, data.len()));
        prop_assert_eq!((header.source_port, header.destination_port), ports);
        prop_assert_eq!(header.flags, if ack { 0x12 } else { 2 });
        prop_assert_eq!(usize::from(header.header), data.len() - 20 - payload.len());
    }

    #[test]
    fn udp_over_ipv6(source: [u8; 16], destination: [u8; 16], ports: (u16, u16), hops: u8,
                     payload in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut data = Vec::new();
        PacketBuilder::ipv6(source, destination, hops)
            .udp(ports.0, ports.1)
            .write(&mut data, &payload)
            .expect("a sound packet");
        let (network, header) = parse(&data).expect("a sound packet");
        let bytes = |addr: Addr| addr.0.map(u32::to_ne_bytes).concat();
        prop_assert_eq!(bytes(network.source), source);
        prop_assert_eq!(bytes(network.destination), destination);
        prop_assert_eq!((network.protocol, network.hops, network.v4, network.fragment), (17, hops, false, false));
        prop_assert_eq!((network.transport, network.end as usize), (40, data.len()));
        prop_assert_eq!((header.source_port, header.destination_port, header.header), (ports.0, ports.1, 8));
    }

    #[test]
    fn ipv4_fragments(id: u16, offset in 0..0x2000_u16, more: bool, units in 1..8_usize) {
        let mut ip = Ipv4Header::new(8 * units as u16, 64, etherparse::IpNumber::UDP, [1, 2, 3, 4], [5, 6, 7, 8])
            .expect("a payload that fits");
        ip.identification = id;
        ip.more_fragments = more;
        ip.fragment_offset = IpFragOffset::try_new(offset).expect("13 bits");
        ip.dont_fragment = false;
        let mut data = ip.to_bytes().to_vec();
        data.extend(std::iter::repeat_n([0, 53, 0, 53, 0, 8, 0, 0], units).flatten());
        let (network, header) = parse(&data).expect("a sound packet");
        prop_assert_eq!(network.fragment, more || offset != 0);
        prop_assert_eq!((network.fragment_offset, network.fragment_id), (u32::from(offset) * 8, u32::from(id)));
        prop_assert_eq!(header.source_port, if offset == 0 { 53 } else { 0 });
    }

    #[test]
    fn ipv6_fragments(id: u32, offset in 0..0x2000_u16, more: bool) {
        let fragment = Ipv6FragmentHeader::new(
            etherparse::IpNumber::UDP,
            IpFragOffset::try_new(offset).expect("13 bits"),
            more,
            id,
        );
        let mut data = vec![0x60, 0, 0, 0, 0, 16, 44, 64];
        data.extend([7; 32]);
        data.extend(fragment.to_bytes());
        data.extend([0, 53, 0, 53, 0, 8, 0, 0]);
        let (network, _) = parse(&data).expect("a sound packet");
        prop_assert_eq!(network.fragment, more || offset != 0);
        prop_assert_eq!(network.fragment_offset, if network.fragment { u32::from(offset) * 8 } else { 0 });
        prop_assert_eq!(network.fragment_id, if network.fragment { id } else { 0 });
        prop_assert_eq!((network.transport, network.protocol), (48, 17));
    }

    /// Whatever the bytes: no panic, and what is found lies within the packet.
    #[test]
    fn random_bytes(mut data in prop::collection::vec(any::<u8>(), 0..200), v6: bool, plausible: bool) {
        if let Some(first) = data.first_mut() && plausible {
            *first = if v6 { 0x60 } else { 0x45 };
        }
        if plausible && data.len() > 6 {
            let length = (data.len() - if v6 { 40.min(data.len()) } else { 0 }) as u16;
            let field = if v6 { 4 } else { 2 };
            data[field..field + 2].copy_from_slice(&length.to_be_bytes());
            if v6 {
                data[6] = [0, 43, 44, 51, 60, 6, 17, 58, 132][usize::from(data[6]) % 9];
            }
        }
        if let Ok((network, header)) = parse(&data) {
            prop_assert!(network.transport <= network.end && network.end as usize <= data.len());
            prop_assert!(network.transport + u32::from(header.header) <= network.end);
        }
    }

    /// A sound packet with a few bytes changed.
    #[test]
    fn damaged_packets(changes in prop::collection::vec((0..60_usize, any::<u8>()), 1..6), length in 0..=60_usize) {
        let mut data = write(PacketBuilder::ipv4([1, 2, 3, 4], [5, 6, 7, 8], 64).tcp(1, 2, 3, 4).syn(), &[0; 20]);
        for (at, byte) in changes {
            data[at] = byte;
        }
        data.truncate(length);
        if let Ok((network, header)) = parse(&data) {
            prop_assert!(network.transport + u32::from(header.header) <= network.end);
            prop_assert!(network.end as usize <= data.len());
        }
    }
}

#[test]
fn a_packet_that_ends_before_its_headers_do() {
    let tcp4 = write(
        PacketBuilder::ipv4([1, 2, 3, 4], [5, 6, 7, 8], 64)
            .tcp(1, 2, 3, 4)
            .syn(),
        &[],
    );
    let tcp6 = write(PacketBuilder::ipv6([1; 16], [2; 16], 64).tcp(1, 2, 3, 4).syn(), &[]);
    for whole in [tcp4, tcp6] {
        assert!(parse(&whole).is_ok());
        // The first byte tells the family; without it there is nothing at all.
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]).err(), Some(Reason::Truncated), "{length} bytes");
        }
    }
}

#[test]
fn what_the_link_layer_says() {
    let mut packet = Bytes::layer3(vec![0x45; 20]);
    assert_eq!(Link::of(&packet), Link::Ipv4);
    packet.tagged = true;
    assert_eq!(
        Link::of(&packet),
        Link::Other,
        "a VLAN tag that the interface has taken off"
    );
    packet.tagged = false;
    for (protocol, link) in [
        (0x86dd, Link::Ipv6),
        (0x0806, Link::Arp),
        (0x8100, Link::Other),
        (0x88cc, Link::Other),
    ] {
        packet.protocol = protocol;
        assert_eq!(Link::of(&packet), link);
    }
}

#[test]
fn merged_packets_without_length() {
    let mut data = write(
        PacketBuilder::ipv4([1, 2, 3, 4], [5, 6, 7, 8], 64)
            .tcp(1, 2, 3, 4)
            .syn(),
        &[0; 100],
    );
    data[2..4].fill(0);
    let mut packet = Bytes::layer3(data);
    let mut network = Network::default();
    assert_eq!(
        ipv4::parse(&packet, 0, Extent::Whole, &mut network),
        Err(Reason::Truncated)
    );
    packet.segmented = true;
    assert_eq!(ipv4::parse(&packet, 0, Extent::Whole, &mut network), Ok(()));
    assert_eq!(network.end, 140);
}
