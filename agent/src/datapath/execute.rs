//! Runs the compiler's operations against the maps of the current generation.

use aya::{
    maps::{PerCpuValues, lpm_trie::Key},
    util::nr_cpus,
};
use weir_common::{
    Addr,
    identity::{AddressEntry, IdentityEntry},
    layout::map,
    policy::{SOURCE_PORT_KEY_PREFIX, SourcePortKey},
};

use super::{
    Datapath,
    endpoints::{cidr_key, source_key},
    error::{Error, Result},
};
use crate::policy::plan::Op;

impl Datapath {
    /// Runs operations in their order, and stops at the first that fails.
    ///
    /// Of a plan run `add`, then `flip`; then, after a grace period in which every program run
    /// that began before has ended, `remove`. An operation that
    /// names an endpoint whose interface is not known yet is remembered and takes effect with its interface.
    ///
    /// # Errors
    /// [`Error::MapFull`] where capacity was misjudged; else what the kernel said.
    pub fn execute(&mut self, ops: &[Op]) -> Result<()> {
        ops.iter().try_for_each(|op| self.run(op))
    }

    fn run(&mut self, op: &Op) -> Result<()> {
        let maps = &mut self.generation.maps;
        match *op {
            Op::PutTrace(trace) => {
                let failed = |error| Error::Map {
                    map: map::TRACES,
                    action: "add an entry",
                    source: error,
                };
                let cpus = nr_cpus().map_err(|(_, error)| failed(error))?;
                let zeros = PerCpuValues::try_from(vec![0_u64; cpus]).map_err(failed)?;
                maps.traces.put(&trace, &zeros)
            }
            Op::PutDecision(ref key, ref decision) => maps.decisions.put(key, decision),
            Op::PutSourcePort {
                row,
                protocol,
                prefix,
                port,
                class,
            } => maps
                .source_ports
                .put(&source_port_key(row, protocol, prefix, port), &u32::from(class)),
            Op::PutRow(ref key, ref row) => maps.rows.put(key, row),
            Op::PutIdentity {
                identity,
                class,
                local_node,
            } => {
                let flags = if local_node { IdentityEntry::LOCAL_NODE } else { 0 };
                let capacity = maps.identities.len();
                maps.identities
                    .set(identity, IdentityEntry { class, flags }, 0)
                    .map_err(|error| Error::map(map::IDENTITIES, "write an entry", capacity, error))?;
                maps.identities_used = maps.identities_used.max(identity.saturating_add(1));
                Ok(())
            }
            Op::PutAddress(address, identity) => {
                let address = Addr::from(address);
                let tag = address.0[3];
                maps.addresses.put(&address, &AddressEntry { identity, tag })
            }
            Op::PutCidr(ref net, identity) => maps.cidrs.put(&cidr_key(net), &AddressEntry { identity, tag: 0 }),
            Op::SetPolicy(policy) => {
                let endpoint = self.endpoints.entry(policy.endpoint).or_default();
                endpoint.policy = Some(policy);
                endpoint.advance();
                self.write(policy.endpoint)
            }
            Op::BumpEpoch { endpoint: id } => {
                let Some(endpoint) = self.endpoints.get_mut(&id) else {
                    return Ok(());
                };
                endpoint.advance();
                self.write(id)
            }
            Op::DeleteTrace(trace) => maps.traces.delete::<u32, PerCpuValues<u64>>(&trace),
            Op::DeleteDecision(ref key) => maps.decisions.delete(key),
            Op::DeleteSourcePort {
                row,
                protocol,
                prefix,
                port,
            } => maps.source_ports.delete(&source_port_key(row, protocol, prefix, port)),
            Op::DeleteRow(ref key) => maps.rows.delete(key),
            Op::DeleteAddress(address) => maps.addresses.delete(&Addr::from(address)),
            Op::DeleteCidr(ref net) => maps.cidrs.delete(&cidr_key(net)),
        }
    }

    /// Writes an endpoint's value whole, if interface and policy are known: the one write that flips it.
    pub(super) fn write(&mut self, id: u32) -> Result<()> {
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return Err(Error::UnknownEndpoint { id });
        };
        let Some(value) = endpoint.value() else { return Ok(()) };
        self.generation.maps.endpoints.put(&value.ifindex, &value)?;
        endpoint.written = Some(value.ifindex);
        Ok(())
    }

    /// Takes an endpoint's interface from it: its value and its source prefixes go out of the maps.
    pub(super) fn erase(&mut self, id: u32) -> Result<()> {
        let Some(endpoint) = self.endpoints.get_mut(&id) else {
            return Ok(());
        };
        endpoint.written = None;
        endpoint.attached = false;
        let Some(binding) = endpoint.binding.take() else {
            return Ok(());
        };
        self.generation.maps.endpoints.delete(&binding.ifindex)?;
        for net in &binding.more_sources {
            self.generation.maps.sources.delete(&source_key(id, net))?;
        }
        Ok(())
    }
}

fn source_port_key(row: u32, protocol: u8, prefix: u8, port: u16) -> Key<SourcePortKey> {
    Key::new(
        SOURCE_PORT_KEY_PREFIX + u32::from(prefix),
        SourcePortKey {
            row: row.to_be_bytes(),
            protocol,
            port: port.to_be_bytes(),
            pad: 0,
        },
    )
}
