//! The register of what can happen to a packet. One number, one meaning, for ever: retired numbers stay retired.
//!
//! Readers: the programs' single exit (ebpf/), counters, flow records and metrics (agent/flow), docs/operations.md.

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// Why a packet passed (below 64) or was dropped (64 and above).
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])+ $name = $number,)+ }

        impl Reason {
            /// Every reason, in order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The reason of a number, if it has one.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }

            /// Name as in flow records and metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

reasons! {
    /// Belongs to a known flow whose decision is current.
    Established = 0, "ESTABLISHED";
    /// Opened a flow that policy allows (or that no policy covers).
    Allowed = 1, "ALLOWED";
    /// Opened a flow from the node itself to its pod.
    Node = 2, "NODE";
    /// Continues a flow that began before the interface was attached.
    Adopted = 3, "ADOPTED";
    /// An ICMP error that quotes a known flow.
    Related = 4, "RELATED";
    /// ARP, neighbour discovery, multicast listener discovery: what a link needs to work.
    LinkLocalControl = 5, "LINK_CONTROL";
    /// Cannot be parsed or is no IP, on a pod that no policy selects.
    NotIp = 6, "NOT_IP";
    /// The interface belongs to no endpoint.
    NoEndpoint = 7, "NO_ENDPOINT";
    /// A known flow, judged again after a change, and still allowed.
    Rejudged = 8, "REJUDGED";
    /// Would have been dropped, but the agent only audits.
    Audit = 9, "AUDIT";

    /// A policy, or the end of a tier, denies the flow.
    PolicyDenied = 64, "POLICY_DENIED";
    /// An open connection that a changed policy no longer allows.
    PolicyCut = 65, "POLICY_DENIED_ESTABLISHED";
    /// The pod's policy cannot be enforced (yet), so nothing passes.
    EndpointClosed = 66, "ENDPOINT_CLOSED";
    /// The pod sent from an address that is not its own.
    SpoofedSource = 67, "INVALID_SOURCE_IP";
    /// The packet ends within a header, or its length fields contradict each other.
    Truncated = 68, "INVALID_PACKET";
    /// Bad header: version, IPv4 header length, option or extension header that cannot be.
    BadHeader = 69, "BAD_HEADER";
    /// Neither IPv4, IPv6 nor ARP, on a pod that a policy selects.
    UnknownProtocol = 70, "UNSUPPORTED_L3_PROTOCOL";
    /// More than eight IPv6 extension headers.
    TooManyHeaders = 71, "TOO_MANY_EXTENSION_HEADERS";
    /// A first fragment that does not hold the whole transport header (RFC 1858).
    FragmentTiny = 72, "FRAGMENT_TINY";
    /// A later fragment that overlaps the transport header (RFC 1858, RFC 3128).
    FragmentOverlap = 73, "FRAGMENT_OVERLAP";
    /// A second first fragment that says something else than the first.
    FragmentDisagrees = 74, "FRAGMENT_DISAGREES";
    /// A later fragment whose first fragment was not seen.
    FragmentOrphan = 75, "FRAGMENT_ORPHAN";
    /// The kernel could not store the connection's entry.
    TableFull = 76, "CT_MAP_INSERTION_FAILED";
    /// The endpoint's value changed twice while it was read.
    Unstable = 77, "ENDPOINT_UNSTABLE";
    /// TCP flags that no connection sends (none, SYN with FIN or RST).
    BadTcpFlags = 78, "INVALID_TCP_FLAGS";
}

impl Reason {
    /// Reasons from this number on are drops.
    pub const FIRST_DROP: u8 = 64;
    /// Numbers are below this: the size of counter arrays.
    pub const LIMIT: u8 = 96;

    #[inline(always)]
    #[must_use]
    pub const fn is_drop(self) -> bool {
        self as u8 >= Self::FIRST_DROP
    }
}

const _: () = {
    let mut i = 0;
    while i < Reason::ALL.len() {
        assert!((Reason::ALL[i] as u8) < Reason::LIMIT);
        i += 1;
    }
};
