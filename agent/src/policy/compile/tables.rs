//! The live tables, and the rows that they have for classes.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};
use weir_common::policy::RowKey;

use super::{
    lists::Lists,
    rows::Rows,
    store::{Delta, Store, Wanted},
    succeed::Succession,
    table::{Memo, Origin, Table, TableKey, TierKey},
    trace::Traces,
};
use crate::{
    identity::{ClassKey, Identities},
    policy::{model::Family, plan::Op},
};

#[derive(Debug, Default)]
pub struct Tables {
    pub tables: FxHashMap<u32, Table>,
    pub lists: Lists,
    by_key: FxHashMap<Arc<TableKey>, u32>,
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
    pub fn row_key(number: u32, class: u32) -> RowKey {
        RowKey {
            table: number,
            class,
            local_class: 0,
        }
    }

    pub fn find_or_create(&mut self, wanted: Wanted, identities: &mut Identities, traces: &mut Traces) -> u32 {
        if let Some(&id) = self.by_key.get(&wanted.key) {
            return id;
        }
        let Wanted { key, lists } = wanted;
        let mut lists = lists.into_iter();
        let mut local = &key.local[..];
        let mut tiers = Vec::with_capacity(key.tiers.len());
        for tier in &key.tiers {
            let mut held = Vec::with_capacity(tier.rules.len());
            for listed in lists.by_ref().take(tier.rules.len()) {
                let (own, rest) = local.split_at(listed.local_conditions(key.direction));
                local = rest;
                let list = self.lists.hold(&listed, key.direction, own.into(), identities, traces);
                held.push(list);
            }
            tiers.push(held);
        }
        self.create(key, &tiers, traces)
    }

    fn create(&mut self, key: TableKey, tiers: &[Vec<u32>], traces: &mut Traces) -> u32 {
        self.last_id += 1;
        let table = Table::new(self.last_id, Arc::new(key), tiers, &mut self.lists, traces);
        self.fresh.push(table.id);
        self.add(table)
    }

    /// The table that another becomes when some of its lists go and others come.
    pub fn derive(
        &mut self,
        id: u32,
        delta: &Delta,
        store: &Store,
        identities: &mut Identities,
        traces: &mut Traces,
    ) -> Option<u32> {
        let parent = self.tables.get(&id)?;
        let mut key = TableKey::clone(&parent.key);
        let mut tiers = parent.tiers();
        let mut gone: Vec<(usize, usize)> = delta.removed.iter().filter_map(|&list| parent.place(list)).collect();
        gone.sort_unstable();
        for (tier, at) in gone.into_iter().rev() {
            tiers[tier].remove(at);
            key.tiers[tier].rules.remove(at);
        }
        let mut inserted = Vec::new();
        for listed in &delta.inserted {
            let list = self
                .lists
                .hold(listed, key.direction, Box::default(), identities, traces);
            inserted.push(list);
            let name = &listed.policy.tier;
            let tier = match key.tiers.iter().position(|tier| tier.name == *name) {
                Some(tier) => tier,
                None => {
                    let new = store.tier(name);
                    let before = |tier: &TierKey| {
                        let tier = store.tier(&tier.name);
                        (tier.order, &tier.name) < (new.order, &new.name)
                    };
                    let at = key.tiers.partition_point(before);
                    key.tiers.insert(
                        at,
                        TierKey {
                            name: new.name,
                            default_action: new.default_action,
                            rules: Vec::new(),
                        },
                    );
                    tiers.insert(at, Vec::new());
                    at
                }
            };
            let before = |&other: &u32| store.is_before(self.lists[other].number, listed.number);
            let at = tiers[tier].partition_point(before);
            tiers[tier].insert(at, list);
            key.tiers[tier].rules.insert(at, listed.rules);
        }
        let mut kept = tiers.iter().map(|lists| !lists.is_empty());
        key.tiers.retain(|_| kept.next().unwrap_or_default());
        tiers.retain(|lists| !lists.is_empty());
        if let Some(&known) = self.by_key.get(&key) {
            for list in inserted {
                self.lists.release(list, identities, traces);
            }
            return Some(known);
        }
        for &list in tiers.iter().flatten() {
            self.lists.retain(list);
        }
        let child = self.create(key, &tiers, traces);
        let differing: Vec<u32> = delta.removed.iter().chain(&inserted).copied().collect();
        for list in inserted {
            // The table holds it too.
            self.lists.release(list, identities, traces);
        }
        let (parent, table) = (self.tables.get(&id)?, self.tables.get(&child)?);
        if table.same_world(parent, &differing, &self.lists) {
            let mut matchers: Vec<u32> = differing
                .iter()
                .flat_map(|&list| &*self.lists[list].matchers)
                .copied()
                .collect();
            matchers.sort_unstable();
            matchers.dedup();
            let origin = Some(Origin { table: id, matchers });
            if let Some(table) = self.tables.get_mut(&child) {
                table.origin = origin;
            }
        }
        Some(child)
    }

    /// The table that the kernel knows under a number.
    pub fn numbered(&self, number: u32) -> Option<u32> {
        let mut tables = self.tables.values();
        tables.find(|table| table.number == number).map(|table| table.id)
    }

    /// The list of these rules, without conditions on the endpoint's own end, if a table walks it.
    pub fn walked(&self, table: u32, rules: u32) -> Option<u32> {
        let list = self.lists.find(rules, Box::default())?;
        self.tables.get(&table)?.place(list).map(|_| list)
    }

    fn add(&mut self, table: Table) -> u32 {
        let id = table.id;
        self.by_key.insert(table.key.clone(), id);
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
    pub fn duplicate(&mut self, id: u32, traces: &mut Traces, rows: &mut Rows, add: &mut Vec<Op>) -> Option<u32> {
        self.last_id += 1;
        let table = self.tables.get(&id)?;
        let twin = table.duplicate(self.last_id, &mut self.lists, traces, rows);
        self.row_count += twin.rows.len();
        twin.put_all(rows, add);
        Some(self.add(twin))
    }

    /// Lets a table have the rows of the one that it was made from, with other rows for some classes: under its own number,
    /// beside the other.
    pub fn copy_rows(&mut self, id: u32, from: u32, changed: &[(u32, u32)], rows: &mut Rows, add: &mut Vec<Op>) {
        let Some(source) = self.tables.get(&from) else {
            return;
        };
        let (mut copy, default_row, by_family) = (source.rows.clone(), source.default_row, source.by_family);
        for &(class, row) in changed {
            if row == default_row {
                copy.remove(&class);
            } else {
                copy.insert(class, row);
            }
        }
        copy.values().for_each(|&row| rows.hold(row));
        rows.hold(default_row);
        if by_family {
            self.by_family.insert(id);
        }
        if let Some(table) = self.tables.get_mut(&id) {
            self.row_count += copy.len();
            table.rows = copy;
            table.default_row = default_row;
            table.by_family = by_family;
            table.put_all(rows, add);
        }
    }

    /// Lets a table be in the kernel what the one that it was made from was: it takes over number and rows. Nobody obeys
    /// the other any more.
    pub fn take_over(&mut self, id: u32, from: u32, serial: u64, rows: &mut Rows) {
        let Some(mut old) = self.remove(from) else {
            return;
        };
        if let Some(table) = self.tables.get_mut(&id) {
            table.number = old.number;
            table.rows = std::mem::take(&mut old.rows);
            // The hold goes over too.
            table.default_row = old.default_row;
            table.by_family = old.by_family;
            if old.by_family {
                self.by_family.insert(id);
            }
        } else {
            rows.release(old.default_row);
        }
        self.retired.push((serial, old));
    }

    /// Tables whose rows for a class may differ from the default row.
    pub fn candidates(&self, class: &ClassKey) -> Vec<u32> {
        let mut candidates: Vec<u32> = class.signature.iter().flat_map(|&it| self.asking(it)).collect();
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

    /// Tables that ask a match. Some may come twice.
    fn asking(&self, matcher: u32) -> impl Iterator<Item = u32> {
        let lists = self.lists.asking(matcher).iter();
        lists.flat_map(|&list| &self.lists[list].tables).copied()
    }

    /// Live tables whose rows for two classes of one family may differ.
    pub fn telling_apart(&self, one: &ClassKey, other: &ClassKey) -> Vec<u32> {
        let lone = |a: &ClassKey, b: &ClassKey| -> Vec<u32> {
            let alone = a.signature.iter().filter(|it| b.signature.binary_search(it).is_err());
            alone.flat_map(|&it| self.asking(it)).collect()
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
        succession: &Succession,
        identities: &Identities,
        rows: &mut Rows,
        traces: &mut Traces,
        add: &mut Vec<Op>,
    ) -> Vec<u32> {
        let mut order = std::mem::take(&mut self.fresh);
        order.sort_unstable();
        order.retain(|id| !succession.in_place.contains(id));
        let empty: FxHashSet<u32> = order
            .iter()
            .filter(|id| !succession.copied.contains(id))
            .copied()
            .collect();
        let lists = &self.lists;
        for &id in order.iter().filter(|id| empty.contains(id)) {
            let Some(table) = self.tables.get_mut(&id) else {
                continue;
            };
            let mut memo = Memo::default();
            table.compile_default(&mut memo, lists, identities, rows, traces);
            if table.by_family {
                self.by_family.insert(id);
            }
            let matchers = table.walk.iter().flat_map(|&list| &*lists[list].matchers);
            let mut classes: Vec<u32> = matchers.flat_map(|&matcher| identities.classes_of(matcher)).collect();
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
                    let row = table.compile(&known.key, &mut memo, lists, identities, rows, traces);
                    self.row_count += usize::from(put_row(table, class, row, rows, add));
                }
            }
        }
        let mut memos: FxHashMap<u32, Memo> = FxHashMap::default();
        for &class in new_classes {
            let Some(known) = identities.classes().get(class) else {
                continue;
            };
            let renewed = succession.renewed.get(&class);
            for id in self.candidates(&known.key) {
                if empty.contains(&id) {
                    continue;
                }
                let Some(table) = self.tables.get_mut(&id) else {
                    continue;
                };
                let row = match renewed {
                    Some(&old) => succession.row(table, old),
                    None => {
                        let memo = memos.entry(id).or_default();
                        table.compile(&known.key, memo, &self.lists, identities, rows, traces)
                    }
                };
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
            let Some(table) = self.tables.get_mut(&id) else {
                continue;
            };
            let number = table.number;
            if let Some(row) = table.rows.remove(&class) {
                rows.release(row);
                self.row_count -= 1;
                remove.push(Op::DeleteRow(Self::row_key(number, class)));
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

    /// Takes a table out of what is looked up.
    fn remove(&mut self, id: u32) -> Option<Table> {
        let table = self.tables.remove(&id)?;
        if self.by_key.get(&table.key) == Some(&id) {
            self.by_key.remove(&table.key);
        }
        for &list in &table.walk {
            self.lists.leave(list, id);
        }
        self.by_family.remove(&id);
        self.by_ports.remove(&id);
        Some(table)
    }

    /// Takes out a table. `unput`: rows that the kernel does not have.
    pub fn refuse(&mut self, id: u32, serial: u64, unput: &FxHashSet<RowKey>, rows: &mut Rows, remove: &mut Vec<Op>) {
        let Some(mut table) = self.remove(id) else {
            return;
        };
        self.row_count -= table.rows.len();
        let mut classes: Vec<(u32, u32)> = table.rows.drain().collect();
        classes.sort_unstable();
        for (class, row) in classes {
            rows.release(row);
            let key = Self::row_key(table.number, class);
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
            table.let_go(&mut self.lists, identities, traces);
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
    add.push(Op::PutRow(Tables::row_key(table.number, class), rows.row(row)));
    true
}

impl Table {
    /// Its rows, for a number that the kernel does not know yet.
    fn put_all(&self, rows: &Rows, add: &mut Vec<Op>) {
        let mut own: Vec<(u32, u32)> = self.rows.iter().map(|(&class, &row)| (class, row)).collect();
        own.sort_unstable();
        add.extend(
            own.into_iter()
                .map(|(class, row)| Op::PutRow(Tables::row_key(self.number, class), rows.row(row))),
        );
    }
}
