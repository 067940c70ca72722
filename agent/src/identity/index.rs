//! Which views which selectors match, kept up to date from both sides at a cost that follows what matches, not what
//! there is: both are posted under the (field, value) pairs that they have or ask for.

use std::{hash::Hash, sync::Arc};

use rustc_hash::{FxHashMap, FxHashSet};

use super::{slab::Slab, view::View};
use crate::policy::selector::{Field, Selector};

/// Where a selector can only be satisfied: an entity without one of these does not match.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Posting<'a> {
    Value(&'a Field, &'a str),
    Has(&'a Field),
}

/// Sets of numbers by field and value.
#[derive(Debug, Default)]
struct Postings {
    fields: FxHashMap<Field, FieldPostings>,
}

#[derive(Debug, Default)]
struct FieldPostings {
    values: FxHashMap<Box<str>, FxHashSet<u32>>,
    /// Of selectors: those that any value may satisfy. Of views: all that have the field.
    any: FxHashSet<u32>,
}

fn remove_from<K: Hash + Eq + ?Sized>(map: &mut FxHashMap<Box<K>, FxHashSet<u32>>, key: &K, id: u32) {
    if let Some(set) = map.get_mut(key) {
        set.remove(&id);
        if set.is_empty() {
            map.remove(key);
        }
    }
}

impl Postings {
    fn of(&mut self, field: &Field) -> &mut FieldPostings {
        if !self.fields.contains_key(field) {
            self.fields.insert(field.clone(), FieldPostings::default());
        }
        // Just made sure of.
        self.fields.get_mut(field).expect("the field's postings")
    }

    fn add(&mut self, posting: &Posting<'_>, id: u32) {
        match posting {
            Posting::Value(field, value) => {
                let values = &mut self.of(field).values;
                match values.get_mut(*value) {
                    Some(ids) => drop(ids.insert(id)),
                    None => drop(values.insert((*value).into(), FxHashSet::from_iter([id]))),
                }
            }
            Posting::Has(field) => drop(self.of(field).any.insert(id)),
        }
    }

    fn remove(&mut self, posting: &Posting<'_>, id: u32) {
        let (Posting::Value(field, _) | Posting::Has(field)) = posting;
        let Some(postings) = self.fields.get_mut(*field) else {
            return;
        };
        match posting {
            Posting::Value(_, value) => remove_from(&mut postings.values, value, id),
            Posting::Has(_) => drop(postings.any.remove(&id)),
        }
        if postings.values.is_empty() && postings.any.is_empty() {
            self.fields.remove(*field);
        }
    }

    fn get(&self, posting: &Posting<'_>) -> Option<&FxHashSet<u32>> {
        match posting {
            Posting::Value(field, value) => self.fields.get(*field)?.values.get(*value),
            Posting::Has(field) => Some(&self.fields.get(*field)?.any),
        }
    }

    fn cost(&self, postings: &[Posting<'_>]) -> usize {
        let sizes = postings
            .iter()
            .map(|posting| self.get(posting).map_or(0, FxHashSet::len));
        sizes.sum::<usize>() + postings.len()
    }
}

/// The postings under one of which everything is that `selector` matches, as few as `index` has; None: it may match
/// anything.
fn cover<'a>(selector: &'a Selector, index: &Postings) -> Option<Vec<Posting<'a>>> {
    match selector {
        Selector::All | Selector::Not(_) => None,
        Selector::Nothing => Some(Vec::new()),
        Selector::Has(field)
        | Selector::Contains(field, _)
        | Selector::StartsWith(field, _)
        | Selector::EndsWith(field, _) => Some(vec![Posting::Has(field)]),
        Selector::In(field, values) => Some(values.iter().map(|value| Posting::Value(field, value)).collect()),
        Selector::And(all) => all
            .iter()
            .filter_map(|inner| cover(inner, index))
            .min_by_key(|cover| index.cost(cover)),
        Selector::Or(any) => any
            .iter()
            .map(|inner| cover(inner, index))
            .collect::<Option<Vec<_>>>()
            .map(|covers| covers.concat()),
    }
}

#[derive(Debug)]
struct Known {
    view: Arc<View>,
    references: usize,
    /// Held selectors that match it, sorted.
    selectors: Vec<u32>,
}

#[derive(Debug)]
struct Held {
    selector: Arc<Selector>,
    references: usize,
    /// Views that it matches.
    views: FxHashSet<u32>,
    /// Where it is posted, as fields and values (None: any value). None: nowhere, it is tried on every view.
    posted: Option<Vec<(Field, Option<Box<str>>)>>,
}

/// Views and selectors, by number, and who matches whom.
#[derive(Debug, Default)]
pub struct Index {
    views: Slab<Known>,
    view_ids: FxHashMap<Arc<View>, u32>,
    selectors: Slab<Held>,
    selector_ids: FxHashMap<Arc<Selector>, u32>,
    views_by: Postings,
    selectors_by: Postings,
    /// Selectors that could not be posted.
    unposted: FxHashSet<u32>,
}

fn posting(posted: &(Field, Option<Box<str>>)) -> Posting<'_> {
    match posted {
        (field, Some(value)) => Posting::Value(field, value),
        (field, None) => Posting::Has(field),
    }
}

impl Index {
    #[must_use]
    pub fn view(&self, id: u32) -> &Arc<View> {
        &self.views[id].view
    }

    /// Held selectors that match a view, sorted.
    #[must_use]
    pub fn selectors_of(&self, view: u32) -> &[u32] {
        &self.views[view].selectors
    }

    /// Views that a held selector matches.
    pub fn views_of(&self, selector: u32) -> impl Iterator<Item = u32> {
        self.selectors[selector].views.iter().copied()
    }

    /// Views with a declared port of that name.
    pub fn views_with_port(&self, name: &str) -> impl Iterator<Item = u32> {
        self.views
            .iter()
            .filter(move |(_, known)| known.view.ports.iter().any(|port| &*port.name == name))
            .map(|(id, _)| id)
    }

    /// The number of a view, which stays until as many [`Index::release_view`].
    pub fn hold_view(&mut self, view: View) -> u32 {
        if let Some(&id) = self.view_ids.get(&view) {
            self.views[id].references += 1;
            return id;
        }
        let mut selectors: Vec<u32> = self.unposted.iter().copied().collect();
        for (field, value) in &view.fields {
            if let Some(postings) = self.selectors_by.fields.get(&**field) {
                selectors.extend(&postings.any);
                selectors.extend(postings.values.get(value).into_iter().flatten());
            }
        }
        selectors.sort_unstable();
        selectors.dedup();
        selectors.retain(|&id| self.selectors[id].selector.matches(&view));
        let view = Arc::new(view);
        let id = self.views.insert(Known {
            view: view.clone(),
            references: 1,
            selectors,
        });
        for selector in &self.views[id].selectors {
            self.selectors[*selector].views.insert(id);
        }
        for (field, value) in &view.fields {
            self.views_by.add(&Posting::Value(field, value), id);
            self.views_by.add(&Posting::Has(field), id);
        }
        self.view_ids.insert(view, id);
        id
    }

    /// Lets a view have one field more, for which no held selector asks. False: there is such a view already.
    pub fn extend_view(&mut self, id: u32, field: &Arc<Field>, value: &str) -> bool {
        let mut view = View::clone(&self.views[id].view);
        let mut fields = std::mem::take(&mut view.fields).into_vec();
        let Err(at) = fields.binary_search_by(|(own, _)| own.cmp(field)) else {
            return false;
        };
        fields.insert(at, (field.clone(), value.into()));
        view.fields = fields.into();
        if self.view_ids.contains_key(&view) {
            return false;
        }
        let view = Arc::new(view);
        let old = std::mem::replace(&mut self.views[id].view, view.clone());
        self.view_ids.remove(&old);
        self.view_ids.insert(view, id);
        self.views_by.add(&Posting::Value(field, value), id);
        self.views_by.add(&Posting::Has(field), id);
        true
    }

    /// Holds a view once more.
    pub fn retain_view(&mut self, id: u32) {
        self.views[id].references += 1;
    }

    /// Takes back one [`Index::hold_view`] or [`Index::retain_view`].
    pub fn release_view(&mut self, id: u32) {
        let known = &mut self.views[id];
        known.references -= 1;
        if known.references > 0 {
            return;
        }
        let Some(known) = self.views.remove(id) else {
            return;
        };
        self.view_ids.remove(&known.view);
        for selector in known.selectors {
            self.selectors[selector].views.remove(&id);
        }
        for (field, value) in &known.view.fields {
            self.views_by.remove(&Posting::Value(field, value), id);
            self.views_by.remove(&Posting::Has(field), id);
        }
    }

    /// The number of a selector, which stays until as many [`Index::release_selector`]; and whether it is new.
    pub fn hold_selector(&mut self, selector: &Selector) -> (u32, bool) {
        if let Some(&id) = self.selector_ids.get(selector) {
            self.selectors[id].references += 1;
            return (id, false);
        }
        let selector = Arc::new(selector.clone());
        let candidates: FxHashSet<u32> = match cover(&selector, &self.views_by) {
            None => self.views.iter().map(|(id, _)| id).collect(),
            Some(cover) => cover
                .iter()
                .filter_map(|posting| self.views_by.get(posting))
                .flatten()
                .copied()
                .collect(),
        };
        let views: FxHashSet<u32> = candidates
            .into_iter()
            .filter(|&view| selector.matches(&*self.views[view].view))
            .collect();
        let posted = cover(&selector, &self.selectors_by);
        let id = self.selectors.insert(Held {
            selector: selector.clone(),
            references: 1,
            views,
            posted: posted.as_ref().map(|cover| {
                cover
                    .iter()
                    .map(|posting| match posting {
                        Posting::Value(field, value) => ((*field).clone(), Some((*value).into())),
                        Posting::Has(field) => ((*field).clone(), None),
                    })
                    .collect()
            }),
        });
        match posted {
            None => drop(self.unposted.insert(id)),
            Some(cover) => cover.iter().for_each(|posting| self.selectors_by.add(posting, id)),
        }
        for &view in &self.selectors[id].views {
            let selectors = &mut self.views[view].selectors;
            if let Err(at) = selectors.binary_search(&id) {
                selectors.insert(at, id);
            }
        }
        self.selector_ids.insert(selector, id);
        (id, true)
    }

    /// Takes back one [`Index::hold_selector`]. Some: it is gone; the selector and the views that it matched.
    pub fn release_selector(&mut self, id: u32) -> Option<(Arc<Selector>, FxHashSet<u32>)> {
        let held = &mut self.selectors[id];
        held.references -= 1;
        if held.references > 0 {
            return None;
        }
        let held = self.selectors.remove(id)?;
        self.selector_ids.remove(&held.selector);
        match &held.posted {
            None => drop(self.unposted.remove(&id)),
            Some(posted) => posted
                .iter()
                .for_each(|posted| self.selectors_by.remove(&posting(posted), id)),
        }
        for view in &held.views {
            let selectors = &mut self.views[*view].selectors;
            if let Ok(at) = selectors.binary_search(&id) {
                selectors.remove(at);
            }
        }
        Some((held.selector, held.views))
    }
}
