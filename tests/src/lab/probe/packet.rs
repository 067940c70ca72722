//! Packets that no kernel makes for us: SCTP (RFC 9260), and ICMP of any type.

use std::net::IpAddr;

/// Marks what the lab sends, before the eight bytes of a token.
pub const MAGIC: &[u8; 8] = b"weir-lab";

/// Length of a marked payload.
pub const MARK: usize = 16;

/// A payload that says which probe it is.
#[must_use]
pub fn mark(token: u64) -> [u8; MARK] {
    let mut bytes = [0; MARK];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..].copy_from_slice(&token.to_be_bytes());
    bytes
}

/// The token of the first mark in a packet, headers and all.
#[must_use]
pub fn token(packet: &[u8]) -> Option<u64> {
    let at = packet.windows(MAGIC.len()).position(|bytes| bytes == MAGIC)?;
    let bytes = packet.get(at + MAGIC.len()..at + MARK)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// Types of SCTP chunks that the lab speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SctpChunk {
    Init = 1,
    InitAck = 2,
    Abort = 6,
}

/// An SCTP packet as far as the lab cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sctp {
    pub source: u16,
    pub destination: u16,
    pub verification_tag: u32,
    pub chunk: SctpChunk,
    /// Of INIT and INIT-ACK: the tag that the other end must use.
    pub initiate_tag: u32,
}

impl Sctp {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(36);
        bytes.extend(self.source.to_be_bytes());
        bytes.extend(self.destination.to_be_bytes());
        bytes.extend(self.verification_tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.chunk as u8, 0]);
        match self.chunk {
            SctpChunk::Abort => bytes.extend(4_u16.to_be_bytes()),
            SctpChunk::Init | SctpChunk::InitAck => {
                // An INIT-ACK must carry a state cookie (type 7); its content is the sender's own business.
                let cookie: &[u8] = match self.chunk {
                    SctpChunk::InitAck => &[0, 7, 0, 8, b'w', b'e', b'i', b'r'],
                    _ => &[],
                };
                bytes.extend(u16::try_from(20 + cookie.len()).unwrap_or(20).to_be_bytes());
                bytes.extend(self.initiate_tag.to_be_bytes());
                bytes.extend(65_536_u32.to_be_bytes());
                bytes.extend(1_u16.to_be_bytes());
                bytes.extend(1_u16.to_be_bytes());
                bytes.extend(1_u32.to_be_bytes());
                bytes.extend(cookie);
            }
        }
        let checksum = crc32c(&bytes);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a packet as a raw socket gives it (IPv4: with its IP header). None for chunks the lab does not speak.
    #[must_use]
    pub fn decode(packet: &[u8], from: IpAddr) -> Option<Self> {
        let bytes = without_ip_header(packet, from)?;
        let half = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let chunk = match bytes.get(12)? {
            1 => SctpChunk::Init,
            2 => SctpChunk::InitAck,
            6 => SctpChunk::Abort,
            _ => return None,
        };
        Some(Self {
            source: half(0)?,
            destination: half(2)?,
            verification_tag: word(4)?,
            chunk,
            initiate_tag: if chunk == SctpChunk::Abort { 0 } else { word(16)? },
        })
    }
}

/// An ICMP or ICMPv6 message with a marked payload. (ICMPv6's checksum is the kernel's business.)
#[must_use]
pub fn icmp(kind: u8, code: u8, identifier: u16, token: u64, to: IpAddr) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(identifier.to_be_bytes());
    bytes.extend(1_u16.to_be_bytes());
    bytes.extend(mark(token));
    if to.is_ipv4() {
        let checksum = internet_checksum(&bytes);
        bytes[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    bytes
}

/// Type and identifier of a received ICMP message (IPv4: with its IP header).
#[must_use]
pub fn icmp_header(packet: &[u8], from: IpAddr) -> Option<(u8, u16)> {
    let bytes = without_ip_header(packet, from)?;
    Some((*bytes.first()?, u16::from_be_bytes(bytes.get(4..6)?.try_into().ok()?)))
}

/// Raw IPv4 sockets give the IP header too, IPv6 ones do not.
fn without_ip_header(packet: &[u8], from: IpAddr) -> Option<&[u8]> {
    match from {
        IpAddr::V4(_) => packet.get(usize::from(packet.first()? & 15) * 4..),
        IpAddr::V6(_) => Some(packet),
    }
}

/// RFC 1071.
#[must_use]
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// CRC-32C (Castagnoli), reflected, as RFC 9260 appendix A asks.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::{IpAddr, Sctp, SctpChunk, crc32c, icmp, internet_checksum, mark, token};

    #[test]
    fn crc32c_has_the_check_value_of_its_definition() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn sctp_survives_the_way_through_bytes() {
        let sent = Sctp {
            source: 40_000,
            destination: 80,
            verification_tag: 7,
            chunk: SctpChunk::InitAck,
            initiate_tag: 9,
        };
        let from = IpAddr::V6(Ipv6Addr::LOCALHOST);
        assert_eq!(Sctp::decode(&sent.encode(), from), Some(sent));
        assert_eq!(Sctp::decode(&sent.encode()[..13], from), None);
    }

    #[test]
    fn marks_are_found_and_checksums_close() {
        let message = icmp(8, 0, 1, 77, "192.0.2.1".parse().unwrap());
        assert_eq!(internet_checksum(&message), 0);
        assert_eq!(token(&message), Some(77));
        assert_eq!(token(&mark(3)[..15]), None);
    }
}
