//! A policy changes, and a table with it, but only for some classes of peers.
//!
//! Then its successor takes over the table's number and rows. Each class that it says something else of is *renewed*: it
//! goes on under another id, which has the new row in this table and the same rows as before in all others, and its
//! identities move there, each by one write. So what a change costs follows what it changes, no row is ever written in
//! place (a reader may hold its element), and each peer has its old decisions until one write gives it the new ones.
//!
//! Where endpoints part from each other, the world's row changes, or most rows do, the successor is a table beside the
//! old one, as any new table. It still compiles only the rows that differ.

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    Compiler,
    table::{Memo, Table},
};
use crate::{identity::Grouping, policy::plan::Plan};

/// Renewing classes is not weighed against copying a table of fewer rows than this.
const SMALL_TABLE: usize = 64;

/// Tables that were made from others.
#[derive(Debug, Default)]
pub struct Succession {
    /// Those that took over from the other.
    pub in_place: Vec<u32>,
    /// Those that stand beside the other, with all rows but those of new classes.
    pub copied: Vec<u32>,
    /// Classes to be renewed, in order.
    pub classes: Vec<u32>,
    /// New class -> the class that it renews.
    pub renewed: FxHashMap<u32, u32>,
    /// (Table, old class) -> row.
    rows: FxHashMap<(u32, u32), u32>,
}

impl Succession {
    /// The row that a table has for the class that comes in the place of another.
    pub fn row(&self, table: &Table, old: u32) -> u32 {
        let own = self.rows.get(&(table.id, old));
        own.copied().unwrap_or_else(|| table.row_of(old))
    }
}

impl Compiler {
    /// Gives new tables that were made from others their rows, or the others' place.
    pub(super) fn succeed(&mut self, grouping: &Grouping, plan: &mut Plan) -> Succession {
        let mut succession = Succession::default();
        let new: FxHashSet<u32> = grouping.new_classes().iter().copied().collect();
        let mut renewing: FxHashSet<u32> = FxHashSet::default();
        // Rows and moves that renewing costs so far.
        let mut spent = 0;
        for id in self.tables.fresh.clone() {
            let origin = self.tables.tables.get_mut(&id).and_then(|table| table.origin.take());
            let Some(origin) = origin else {
                continue;
            };
            let mut classes: Vec<u32> = origin
                .matchers
                .iter()
                .flat_map(|&matcher| self.identities.classes_of(matcher))
                .filter(|class| !new.contains(class))
                .collect();
            classes.sort_unstable();
            classes.dedup();
            let Some(changed) = self.changed_rows(id, origin.table, &classes) else {
                continue;
            };
            let cost = self.renewal_cost(id, origin.table, &changed, &renewing);
            match cost.filter(|cost| self.room_for_rows(spent + cost) && !self.tables_overflow()) {
                Some(cost) => {
                    spent += cost;
                    self.tables.take_over(id, origin.table, plan.serial, &mut self.rows);
                    self.endpoints.take_over(id, origin.table);
                    for (class, row) in changed {
                        renewing.insert(class);
                        succession.rows.insert((id, class), row);
                    }
                    succession.in_place.push(id);
                }
                None => {
                    self.tables
                        .copy_rows(id, origin.table, &changed, &mut self.rows, &mut plan.add);
                    succession.copied.push(id);
                }
            }
        }
        succession.classes = renewing.into_iter().collect();
        succession.classes.sort_unstable();
        succession
    }

    /// The rows that a table has for some of these classes and the table that it was made from has not. None: that one is
    /// no more.
    fn changed_rows(&mut self, id: u32, from: u32, classes: &[u32]) -> Option<Vec<(u32, u32)>> {
        let table = self.tables.tables.get(&id)?;
        let old = self.tables.tables.get(&from)?;
        let mut memo = Memo::default();
        let mut changed = Vec::new();
        for &class in classes {
            let Some(known) = self.identities.classes().get(class) else {
                continue;
            };
            let row = table.compile(
                &known.key,
                &mut memo,
                &self.tables.lists,
                &self.identities,
                &mut self.rows,
                &mut self.traces,
            );
            if row != old.row_of(class) {
                changed.push((class, row));
            }
        }
        Some(changed)
    }

    /// Writes that renewing these classes takes, beside those that are renewed anyway. None: that is not possible, or
    /// costs more than another table.
    fn renewal_cost(&self, id: u32, from: u32, changed: &[(u32, u32)], renewing: &FxHashSet<u32>) -> Option<usize> {
        let table = self.tables.tables.get(&id)?;
        let old = self.tables.tables.get(&from)?;
        let parting = old.users > 0 || !self.endpoints.all_follow(from, id);
        if parting || old.is_flat() || table.is_flat() {
            return None;
        }
        let most = old.rows.len().max(SMALL_TABLE);
        let mut cost = 0;
        for &(class, _) in changed.iter().filter(|(class, _)| !renewing.contains(class)) {
            let known = self.identities.classes().get(class)?;
            cost += self.tables.candidates(&known.key).len() + known.size();
            if cost > most {
                return None;
            }
        }
        Some(cost)
    }
}
