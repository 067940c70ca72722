//! Netlink at its plainest, for the few questions whose answers no crate parses: one blocking dump at a time.

use std::io;

use netlink_sys::{Socket, SocketAddr};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
pub(super) const NLM_F_DUMP: u16 = 0x300;
/// Flags within the type of an attribute (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
const NLA_TYPE: u16 = 0x3fff;

/// One message of an answer, without its `struct nlmsghdr`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub kind: u16,
    pub body: Vec<u8>,
}

/// Asks the kernel in the network namespace of the calling thread; returns all that it answers.
///
/// # Errors
/// What the socket or the kernel says.
pub(super) fn ask(protocol: isize, kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<Answer>> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&message(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body), 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if take(&datagram, &mut answers)? {
            return Ok(answers);
        }
    }
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    // Sequence number and port: of a socket that asks once.
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

/// Takes the messages out of a datagram. True: that was all.
fn take(datagram: &[u8], answers: &mut Vec<Answer>) -> io::Result<bool> {
    let mut rest = datagram;
    while let Some(length) = word(rest, 0).map(|length| length as usize) {
        if length < HEADER || length > rest.len() {
            break;
        }
        let kind = half(rest, 4).unwrap_or_default();
        let body = &rest[HEADER..length];
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                return match word(body, 0).map(|code| code as i32) {
                    Some(0) | None => Ok(true),
                    Some(code) => Err(io::Error::from_raw_os_error(-code)),
                };
            }
            _ => answers.push(Answer {
                kind,
                body: body.to_vec(),
            }),
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    Ok(false)
}

/// The attributes in `bytes` (RFC 3549 section 2.2: length, type, value, padded to four bytes).
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(half(rest, 0)?);
        let kind = half(rest, 2)? & NLA_TYPE;
        let value = rest.get(4..length)?;
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        Some((kind, value))
    })
}

/// The value of one attribute.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

/// A string attribute, which the kernel ends with a zero.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// Four bytes in the machine's order.
pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_walked_with_their_padding_and_to_the_last_whole_one() {
        let mut bytes = Vec::new();
        for (kind, value) in [(1_u16, b"veth\0".as_slice()), (0x8002, &[7, 0, 0, 0])] {
            bytes.extend((4 + value.len() as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        assert_eq!(attribute(&bytes, 1).map(text).as_deref(), Some("veth"));
        assert_eq!(attribute(&bytes, 2).and_then(|value| word(value, 0)), Some(7));
        bytes.truncate(bytes.len() - 1);
        assert_eq!(attributes(&bytes).count(), 1, "the second one is cut off");
        assert_eq!(attributes(&[0, 0, 0, 0]).count(), 0, "a length that cannot be");
    }

    #[test]
    fn an_answer_ends_with_done_or_with_an_error() {
        let mut answers = Vec::new();
        let mut datagram = message(16, 0, &[1, 2, 3, 4]);
        assert!(!take(&datagram, &mut answers).expect("no error"));
        datagram.extend(message(NLMSG_DONE, 0, &[0; 4]));
        assert!(take(&datagram, &mut answers).expect("no error"));
        assert_eq!(answers.len(), 2);
        let error = take(&message(NLMSG_ERROR, 0, &(-2_i32).to_ne_bytes()), &mut answers).expect_err("ENOENT");
        assert_eq!(error.raw_os_error(), Some(2));
    }
}
