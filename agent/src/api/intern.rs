//! Strings and label sets that many objects share are kept once.

use std::{collections::HashSet, hash::Hash, sync::Arc};

use super::object::Workload;
use crate::policy::{model::NamedPort, selector::Labels};

#[derive(Default)]
pub(super) struct Interner {
    strings: Shared<str>,
    labels: Shared<std::collections::BTreeMap<String, String>>,
    ports: Shared<[NamedPort]>,
    workloads: Shared<Workload>,
}

impl Interner {
    pub(super) fn string(&mut self, text: &str) -> Arc<str> {
        self.strings.get(text, || text.into())
    }

    pub(super) fn labels(&mut self, labels: std::collections::BTreeMap<String, String>) -> Labels {
        match self.labels.find(&labels) {
            Some(known) => known,
            None => self.labels.add(Arc::new(labels)),
        }
    }

    pub(super) fn ports(&mut self, ports: Vec<NamedPort>) -> Arc<[NamedPort]> {
        match self.ports.find(&ports) {
            Some(known) => known,
            None => self.ports.add(ports.into()),
        }
    }

    pub(super) fn workload(&mut self, workload: Workload) -> Arc<Workload> {
        match self.workloads.find(&workload) {
            Some(known) => known,
            None => self.workloads.add(Arc::new(workload)),
        }
    }
}

struct Shared<T: ?Sized> {
    known: HashSet<Arc<T>>,
    /// When there are this many, those that nobody uses any more are thrown out.
    sweep_at: usize,
}

impl<T: ?Sized + Eq + Hash> Default for Shared<T> {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            sweep_at: 1024,
        }
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    fn get(&mut self, value: &T, make: impl FnOnce() -> Arc<T>) -> Arc<T> {
        match self.find(value) {
            Some(known) => known,
            None => self.add(make()),
        }
    }

    fn find(&self, value: &T) -> Option<Arc<T>> {
        self.known.get(value).cloned()
    }

    fn add(&mut self, value: Arc<T>) -> Arc<T> {
        if self.known.len() >= self.sweep_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = (self.known.len() * 2).max(1024);
        }
        self.known.insert(value.clone());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::Shared;

    #[test]
    fn what_nobody_uses_is_thrown_out() {
        let mut shared = Shared::<str>::default();
        let kept = shared.get("kept", || "kept".into());
        for n in 0..5000 {
            let text = n.to_string();
            shared.get(&text, || text.as_str().into());
        }
        assert!(shared.known.len() <= 1025, "{}", shared.known.len());
        assert!(std::sync::Arc::ptr_eq(&kept, &shared.get("kept", || "kept".into())));
    }
}
