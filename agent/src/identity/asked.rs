//! What policies ask of peers: only that is told apart.

use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::policy::{
    model::PeerMatch,
    selector::{Field, Selector},
};

/// Fields and port names, with the number of selectors that ask for each.
#[derive(Debug, Default)]
pub struct Asked {
    fields: FxHashMap<Arc<Field>, usize>,
    /// By label key, so that a pod's labels are looked up without making a [`Field`] of each.
    labels: [FxHashMap<String, Arc<Field>>; 3],
    ports: FxHashMap<Arc<str>, usize>,
    /// Fields that nobody asks for any more, and that are still told apart.
    idle: Vec<Arc<Field>>,
}

/// Fields that nobody asks for stay told apart up to this number. (Few in tests, whose worlds have few fields.)
const MOST_IDLE: usize = if cfg!(test) { 2 } else { 32 };

/// Index into `Asked::labels`.
#[derive(Clone, Copy, Debug)]
pub enum LabelSource {
    Own = 0,
    Namespace = 1,
    ServiceAccount = 2,
}

fn label(field: &Field) -> Option<(LabelSource, &str)> {
    match field {
        Field::Label(key) => Some((LabelSource::Own, key)),
        Field::NamespaceLabel(key) => Some((LabelSource::Namespace, key)),
        Field::ServiceAccountLabel(key) => Some((LabelSource::ServiceAccount, key)),
        Field::Namespace | Field::ServiceAccount | Field::Kind => None,
    }
}

impl Asked {
    /// Counts one more question. True: nobody asked for it before.
    pub fn add(&mut self, field: &Field) -> bool {
        if let Some(count) = self.fields.get_mut(field) {
            *count += 1;
            if *count == 1 {
                self.idle.retain(|idle| **idle != *field);
            }
            return false;
        }
        let field = Arc::new(field.clone());
        if let Some((source, key)) = label(&field) {
            self.labels[source as usize].insert(key.to_owned(), field.clone());
        }
        self.fields.insert(field, 1);
        true
    }

    /// Counts one question less. Returns the fields that are not told apart any more: those that nobody has asked for
    /// the longest, once they are many. (A policy that is changed back and forth must not move every pod each time.)
    pub fn remove(&mut self, field: &Field) -> Vec<Arc<Field>> {
        let Some((field, _)) = self.fields.get_key_value(field) else {
            return Vec::new();
        };
        let field = field.clone();
        if let Some(count) = self.fields.get_mut(&field) {
            *count -= 1;
            if *count > 0 {
                return Vec::new();
            }
        }
        self.idle.push(field);
        if self.idle.len() <= MOST_IDLE {
            return Vec::new();
        }
        let dropped: Vec<Arc<Field>> = self.idle.drain(..MOST_IDLE / 2).collect();
        for field in &dropped {
            self.fields.remove(field);
            if let Some((source, key)) = label(field) {
                self.labels[source as usize].remove(key);
            }
        }
        dropped
    }

    /// As [`Asked::add`], for a port's name.
    pub fn add_port(&mut self, name: &Arc<str>) -> bool {
        let count = self.ports.entry(name.clone()).or_default();
        *count += 1;
        *count == 1
    }

    /// As [`Asked::remove`], for a port's name.
    pub fn remove_port(&mut self, name: &Arc<str>) -> bool {
        let Some(count) = self.ports.get_mut(name) else {
            return false;
        };
        *count -= 1;
        let last = *count == 0;
        if last {
            self.ports.remove(name);
        }
        last
    }

    /// The field of a label, if somebody asks for it.
    #[must_use]
    pub fn label(&self, source: LabelSource, key: &str) -> Option<&Arc<Field>> {
        self.labels[source as usize].get(key)
    }

    /// The field, if somebody asks for it.
    #[must_use]
    pub fn field(&self, field: &Field) -> Option<&Arc<Field>> {
        self.fields.get_key_value(field).map(|(field, _)| field)
    }

    #[must_use]
    pub fn port(&self, name: &str) -> bool {
        self.ports.contains_key(name)
    }
}

/// Calls `visit` with every field that a selector asks for, as often as it does.
pub fn fields(selector: &Selector, visit: &mut impl FnMut(&Field)) {
    match selector {
        Selector::All | Selector::Nothing => {}
        Selector::Has(field)
        | Selector::In(field, _)
        | Selector::Contains(field, _)
        | Selector::StartsWith(field, _)
        | Selector::EndsWith(field, _) => visit(field),
        Selector::Not(inner) => fields(inner, visit),
        Selector::And(list) | Selector::Or(list) => list.iter().for_each(|inner| fields(inner, visit)),
    }
}

/// The same for both selectors of a peer match.
pub fn fields_of_match(wanted: &PeerMatch, visit: &mut impl FnMut(&Field)) {
    for selector in wanted.selector.iter().chain(&wanted.not_selector) {
        fields(selector, visit);
    }
}
