//! Packets that lie about themselves.

use weir_common::{endpoint::EndpointEntry, reason::Reason};
use weir_tests::packet::{ETHERNET, Ip, SYN, TCP, icmp, sctp, sctp_packet, tcp, udp};

use crate::world::{FAMILIES, Family, V4, V6, World, allow_all, deny_all};

/// Cuts a packet behind every byte, once with honest and once with unchanged length fields.
fn cut_everywhere(world: &mut World, family: Family, whole: &[u8], payload: usize) {
    // The kernel's test run takes no less than an IP header; unit tests of the parser begin at the first byte.
    let header = if family.pod.is_ipv4() { 20 } else { 40 };
    for length in ETHERNET + header..whole.len() {
        let name = format!("{} of {} bytes", length, whole.len());
        let cut = &whole[..length];
        world.from_pod(&format!("{name}, lying"), cut, Reason::Truncated);

        let rest = length - ETHERNET - header;
        let mut honest = cut.to_vec();
        let (field, value) = if family.pod.is_ipv4() {
            (16, header + rest)
        } else {
            (18, rest)
        };
        honest[field..field + 2].copy_from_slice(&(value as u16).to_be_bytes());
        // Without its payload the transport header is still whole.
        if length < whole.len() - payload {
            world.from_pod(&format!("{name}, honest"), &honest, Reason::Truncated);
        }
    }
}

#[test]
fn packets_that_end_too_early_at_every_byte() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let (pod, peer) = (family.pod, family.peer);
        let echo = if pod.is_ipv4() { 8 } else { 128 };
        cut_everywhere(&mut world, family, &tcp(pod, peer, (1, 2), SYN), 4);
        // A UDP header says how long its datagram is.
        cut_everywhere(&mut world, family, &udp(pod, peer, (1, 2)), 0);
        cut_everywhere(&mut world, family, &sctp(pod, peer, (1, 2), 1), 0);
        cut_everywhere(&mut world, family, &icmp(pod, peer, echo, 0, 3, b"data"), 4);
    }
    let mut header = Ip::new(V6.pod, V6.peer, TCP);
    header.extensions = vec![(0, 8), (43, 16), (51, 12)];
    let whole = header.frame(&weir_tests::packet::tcp_segment(1, 2, SYN));
    cut_everywhere(&mut world, V6, &whole, 4);
    let mut header = Ip::new(V4.pod, V4.peer, TCP);
    header.options = vec![1; 40];
    let whole = header.frame(&weir_tests::packet::tcp_segment(1, 2, SYN));
    for length in ETHERNET + 20..whole.len() {
        world.from_pod("options", &whole[..length], Reason::Truncated);
    }
}

#[test]
fn malformed_packets_pass_where_nobody_asks() {
    let mut world = World::new(deny_all(), deny_all());
    world.set_flags(0);
    for family in FAMILIES {
        let whole = tcp(family.pod, family.peer, (1, 2), SYN);
        let header = if family.pod.is_ipv4() { 20 } else { 40 };
        for length in ETHERNET + header..whole.len() - 4 {
            world.to_pod("cut", &whole[..length], Reason::NotIp);
            // A pod sends from its own address only, which cannot be told here.
            world.set_flags(0);
            world.from_pod("cut", &whole[..length], Reason::Truncated);
            world.set_flags(EndpointEntry::ANY_SOURCE);
            world.from_pod("cut", &whole[..length], Reason::NotIp);
        }
    }
}

#[test]
fn length_and_version_fields_that_contradict_each_other() {
    let mut world = World::new(allow_all(), deny_all());
    let whole = tcp(V4.pod, V4.peer, (1, 2), SYN);
    let changed = |offset: usize, value: u8| {
        let mut packet = whole.clone();
        packet[ETHERNET + offset] = value;
        packet
    };
    for (name, packet, reason) in [
        ("version 6 as IPv4", changed(0, 0x65), Reason::BadHeader),
        ("version 0", changed(0, 0x05), Reason::BadHeader),
        ("header of 16 bytes", changed(0, 0x44), Reason::BadHeader),
        ("header of 0 bytes", changed(0, 0x40), Reason::BadHeader),
        ("header longer than the packet", changed(0, 0x4f), Reason::Truncated),
        ("total length of one byte too many", changed(3, 45), Reason::Truncated),
        ("total length within the IP header", changed(3, 19), Reason::Truncated),
        ("total length of 0", changed(3, 0), Reason::Truncated),
        ("TCP header of 16 bytes", changed(32, 4 << 4), Reason::BadHeader),
        (
            "TCP header longer than the packet",
            changed(32, 15 << 4),
            Reason::Truncated,
        ),
    ] {
        world.from_pod(name, &packet, reason);
    }
    let mut padded = whole.clone();
    padded.extend([0; 6]);
    world.from_pod("padding behind the packet", &padded, Reason::Allowed);

    let whole = tcp(V6.pod, V6.peer, (1, 2), SYN);
    let changed = |offset: usize, value: u8| {
        let mut packet = whole.clone();
        packet[ETHERNET + offset] = value;
        packet
    };
    for (name, packet, reason) in [
        ("version 4 as IPv6", changed(0, 0x45), Reason::BadHeader),
        ("payload of one byte too many", changed(5, 25), Reason::Truncated),
        ("payload that ends in the TCP header", changed(5, 19), Reason::Truncated),
        ("payload of 0 bytes", changed(5, 0), Reason::Truncated),
        ("TCP header of 16 bytes", changed(52, 4 << 4), Reason::BadHeader),
        (
            "TCP header longer than the packet",
            changed(52, 15 << 4),
            Reason::Truncated,
        ),
    ] {
        world.from_pod(name, &packet, reason);
    }
}

#[test]
fn udp_lengths_must_fit() {
    let mut world = World::new(allow_all(), deny_all());
    for family in FAMILIES {
        let whole = udp(family.pod, family.peer, (1, 2));
        let field = whole.len() - 4 - 4;
        for length in [0_u16, 7, 13, 0xffff] {
            let mut packet = whole.clone();
            packet[field..field + 2].copy_from_slice(&length.to_be_bytes());
            world.from_pod("bad length", &packet, Reason::Truncated);
        }
        let mut shorter = whole.clone();
        shorter[field..field + 2].copy_from_slice(&8_u16.to_be_bytes());
        world.from_pod("shorter than the packet", &shorter, Reason::Allowed);
    }
}

#[test]
fn an_extension_header_that_runs_out_of_its_packet() {
    let mut world = World::new(allow_all(), deny_all());
    let mut header = Ip::new(V6.pod, V6.peer, TCP);
    header.extensions = vec![(60, 8)];
    let mut packet = header.frame(&weir_tests::packet::tcp_segment(1, 2, SYN));
    packet[ETHERNET + 41] = 0xff;
    world.from_pod("2048 bytes of options", &packet, Reason::Truncated);

    header.extensions = vec![(60, 8)];
    header.fragment = Some((1, 0, true));
    let twice = header.frame(&{
        // A second fragment header in front of the SCTP packet, as a payload of protocol 44.
        let mut payload = vec![132, 0, 0, 1, 0, 0, 0, 2];
        payload.extend(sctp_packet(1, 2, 1));
        payload
    });
    let mut packet = twice;
    // The fragment header (behind eight bytes of options) names another fragment header.
    packet[ETHERNET + 48] = 44;
    world.from_pod("two fragment headers", &packet, Reason::BadHeader);
}
