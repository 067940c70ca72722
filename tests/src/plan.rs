//! The compiler's plans in the maps of programs that are only test-run.

use anyhow::{Context as _, Result};
use weir::policy::plan::Op;
use weir_common::policy::{SOURCE_PORT_KEY_PREFIX, SourcePortKey};

use crate::testrun::Programs;

/// One operation of a plan on the real maps. Rows, decisions and traces that a plan removes stay: their ids never come
/// again. Endpoints are the caller's: there is one interface.
///
/// # Errors
/// What the kernel says of it.
pub fn execute(programs: &mut Programs, op: &Op) -> Result<()> {
    let done = match op {
        Op::PutTrace(trace) => programs.make_trace(*trace),
        Op::PutDecision(key, decision) => programs.set_decision(*key, *decision),
        Op::PutSourcePort {
            row,
            protocol,
            prefix,
            port,
            class,
        } => {
            let key = SourcePortKey {
                row: row.to_be_bytes(),
                protocol: *protocol,
                port: port.to_be_bytes(),
                pad: 0,
            };
            programs.set_source_port(key, SOURCE_PORT_KEY_PREFIX + u32::from(*prefix), *class)
        }
        Op::PutRow(key, row) => programs.set_row(key.table, key.class, *row),
        Op::PutIdentity {
            identity,
            class,
            local_node: _,
        } => programs.set_identity(*identity, *class, 0),
        Op::PutAddress(address, identity) => programs.set_address(*address, *identity),
        Op::PutCidr(net, identity) => programs.set_cidr(net.addr(), u32::from(net.prefix_len()), *identity),
        Op::DeleteAddress(address) => programs.remove_address(*address),
        Op::DeleteCidr(net) => programs.remove_cidr(net.addr(), u32::from(net.prefix_len())),
        Op::SetPolicy(_) | Op::BumpEpoch { .. } => Ok(()),
        Op::DeleteTrace(_) | Op::DeleteDecision(_) | Op::DeleteSourcePort { .. } | Op::DeleteRow(_) => Ok(()),
    };
    done.with_context(|| format!("{op:?}"))
}
