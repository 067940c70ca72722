//! Local pods: which table each of their directions obeys.

use std::sync::Arc;

use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    store::{Before, DIRECTIONS, Store},
    tables::Tables,
    trace::Traces,
};
use crate::{
    identity::Identities,
    policy::{change::PeerKey, model::PolicyKey, plan::EndpointPolicy},
};

#[derive(Debug)]
pub struct Endpoint {
    pub key: PeerKey,
    view: Option<u32>,
    /// By direction: the table that its policies make; None: nobody knows the pod, so it is closed.
    pub wanted: [Option<u32>; 2],
    /// What the kernel has once the plans so far are executed; None: not told yet.
    pub told: Option<EndpointPolicy>,
    /// By direction: the table that the kernel then has.
    pub told_tables: [Option<u32>; 2],
    /// By direction: what the policies make of it does not fit.
    short: [bool; 2],
}

#[derive(Debug, Default)]
pub struct Endpoints {
    endpoints: FxHashMap<u32, Endpoint>,
    by_key: FxHashMap<PeerKey, Vec<u32>>,
    by_view: FxHashMap<u32, FxHashSet<u32>>,
    by_namespace: FxHashMap<Arc<str>, FxHashSet<u32>>,
    /// Everything may be different for them.
    dirty: FxHashSet<u32>,
    /// Policies changed that select them or did, or (true) they themselves did.
    touched: FxHashMap<u32, bool>,
    /// Policies that changed, as they were before.
    changed: FxHashMap<PolicyKey, Option<Before>>,
}

/// What tables are made of.
struct Makers<'a> {
    store: &'a Store,
    tables: &'a mut Tables,
    identities: &'a mut Identities,
    traces: &'a mut Traces,
}

/// (Table, lists that go, rule lists that come) -> the table that it becomes.
type Derived = FxHashMap<(u32, Vec<u32>, Vec<u32>), Option<u32>>;

impl Endpoints {
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    pub fn get(&self, id: u32) -> Option<&Endpoint> {
        self.endpoints.get(&id)
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut Endpoint> {
        self.endpoints.get_mut(&id)
    }

    /// By id, in order.
    pub fn sorted(&self) -> Vec<(u32, &Endpoint)> {
        let mut all: Vec<_> = self.endpoints.iter().map(|(&id, endpoint)| (id, endpoint)).collect();
        all.sort_unstable_by_key(|&(id, _)| id);
        all
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Endpoint)> {
        self.endpoints.iter().map(|(&id, endpoint)| (id, endpoint))
    }

    pub fn touch_all(&mut self) {
        self.dirty.extend(self.endpoints.keys());
    }

    pub fn touch_key(&mut self, key: &PeerKey) {
        let own = self.by_key.get(key).into_iter().flatten();
        self.touched.extend(own.map(|&id| (id, true)));
    }

    pub fn touch_namespace(&mut self, namespace: &str) {
        let own = self.by_namespace.get(namespace).into_iter().flatten();
        self.touched.extend(own.map(|&id| (id, true)));
    }

    /// A policy changed that selects these views, or did.
    pub fn touch_views(&mut self, views: &FxHashSet<u32>, policy: PolicyKey, before: Option<Before>) {
        for view in views {
            for &id in self.by_view.get(view).into_iter().flatten() {
                self.touched.entry(id).or_insert(false);
            }
        }
        // Of several changes the first tells what tables were made of.
        self.changed.entry(policy).or_insert(before);
    }

    pub fn touch_short(&mut self) {
        let short = self
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.short != [false; 2]);
        self.dirty.extend(short.map(|(id, _)| id));
    }

    pub fn any_short(&self) -> bool {
        self.endpoints.values().any(|endpoint| endpoint.short != [false; 2])
    }

    pub fn is_short(&self, id: u32, direction: usize) -> bool {
        self.endpoints
            .get(&id)
            .is_some_and(|endpoint| endpoint.short[direction])
    }

    /// Endpoints and directions with their tables, in order.
    pub fn directions(&self) -> Vec<(u32, usize, u32)> {
        let sorted = self.sorted().into_iter();
        sorted
            .flat_map(|(id, endpoint)| (0..2).filter_map(move |at| Some((id, at, endpoint.wanted[at]?))))
            .collect()
    }

    /// Endpoints and directions that obey a table.
    pub fn obeying(&self, table: u32) -> Vec<(u32, usize)> {
        let all = self.directions().into_iter();
        all.filter(|&(_, _, own)| own == table)
            .map(|(id, at, _)| (id, at))
            .collect()
    }

    pub fn told_table(&self, id: u32, direction: usize) -> Option<u32> {
        self.endpoints.get(&id)?.told_tables[direction]
    }

    /// What a direction should obey does not fit: it obeys another table, or is closed.
    pub fn withhold(&mut self, id: u32, direction: usize, instead: Option<u32>) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.wanted[direction] = instead;
            endpoint.short[direction] = true;
        }
    }

    /// For messages.
    pub fn name(&self, id: u32) -> String {
        let endpoint = self.endpoints.get(&id);
        endpoint.map_or_else(|| format!("endpoint {id}"), |endpoint| endpoint.key.to_string())
    }

    /// An endpoint comes, goes, or is another pod's. Returns the tables that it had.
    pub fn set(&mut self, id: u32, key: Option<PeerKey>, store: &mut Store) -> [Option<u32>; 2] {
        if key.is_some() && self.endpoints.get(&id).map(|endpoint| &endpoint.key) == key.as_ref() {
            return [None; 2];
        }
        let mut had = [None; 2];
        if let Some(old) = self.endpoints.remove(&id) {
            had = old.wanted;
            self.dirty.remove(&id);
            self.touched.remove(&id);
            unlink(&mut self.by_namespace, old.key.namespace.clone(), id);
            if let Some(ids) = self.by_key.get_mut(&old.key) {
                ids.retain(|other| *other != id);
                if ids.is_empty() {
                    self.by_key.remove(&old.key);
                }
            }
            unlink(&mut self.by_view, old.view, id);
            if let Some(view) = old.view {
                store.release_endpoint(view);
            }
        }
        if let Some(key) = key {
            self.by_key.entry(key.clone()).or_default().push(id);
            if let Some(namespace) = &key.namespace {
                self.by_namespace.entry(namespace.clone()).or_default().insert(id);
            }
            self.dirty.insert(id);
            self.endpoints.insert(
                id,
                Endpoint {
                    key,
                    view: None,
                    wanted: [None; 2],
                    told: None,
                    told_tables: [None; 2],
                    short: [false; 2],
                },
            );
        }
        had
    }

    /// Whether all that obey a table in the kernel are to obey this other one.
    pub fn all_follow(&self, from: u32, table: u32) -> bool {
        self.endpoints.values().all(|endpoint| {
            let mut directions = endpoint.told_tables.iter().zip(&endpoint.wanted);
            directions.all(|(told, wanted)| *told != Some(from) || *wanted == Some(table))
        })
    }

    /// What one table was to the kernel, another is from now on.
    pub fn take_over(&mut self, table: u32, from: u32) {
        for endpoint in self.endpoints.values_mut() {
            for told in &mut endpoint.told_tables {
                if *told == Some(from) {
                    *told = Some(table);
                }
            }
        }
    }

    /// Finds the tables of endpoints that may have others now, and makes those that are new.
    pub fn resolve(
        &mut self,
        store: &mut Store,
        tables: &mut Tables,
        identities: &mut Identities,
        traces: &mut Traces,
    ) {
        let changed = std::mem::take(&mut self.changed);
        let mut touched: Vec<(u32, bool)> = self.touched.drain().collect();
        touched.sort_unstable();
        let mut derived = Derived::default();
        for (id, itself) in touched {
            if self.dirty.contains(&id) {
                continue;
            }
            let Some(endpoint) = self.endpoints.get_mut(&id) else {
                continue;
            };
            let was = endpoint.view;
            if itself {
                endpoint.look(store, identities);
            }
            let view = endpoint.view;
            let makers = Makers {
                store,
                tables,
                identities,
                traces,
            };
            match endpoint.derive(was, itself, &changed, &mut derived, makers) {
                Some(wanted) => {
                    for (new, old) in wanted.into_iter().zip(&mut endpoint.wanted) {
                        tables.join(new);
                        tables.leave(std::mem::replace(old, new));
                    }
                }
                None => drop(self.dirty.insert(id)),
            }
            if itself {
                self.link_view(id, was, view);
                if let Some(was) = was {
                    store.release_endpoint(was);
                }
            }
        }
        self.resolve_dirty(store, tables, identities, traces);
    }

    /// An endpoint looks otherwise than before.
    fn link_view(&mut self, id: u32, was: Option<u32>, view: Option<u32>) {
        if was != view {
            unlink(&mut self.by_view, was, id);
            if let Some(view) = view {
                self.by_view.entry(view).or_default().insert(id);
            }
        }
    }

    fn resolve_dirty(
        &mut self,
        store: &mut Store,
        tables: &mut Tables,
        identities: &mut Identities,
        traces: &mut Traces,
    ) {
        let mut dirty: Vec<u32> = self.dirty.drain().collect();
        dirty.sort_unstable();
        for &id in &dirty {
            let Some(endpoint) = self.endpoints.get_mut(&id) else {
                continue;
            };
            let was = endpoint.view;
            endpoint.look(store, identities);
            let view = endpoint.view;
            if let Some(was) = was {
                store.release_endpoint(was);
            }
            for direction in DIRECTIONS {
                let wanted = view.map(|view| {
                    let wanted = store.wanted(view, &endpoint.key, direction, identities);
                    tables.find_or_create(wanted, identities, traces)
                });
                let old = std::mem::replace(&mut endpoint.wanted[direction as usize], wanted);
                endpoint.short[direction as usize] = false;
                tables.join(wanted);
                tables.leave(old);
            }
            self.link_view(id, was, view);
        }
    }
}

impl Endpoint {
    /// Holds the view of what it is now; the caller gives the old one back.
    fn look(&mut self, store: &mut Store, identities: &Identities) {
        let subject = identities.entities().subject(&self.key);
        self.view = subject.map(|subject| store.hold_endpoint(&subject));
    }

    /// The tables that those it has become when some policies change, or (`itself`) others select it than when its view was
    /// another. None: has to be found out from the beginning.
    fn derive(
        &self,
        was: Option<u32>,
        itself: bool,
        changed: &FxHashMap<PolicyKey, Option<Before>>,
        derived: &mut Derived,
        makers: Makers<'_>,
    ) -> Option<[Option<u32>; 2]> {
        let Makers {
            store,
            tables,
            identities,
            traces,
        } = makers;
        let views = was.zip(self.view).filter(|_| self.short == [false; 2])?;
        let mut wanted = [None; 2];
        let mut deltas = Vec::new();
        for direction in DIRECTIONS {
            let table = self.wanted[direction as usize]?;
            // What the pod is may decide more than which policies select it.
            if itself && !tables.tables.get(&table)?.is_plain() {
                return None;
            }
            deltas.push((direction, table, store.delta(table, views, direction, changed, tables)?));
        }
        for (direction, table, delta) in deltas {
            let new = if delta.removed.is_empty() && delta.inserted.is_empty() {
                Some(table)
            } else {
                let rules = delta.inserted.iter().map(|listed| listed.rules).collect();
                *derived
                    .entry((table, delta.removed.clone(), rules))
                    .or_insert_with(|| tables.derive(table, &delta, store, identities, traces))
            };
            wanted[direction as usize] = Some(new?);
            #[cfg(test)]
            {
                let afresh = store.wanted(views.1, &self.key, direction, identities).key;
                let derived = new.map(|new| &*tables.tables[&new].key);
                assert_eq!(derived, Some(&afresh), "derived from table {table}");
            }
        }
        Some(wanted)
    }
}

fn unlink<K: std::hash::Hash + Eq>(map: &mut FxHashMap<K, FxHashSet<u32>>, key: Option<K>, id: u32) {
    let Some(key) = key else {
        return;
    };
    if let Some(ids) = map.get_mut(&key) {
        ids.remove(&id);
        if ids.is_empty() {
            map.remove(&key);
        }
    }
}
