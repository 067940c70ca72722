//! Whether netfilter has a say about what the node forwards.

use std::{fs, io};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::{self, Answer};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN` (include/uapi/linux/netfilter).
const GET_CHAIN: u16 = 10 << 8 | 4;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
/// Only base chains, those that the kernel hands packets to, have it.
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_HOOK_HOOKNUM: u16 = 1;
/// Length of `struct nfgenmsg`, whose first byte is the family.
const GENERIC_HEADER: usize = 4;

const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_ARP: u8 = 3;
const NFPROTO_IPV6: u8 = 10;
const NF_INET_LOCAL_IN: u32 = 1;
const NF_INET_LOCAL_OUT: u32 = 3;

/// The names of the tables of `iptables-legacy` that this network namespace uses.
const LEGACY: [(&str, &str); 2] = [
    ("iptables", "/proc/thread-self/net/ip_tables_names"),
    ("ip6tables", "/proc/thread-self/net/ip6_tables_names"),
];

/// Which rules forwarded packets would pass, if any would. Empty chains count too: what is in them changes more often
/// than anybody could look.
pub(super) fn rules() -> Option<String> {
    legacy().or_else(
        || match netlink::ask(NETLINK_NETFILTER, GET_CHAIN, netlink::NLM_F_DUMP, &[0; GENERIC_HEADER]) {
            Ok(chains) => chains.iter().find_map(chain),
            // A kernel without nftables has no such chains.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EINVAL | libc::EPROTONOSUPPORT)
                ) =>
            {
                None
            }
            Err(error) => Some(format!("nftables does not tell its chains: {error}")),
        },
    )
}

fn legacy() -> Option<String> {
    LEGACY.iter().find_map(|(tool, path)| match fs::read_to_string(path) {
        Ok(tables) => {
            let tables: Vec<_> = tables.lines().collect();
            (!tables.is_empty()).then(|| format!("{tool} has tables: {}", tables.join(", ")))
        }
        // The module was never loaded.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => Some(format!("{path}: {error}")),
    })
}

/// Says of a chain which one it is, if forwarded packets pass it.
fn chain(answer: &Answer) -> Option<String> {
    let family = *answer.body.first()?;
    let attributes = answer.body.get(GENERIC_HEADER..)?;
    let hook = netlink::attribute(attributes, NFTA_CHAIN_HOOK)?;
    let number = netlink::attribute(hook, NFTA_HOOK_HOOKNUM)?;
    let number = u32::from_be_bytes(*number.first_chunk()?);
    let local = matches!(family, NFPROTO_INET | NFPROTO_IPV4 | NFPROTO_IPV6)
        && matches!(number, NF_INET_LOCAL_IN | NF_INET_LOCAL_OUT);
    if local || family == NFPROTO_ARP {
        return None;
    }
    let name = |kind| {
        netlink::attribute(attributes, kind)
            .map(netlink::text)
            .unwrap_or_default()
    };
    Some(format!(
        "nftables has chain {} {}",
        name(NFTA_CHAIN_TABLE),
        name(NFTA_CHAIN_NAME)
    ))
}
