//! Who can send: what probes and traffic need to know of a cluster, be it made of namespaces or of real pods.

use std::{net::IpAddr, sync::Arc};

use anyhow::{Context, Result};

use super::{Addresses, Family, NetNs};

/// Hosts by name: `namespace/pod`, `ext/NAME`, `node/NAME`.
pub trait Hosts {
    /// The network namespace and addresses of a host.
    ///
    /// # Errors
    /// If there is no such host.
    fn host(&self, name: &str) -> Result<(&Arc<NetNs>, Addresses)>;

    /// A host's address of one family.
    ///
    /// # Errors
    /// If there is no such host, or it has none of that family.
    fn address(&self, name: &str, family: Family) -> Result<IpAddr> {
        let (_, addresses) = self.host(name)?;
        addresses
            .of(family)
            .with_context(|| format!("{name} has no {family:?} address"))
    }
}
