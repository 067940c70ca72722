//! Rows, named by content and shared by all tables.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use weir_common::policy::{Decision, DecisionKey, PrefixMask, Row, Slot, SourceClass};

use super::trace::Traces;
use crate::{identity::slab::Slab, policy::plan::Op};

/// A decision for a prefix of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortDecision {
    pub protocol: u8,
    pub prefix: u8,
    pub source_class: u16,
    pub port: u16,
    pub decision: Decision,
}

/// A prefix of source ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourcePort {
    pub protocol: u8,
    pub prefix: u8,
    pub port: u16,
    pub class: u16,
    /// The decision where no prefix of destination ports matches.
    pub base: Decision,
}

/// What a row has in the decision and source port maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Entries {
    pub decisions: Vec<PortDecision>,
    pub source_ports: Vec<SourcePort>,
}

/// All that a row says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub base: [Decision; Slot::COUNT],
    pub prefixes: PrefixMask,
    pub entries: Entries,
}

#[derive(Debug)]
struct Known {
    row: Row,
    entries: Arc<Entries>,
    references: usize,
}

#[derive(Debug)]
struct Named {
    id: u32,
    references: usize,
}

/// Entries that come and go.
#[derive(Debug, Default)]
pub struct Sweep {
    pub fresh: Vec<(u32, Arc<Entries>)>,
    pub dead: Vec<(u32, Arc<Entries>)>,
}

#[derive(Debug, Default)]
pub struct Rows {
    rows: Slab<Known>,
    numbers: FxHashMap<Row, u32>,
    entries: FxHashMap<Arc<Entries>, Named>,
    last_id: u32,
    fresh: Vec<(u32, Arc<Entries>)>,
    dead: Vec<(u32, Arc<Entries>)>,
    loose: Vec<u32>,
    no_entries: Arc<Entries>,
    /// Entries in the maps.
    pub decisions: usize,
    pub source_ports: usize,
}

impl Rows {
    pub fn row(&self, number: u32) -> Row {
        self.rows[number].row
    }

    pub fn entries(&self, number: u32) -> &Arc<Entries> {
        &self.rows[number].entries
    }

    /// Entry sets in the maps, by row id.
    pub fn named(&self) -> impl Iterator<Item = (u32, &Arc<Entries>)> {
        self.entries.iter().map(|(entries, named)| (named.id, entries))
    }

    /// The number of a row of that content. It must be held before the next [`Rows::sweep`].
    pub fn intern(&mut self, content: Content, traces: &mut Traces) -> u32 {
        let Content {
            base,
            prefixes,
            entries,
        } = content;
        let (id, entries) = if entries == Entries::default() {
            (0, self.no_entries.clone())
        } else if let Some((entries, named)) = self.entries.get_key_value(&entries) {
            (named.id, entries.clone())
        } else {
            self.last_id += 1;
            let entries = Arc::new(entries);
            let named = Named {
                id: self.last_id,
                references: 0,
            };
            self.decisions += entries.decisions.len();
            self.source_ports += entries.source_ports.len();
            self.entries.insert(entries.clone(), named);
            self.fresh.push((self.last_id, entries.clone()));
            (self.last_id, entries)
        };
        let row = Row { id, prefixes, base };
        if let Some(&number) = self.numbers.get(&row) {
            return number;
        }
        if let Some(named) = self.entries.get_mut(&entries) {
            named.references += 1;
        }
        for trace in traces_of(&row, &entries) {
            traces.hold(trace);
        }
        let number = self.rows.insert(Known {
            row,
            entries,
            references: 0,
        });
        self.numbers.insert(row, number);
        self.loose.push(number);
        number
    }

    pub fn hold(&mut self, number: u32) {
        self.rows[number].references += 1;
    }

    pub fn release(&mut self, number: u32) {
        let known = &mut self.rows[number];
        known.references -= 1;
        if known.references == 0 {
            self.loose.push(number);
        }
    }

    /// Forgets rows that nobody holds. What came and went since the last [`Rows::sweep`] never gets into the maps.
    pub fn collect(&mut self, traces: &mut Traces) {
        let mut gone: FxHashMap<u32, Arc<Entries>> = FxHashMap::default();
        for number in std::mem::take(&mut self.loose) {
            if self.rows.get(number).is_none_or(|known| known.references > 0) {
                continue;
            }
            let Some(Known { row, entries, .. }) = self.rows.remove(number) else {
                continue;
            };
            self.numbers.remove(&row);
            for trace in traces_of(&row, &entries) {
                traces.release(trace);
            }
            let unused = self.entries.get_mut(&entries).is_some_and(|named| {
                named.references -= 1;
                named.references == 0
            });
            if unused {
                self.entries.remove(&entries);
                self.decisions -= entries.decisions.len();
                self.source_ports -= entries.source_ports.len();
                gone.insert(row.id, entries);
            }
        }
        if !gone.is_empty() {
            self.fresh.retain(|(id, _)| gone.remove(id).is_none());
            let mut gone: Vec<_> = gone.into_iter().collect();
            gone.sort_unstable_by_key(|(id, _)| *id);
            self.dead.append(&mut gone);
        }
    }

    /// Decisions and source ports that wait for [`Rows::sweep`] to tell of their end.
    pub fn dying(&self) -> (usize, usize) {
        let dead = self.dead.iter();
        dead.fold((0, 0), |(decisions, source_ports), (_, entries)| {
            (
                decisions + entries.decisions.len(),
                source_ports + entries.source_ports.len(),
            )
        })
    }

    /// What comes into the maps and what goes, after [`Rows::collect`].
    pub fn sweep(&mut self) -> Sweep {
        Sweep {
            fresh: std::mem::take(&mut self.fresh),
            dead: std::mem::take(&mut self.dead),
        }
    }
}

/// Traces that a row names, each once for each time.
fn traces_of<'a>(row: &Row, entries: &'a Entries) -> impl Iterator<Item = u32> + 'a {
    let base = row.base;
    base.into_iter()
        .chain(entries.decisions.iter().map(|entry| entry.decision))
        .chain(entries.source_ports.iter().map(|entry| entry.base))
        .map(Decision::trace)
}

impl Entries {
    pub fn put(&self, row: u32, ops: &mut Vec<Op>) {
        ops.extend(
            self.decisions
                .iter()
                .map(|entry| Op::PutDecision(entry.key(row), entry.decision)),
        );
        ops.extend(self.source_ports.iter().map(|entry| Op::PutSourcePort {
            row,
            protocol: entry.protocol,
            prefix: entry.prefix,
            port: entry.port,
            class: SourceClass {
                class: u32::from(entry.class),
                base: entry.base,
            },
        }));
    }

    pub fn delete(&self, row: u32, ops: &mut Vec<Op>) {
        ops.extend(self.decisions.iter().map(|entry| Op::DeleteDecision(entry.key(row))));
        ops.extend(self.source_ports.iter().map(|entry| Op::DeleteSourcePort {
            row,
            protocol: entry.protocol,
            prefix: entry.prefix,
            port: entry.port,
        }));
    }
}

impl PortDecision {
    const fn key(&self, row: u32) -> DecisionKey {
        DecisionKey {
            row,
            protocol: self.protocol,
            prefix: self.prefix,
            source_class: self.source_class,
            port: self.port,
            pad: 0,
        }
    }
}
