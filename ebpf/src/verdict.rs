//! The single exit: every packet leaves here, is counted here once, and its fate is one exhaustive match.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use weir_common::{Direction, endpoint::EndpointEntry, reason::Reason};

use crate::{counters, direct, event, kernel, packet::Skb, scratch::Scratch};

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    /// The hook's next program decides; without one, the packet passes.
    Pass,
    Drop,
}

impl Action {
    #[inline(always)]
    const fn of(reason: Reason) -> Self {
        match reason {
            Reason::Established
            | Reason::Allowed
            | Reason::Node
            | Reason::Adopted
            | Reason::Related
            | Reason::LinkLocalControl
            | Reason::NotIp
            | Reason::NoEndpoint
            | Reason::Rejudged
            | Reason::Audit => Self::Pass,
            Reason::PolicyDenied
            | Reason::PolicyCut
            | Reason::EndpointClosed
            | Reason::SpoofedSource
            | Reason::Truncated
            | Reason::BadHeader
            | Reason::UnknownProtocol
            | Reason::TooManyHeaders
            | Reason::FragmentTiny
            | Reason::FragmentOverlap
            | Reason::FragmentDisagrees
            | Reason::FragmentOrphan
            | Reason::TableFull
            | Reason::Unstable
            | Reason::BadTcpFlags => Self::Drop,
        }
    }

    /// What TC programs return. Not `TC_ACT_OK`: that would end the hook, and other programs' say with it.
    #[inline(always)]
    const fn code(self) -> i32 {
        match self {
            Self::Pass => TC_ACT_UNSPEC,
            Self::Drop => TC_ACT_SHOT,
        }
    }
}

/// Ends a packet's way on an interface that has no (readable) endpoint.
#[inline(always)]
pub fn leave(reason: Reason, direction: Direction, packets: u32, bytes: u32) -> i32 {
    counters::packet(reason, direction, packets, bytes);
    Action::of(reason).code()
}

/// Ends a packet's way through an endpoint.
#[inline(always)]
pub fn exit(packet: Skb, scratch: &mut Scratch) -> i32 {
    // By way of memory, so that the verifier walks the exit once and not once for each way to it.
    // SAFETY: this processor's own memory, where a reason has just been written.
    let mut reason = unsafe { kernel::read(&raw const scratch.reason) };
    if let Action::Drop = Action::of(reason) {
        event::denied(scratch, reason);
        if scratch.endpoint.has(EndpointEntry::AUDIT) {
            reason = Reason::Audit;
        }
    }
    let flow = &scratch.flow;
    let code = leave(reason, flow.direction(), flow.packets, flow.bytes);
    if flow.via != 0 && matches!(reason, Reason::Established) && direct::may_deliver(packet, scratch) {
        // SAFETY: this packet's working memory.
        let ifindex = unsafe { direct::weir_deliver(scratch) };
        if ifindex != 0 {
            return direct::hand_over(ifindex);
        }
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_register_and_the_exit_agree_on_what_is_dropped() {
        for reason in Reason::ALL {
            assert_eq!(reason.is_drop(), Action::of(*reason) == Action::Drop, "{reason:?}");
        }
    }

    #[test]
    fn passing_leaves_the_last_word_to_other_programs() {
        assert_eq!((Action::Pass.code(), Action::Drop.code()), (-1, 2));
    }
}
