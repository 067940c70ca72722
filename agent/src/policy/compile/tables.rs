//! The live tables, and the rows that they have for classes.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use weir_common::policy::RowKey;

use super::{
    rows::Rows,
    store::Wanted,
    table::{Memo, Table, TableKey},
    trace::Traces,
};
use crate::{
    identity::{ClassKey, Identities},
    policy::{model::Family, plan::Op},
};

#[derive(Debug, Default)]
pub struct Tables {
    pub tables: FxHashMap<u32, Table>,
    by_key: FxHashMap<Arc<TableKey>, u32>,
    by_matcher: FxHashMap<u32, Vec<u32>>,
    /// With rows that depend on the family, and on the peer's ports.
    by_family: FxHashSet<u32>,
    by_ports: FxHashSet<u32>,
    last_id: u32,
    /// Without rows so far.
    pub fresh: Vec<u32>,
    /// May be without users.
    loose: Vec<u32>,
    /// Not known to the kernel once the plan of that serial is executed; till then they hold what they ask.
    retired: Vec<(u64, Table)>,
    /// Rows of classes in tables.
    pub row_count: usize,
}

impl Tables {
    pub fn row_key(table: u32, class: u32) -> RowKey {
        RowKey {
            table,
            class,
            local_class: 0,
        }
    }

    pub fn find_or_create(&mut self, wanted: Wanted, identities: &mut Identities, traces: &mut Traces) -> u32 {
        if let Some(&id) = self.by_key.get(&wanted.key) {
            return id;
        }
        self.last_id += 1;
        let key = Arc::new(wanted.key);
        let table = Table::new(self.last_id, key, wanted.policies, identities, traces);
        self.fresh.push(table.id);
        self.add(table)
    }

    fn add(&mut self, table: Table) -> u32 {
        let id = table.id;
        self.by_key.insert(table.key.clone(), id);
        for matcher in table.matchers() {
            self.by_matcher.entry(matcher).or_default().push(id);
        }
        if table.asks_ports() {
            self.by_ports.insert(id);
        }
        if table.by_family {
            self.by_family.insert(id);
        }
        self.loose.push(id);
        self.tables.insert(id, table);
        id
    }

    pub fn join(&mut self, table: Option<u32>) {
        if let Some(table) = table.and_then(|id| self.tables.get_mut(&id)) {
            table.users += 1;
        }
    }

    pub fn leave(&mut self, table: Option<u32>) {
        if let Some(table) = table.and_then(|id| self.tables.get_mut(&id)) {
            table.users -= 1;
            if table.users == 0 {
                self.loose.push(table.id);
            }
        }
    }

    /// Another table of the same content, for new users; the old one is not found any more.
    pub fn duplicate(
        &mut self,
        id: u32,
        identities: &mut Identities,
        traces: &mut Traces,
        rows: &mut Rows,
        add: &mut Vec<Op>,
    ) -> Option<u32> {
        self.last_id += 1;
        let twin = self.tables.get(&id)?.duplicate(self.last_id, identities, traces, rows);
        self.row_count += twin.rows.len();
        for (&class, &row) in &twin.rows {
            add.push(Op::PutRow(Self::row_key(twin.id, class), rows.row(row)));
        }
        Some(self.add(twin))
    }

    /// Tables whose rows for a class may differ from the default row.
    fn candidates(&self, class: &ClassKey) -> Vec<u32> {
        let mut candidates: Vec<u32> = Vec::new();
        for matcher in &class.signature {
            candidates.extend(self.by_matcher.get(matcher).into_iter().flatten());
        }
        if class.family == Family::V6 {
            candidates.extend(&self.by_family);
        }
        if !class.ports.is_empty() {
            candidates.extend(&self.by_ports);
        }
        candidates.sort_unstable();
        candidates.dedup();
        candidates
    }

    /// Live tables whose rows for two classes of one family may differ.
    pub fn telling_apart(&self, one: &ClassKey, other: &ClassKey) -> Vec<u32> {
        let lone = |a: &ClassKey, b: &ClassKey| -> Vec<u32> {
            let alone = a.signature.iter().filter(|it| b.signature.binary_search(it).is_err());
            alone
                .filter_map(|it| self.by_matcher.get(it))
                .flatten()
                .copied()
                .collect()
        };
        let mut tables = lone(one, other);
        tables.extend(lone(other, one));
        if one.ports != other.ports {
            tables.extend(&self.by_ports);
        }
        tables.sort_unstable();
        tables.dedup();
        tables
    }

    /// Makes the rows of new tables for all classes, and those of new classes for all tables. Returns the new tables.
    pub fn fill(
        &mut self,
        new_classes: &[u32],
        identities: &Identities,
        rows: &mut Rows,
        traces: &mut Traces,
        add: &mut Vec<Op>,
    ) -> Vec<u32> {
        let fresh: FxHashSet<u32> = std::mem::take(&mut self.fresh).into_iter().collect();
        let mut order: Vec<u32> = fresh.iter().copied().collect();
        order.sort_unstable();
        for &id in &order {
            let Some(table) = self.tables.get_mut(&id) else {
                continue;
            };
            let mut memo = Memo::default();
            table.compile_default(&mut memo, identities, rows, traces);
            if table.by_family {
                self.by_family.insert(id);
            }
            let mut classes: Vec<u32> = table
                .matchers()
                .flat_map(|matcher| identities.classes_of(matcher))
                .collect();
            if table.by_family || table.asks_ports() {
                let others = identities.classes().iter().filter(|(_, class)| {
                    table.by_family && class.key.family == Family::V6
                        || table.asks_ports() && !class.key.ports.is_empty()
                });
                classes.extend(others.map(|(id, _)| id));
            }
            classes.sort_unstable();
            classes.dedup();
            for class in classes {
                if let Some(known) = identities.classes().get(class) {
                    let row = table.compile(&known.key, &mut memo, identities, rows, traces);
                    self.row_count += usize::from(put_row(table, class, row, rows, add));
                }
            }
        }
        let mut memos: FxHashMap<u32, Memo> = FxHashMap::default();
        for &class in new_classes {
            let Some(known) = identities.classes().get(class) else {
                continue;
            };
            for id in self.candidates(&known.key) {
                if fresh.contains(&id) {
                    continue;
                }
                let Some(table) = self.tables.get_mut(&id) else {
                    continue;
                };
                let memo = memos.entry(id).or_default();
                let row = table.compile(&known.key, memo, identities, rows, traces);
                self.row_count += usize::from(put_row(table, class, row, rows, add));
            }
        }
        order
    }

    /// Gives a class of a moment the row of another class in one table.
    pub fn lend_row(&mut self, id: u32, class: u32, row: u32, rows: &mut Rows, add: &mut Vec<Op>) {
        if let Some(table) = self.tables.get_mut(&id) {
            self.row_count += usize::from(put_row(table, class, row, rows, add));
        }
    }

    /// Takes the rows of a class out of every table.
    pub fn remove_class(&mut self, class: u32, key: Option<&ClassKey>, rows: &mut Rows, remove: &mut Vec<Op>) {
        let candidates = key.map_or_else(|| self.tables.keys().copied().collect(), |key| self.candidates(key));
        for id in candidates {
            if let Some(row) = self.tables.get_mut(&id).and_then(|table| table.rows.remove(&class)) {
                rows.release(row);
                self.row_count -= 1;
                remove.push(Op::DeleteRow(Self::row_key(id, class)));
            }
        }
    }

    /// Takes out the tables that nobody obeys.
    pub fn retire(&mut self, serial: u64, rows: &mut Rows, remove: &mut Vec<Op>) {
        let mut loose = std::mem::take(&mut self.loose);
        loose.sort_unstable();
        loose.dedup();
        for id in loose {
            if self.tables.get(&id).is_some_and(|table| table.users == 0) {
                self.refuse(id, serial, &FxHashSet::default(), rows, remove);
            }
        }
    }

    /// Takes out a table. `unput`: rows that the kernel does not have.
    pub fn refuse(&mut self, id: u32, serial: u64, unput: &FxHashSet<RowKey>, rows: &mut Rows, remove: &mut Vec<Op>) {
        let Some(mut table) = self.tables.remove(&id) else {
            return;
        };
        if self.by_key.get(&table.key) == Some(&id) {
            self.by_key.remove(&table.key);
        }
        for matcher in table.matchers() {
            if let Some(list) = self.by_matcher.get_mut(&matcher) {
                list.retain(|other| *other != id);
                if list.is_empty() {
                    self.by_matcher.remove(&matcher);
                }
            }
        }
        self.by_family.remove(&id);
        self.by_ports.remove(&id);
        self.row_count -= table.rows.len();
        let mut classes: Vec<(u32, u32)> = table.rows.drain().collect();
        classes.sort_unstable();
        for (class, row) in classes {
            rows.release(row);
            let key = Self::row_key(id, class);
            if !unput.contains(&key) {
                remove.push(Op::DeleteRow(key));
            }
        }
        rows.release(table.default_row);
        self.retired.push((serial, table));
    }

    /// Whether [`Tables::let_go`] would do something after the plan of that serial.
    pub fn has_retired(&self, executed: u64) -> bool {
        self.retired.iter().any(|(serial, _)| *serial <= executed)
    }

    /// Gives back what tables held that no kernel program can know any more.
    pub fn let_go(&mut self, executed: u64, identities: &mut Identities, traces: &mut Traces) {
        let (gone, kept) = std::mem::take(&mut self.retired)
            .into_iter()
            .partition(|(serial, _)| *serial <= executed);
        self.retired = kept;
        let gone: Vec<(u64, Table)> = gone;
        for (_, table) in gone {
            table.let_go(identities, traces);
        }
    }
}

/// True: the table has one row more.
fn put_row(table: &mut Table, class: u32, row: u32, rows: &mut Rows, add: &mut Vec<Op>) -> bool {
    if row == table.default_row || table.rows.contains_key(&class) {
        return false;
    }
    rows.hold(row);
    table.rows.insert(class, row);
    add.push(Op::PutRow(Tables::row_key(table.id, class), rows.row(row)));
    true
}
