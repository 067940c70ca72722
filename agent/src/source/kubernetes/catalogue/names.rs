//! Whose a name is that several objects claim.
//!
//! Calico's storage gives a policy another name than the one it is known by: an annotation says that one, or it is the
//! rest after the prefix `default.`. So one policy's name can be said to be another's, also by somebody who may write
//! policies in that namespace only. It is the policy's whose name in the API says it; an annotation counts least.

use std::collections::{HashMap, hash_map};

use serde_json::Value;

use super::{Catalogue, objects::Entry};
use crate::{
    api::{Object, ObjectKey, ObjectKind},
    policy::model::PolicyKind,
    source::SourceEvent,
};

/// Whether an object of the kind may be known by another name than the API's.
pub(super) const fn can_be_renamed(kind: ObjectKind) -> bool {
    match kind {
        ObjectKind::Policy(kind) => !matches!(kind, PolicyKind::KubernetesNetworkPolicy),
        _ => false,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ground {
    /// The API has it under that name,
    Name,
    /// or under that name with the prefix of tier `default`.
    Prefix,
    /// It says so itself.
    Annotation,
}

/// An object's claim to a name. The least of all counts: by its ground, then its age.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    ground: Ground,
    /// metadata.creationTimestamp. Always UTC and of one length, and so in order as text.
    created: Box<str>,
    /// What the API calls the object.
    pub(super) name: Box<str>,
}

impl Claim {
    fn new(known_as: &str, name: &str, created: &str) -> Self {
        let ground = if name == known_as {
            Ground::Name
        } else if name.strip_prefix("default.") == Some(known_as) {
            Ground::Prefix
        } else {
            Ground::Annotation
        };
        Self {
            ground,
            created: created.into(),
            name: name.into(),
        }
    }

    /// None: nothing of it can be in force.
    pub(super) fn of(entry: &Entry) -> Option<Self> {
        let (_, known_as) = entry.object()?.name();
        Some(Self::new(known_as, entry.name().1, entry.created()))
    }

    /// That of a version that was kept as text.
    pub(super) fn of_text(text: &str, key: &ObjectKey) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        let said = |path: &str| value.pointer(path).and_then(Value::as_str);
        let created = said("/metadata/creationTimestamp").unwrap_or_default();
        Some(Self::new(&key.name, said("/metadata/name")?, created))
    }
}

/// By name, the claim that counts.
pub(super) fn owners(claims: impl Iterator<Item = (ObjectKey, Claim)>) -> HashMap<ObjectKey, Claim> {
    let mut owners = HashMap::new();
    for (key, claim) in claims {
        match owners.entry(key) {
            hash_map::Entry::Vacant(free) => {
                free.insert(claim);
            }
            hash_map::Entry::Occupied(mut owner) => {
                if claim < *owner.get() {
                    owner.insert(claim);
                }
            }
        }
    }
    owners
}

impl Catalogue {
    /// Everything of a kind that counts, which is told now.
    pub(super) fn in_force(&mut self, slot: &str) -> Vec<Object> {
        let Some(kind) = self.kinds.get_mut(slot) else {
            return Vec::new();
        };
        if !can_be_renamed(kind.api.object) {
            for entry in kind.objects.iter_mut() {
                entry.told = entry.object().is_some();
            }
            return kind.objects.iter().filter_map(Entry::object).cloned().collect();
        }
        let claims = kind
            .objects
            .iter()
            .filter_map(|entry| Some((entry.key()?, Claim::of(entry)?)));
        let owners = owners(claims);
        let mut objects = Vec::new();
        for entry in kind.objects.iter_mut() {
            let Some(owner) = entry.key().and_then(|key| owners.get(&key)) else {
                self.remarks.has_name(&kind.api, entry);
                continue;
            };
            entry.told = Claim::of(entry).as_ref() == Some(owner);
            if entry.told {
                self.remarks.has_name(&kind.api, entry);
                objects.extend(entry.object().cloned());
            } else {
                self.remarks.has_no_name(&kind.api, entry, &owner.name);
            }
        }
        objects
    }

    /// Tells the object that a name is of now, if it is not told yet. `told`: one has been told under that name that does not
    /// claim it any more.
    pub(super) fn tell_owner(&mut self, slot: &str, key: ObjectKey, told: bool) {
        let Some(kind) = self.kinds.get_mut(slot) else { return };
        if !can_be_renamed(key.kind) {
            let name = (key.namespace.as_deref().unwrap_or_default(), &*key.name);
            match kind.objects.get_mut(name) {
                Some(entry) => {
                    entry.told = true;
                    self.events.extend(entry.object().cloned().map(SourceEvent::Apply));
                }
                None if told => self.events.push(SourceEvent::Delete(key)),
                None => {}
            }
            return;
        }
        let claims = kind.objects.iter().filter(|entry| entry.claims(&key));
        let Some(owner) = claims.filter_map(Claim::of).min() else {
            if told {
                self.events.push(SourceEvent::Delete(key));
            }
            return;
        };
        for entry in kind.objects.iter_mut().filter(|entry| entry.claims(&key)) {
            if entry.name().1 != &*owner.name {
                entry.told = false;
                self.remarks.has_no_name(&kind.api, entry, &owner.name);
                continue;
            }
            self.remarks.has_name(&kind.api, entry);
            if !std::mem::replace(&mut entry.told, true) {
                self.events.extend(entry.object().cloned().map(SourceEvent::Apply));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_whose_own_it_is_then_whose_prefix_hides_it_then_the_oldest_one_s_that_says_so() {
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let claims = [
            Claim::new("foo", "foo", new),
            Claim::new("foo", "default.foo", old),
            Claim::new("foo", "b", old),
            Claim::new("foo", "c", old),
            Claim::new("foo", "a", new),
        ];
        assert!(claims.is_sorted(), "{claims:?}");
    }
}
