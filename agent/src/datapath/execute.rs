//! Runs the compiler's operations against the maps of the current generation.

use std::mem::discriminant;

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

/// Fewer operations go one by one.
const SMALLEST_BATCH: usize = 4;

/// More would only take memory.
const LARGEST_BATCH: usize = 4096;

/// Runs operations in their order: as many as possible by `batch`, which says how many it did, and those that it stops at by
/// `single`, whose error ends the run.
fn in_batches<T, O>(
    target: &mut T,
    mut ops: &[O],
    mut batch: impl FnMut(&mut T, &[O]) -> usize,
    mut single: impl FnMut(&mut T, &O) -> Result<()>,
) -> Result<()> {
    while !ops.is_empty() {
        if ops.len() >= SMALLEST_BATCH {
            let done = batch(target, ops);
            ops = ops.get(done..).unwrap_or_default();
        }
        if let Some((op, rest)) = ops.split_first() {
            single(target, op)?;
            ops = rest;
        }
    }
    Ok(())
}

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
        for alike in ops.chunk_by(|one, other| discriminant(one) == discriminant(other)) {
            for ops in alike.chunks(LARGEST_BATCH) {
                in_batches(self, ops, Self::batch, Self::run)?;
            }
        }
        Ok(())
    }

    /// Runs operations of one kind by one call of the kernel; returns how many it did. The next one, if any, is to be
    /// tried by itself: that says what is the matter. 0 for kinds that are not batched: addresses and prefixes are written
    /// again where they are there already, and only single writes tell that from new ones.
    fn batch(&mut self, ops: &[Op]) -> usize {
        let maps = &mut self.generation.maps;
        /// What stands in each of the operations.
        macro_rules! each {
            ($pattern:pat => $value:expr) => {
                ops.iter()
                    .filter_map(|op| match *op {
                        $pattern => Some($value),
                        _ => None,
                    })
                    .collect::<Vec<_>>()
            };
        }
        match ops.first() {
            Some(Op::PutTrace(_)) => {
                let Ok(cpus) = nr_cpus() else { return 0 };
                let zeros = vec![0_u64; cpus * ops.len()];
                let keys = each!(Op::PutTrace(trace) => trace);
                maps.traces.add_all(&keys, &zeros, cpus)
            }
            Some(Op::PutDecision(..)) => {
                let keys = each!(Op::PutDecision(key, _) => key);
                let values = each!(Op::PutDecision(_, decision) => decision);
                maps.decisions.add_all(&keys, &values, 1)
            }
            Some(Op::PutRow(..)) => {
                let keys = each!(Op::PutRow(key, _) => key);
                let values = each!(Op::PutRow(_, row) => row);
                maps.rows.add_all(&keys, &values, 1)
            }
            Some(Op::PutSourcePort { .. }) => {
                let keys = each!(Op::PutSourcePort { row, protocol, prefix, port, .. } =>
                    source_port_key(row, protocol, prefix, port));
                let values = each!(Op::PutSourcePort { class, .. } => class);
                maps.source_ports.add_all(&keys, &values, 1)
            }
            Some(Op::PutIdentity { .. }) => {
                let keys = each!(Op::PutIdentity { identity, .. } => identity);
                let values = each!(Op::PutIdentity { class, local_node, .. } => identity_entry(class, local_node));
                let done = maps.identity_batches.put(&keys, &values, 1);
                let highest = keys[..done].iter().max().map_or(0, |highest| highest.saturating_add(1));
                maps.identities_used = maps.identities_used.max(highest);
                done
            }
            Some(Op::DeleteTrace(_)) => maps.traces.delete_all(&each!(Op::DeleteTrace(trace) => trace)),
            Some(Op::DeleteDecision(_)) => maps.decisions.delete_all(&each!(Op::DeleteDecision(key) => key)),
            Some(Op::DeleteRow(_)) => maps.rows.delete_all(&each!(Op::DeleteRow(key) => key)),
            Some(Op::DeleteSourcePort { .. }) => {
                let keys = each!(Op::DeleteSourcePort { row, protocol, prefix, port } =>
                    source_port_key(row, protocol, prefix, port));
                maps.source_ports.delete_all(&keys)
            }
            Some(Op::DeleteAddress(_)) => {
                let keys = each!(Op::DeleteAddress(address) => Addr::from(address));
                maps.addresses.delete_all(&keys)
            }
            Some(
                Op::PutAddress(..) | Op::PutCidr(..) | Op::SetPolicy(_) | Op::BumpEpoch { .. } | Op::DeleteCidr(_),
            )
            | None => 0,
        }
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
                .put(&source_port_key(row, protocol, prefix, port), &class),
            Op::PutRow(ref key, ref row) => maps.rows.put(key, row),
            Op::PutIdentity {
                identity,
                class,
                local_node,
            } => {
                let capacity = maps.identities.len();
                maps.identities
                    .set(identity, identity_entry(class, local_node), 0)
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

const fn identity_entry(class: u32, local_node: bool) -> IdentityEntry {
    let flags = if local_node { IdentityEntry::LOCAL_NODE } else { 0 };
    IdentityEntry { class, flags }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Operations that were done, in order: (number, by a batch).
    type Done = Vec<(u32, bool)>;

    /// A kernel that does at most `most` operations of a batch and refuses those of `bad`.
    fn run(count: u32, most: usize, bad: &[u32]) -> (Done, bool) {
        let ops: Vec<u32> = (0..count).collect();
        let mut done = Done::new();
        let batch = |done: &mut Done, ops: &[u32]| {
            let good = ops.iter().take(most).take_while(|op| !bad.contains(op));
            let before = done.len();
            done.extend(good.map(|&op| (op, true)));
            done.len() - before
        };
        let single = |done: &mut Done, &op: &u32| {
            if bad.contains(&op) {
                return Err(Error::MapFull { map: "M", capacity: 1 });
            }
            done.push((op, false));
            Ok(())
        };
        let ok = in_batches(&mut done, &ops, batch, single).is_ok();
        (done, ok)
    }

    fn in_order(done: &Done, count: u32) {
        assert_eq!(
            done.iter().map(|(op, _)| *op).collect::<Vec<_>>(),
            (0..count).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_kernel_with_batches_gets_one_call() {
        let (done, ok) = run(1000, usize::MAX, &[]);
        assert!(ok && done.iter().all(|(_, batched)| *batched));
        in_order(&done, 1000);
    }

    #[test]
    fn a_kernel_without_batches_gets_every_operation_once() {
        let (done, ok) = run(1000, 0, &[]);
        assert!(ok && done.iter().all(|(_, batched)| !batched));
        in_order(&done, 1000);
    }

    #[test]
    fn what_a_batch_leaves_is_done_after_it() {
        let (done, ok) = run(1000, 300, &[]);
        assert!(ok);
        in_order(&done, 1000);
        assert_eq!(done.iter().filter(|(_, batched)| !batched).count(), 3);
    }

    #[test]
    fn the_first_failure_ends_the_run_with_all_before_it_done() {
        let (done, ok) = run(1000, usize::MAX, &[517]);
        assert!(!ok);
        in_order(&done, 517);
    }
}
