//! Label expressions. Kubernetes' and Calico's selector languages are both translated to this one.

use std::{collections::BTreeSet, sync::Arc};

/// Labels of one object, sorted by key. Shared: many pods carry the same set.
pub type Labels = Arc<std::collections::BTreeMap<String, String>>;

/// Something about an entity that a selector can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Field {
    /// A label of the object itself.
    Label(String),
    /// A label of the object's namespace.
    NamespaceLabel(String),
    /// A label of the pod's service account.
    ServiceAccountLabel(String),
    /// Name of the namespace; absent for cluster-wide objects.
    Namespace,
    /// Name of the pod's service account; absent for anything but pods.
    ServiceAccount,
    /// `pod`, `networkset`, `hostendpoint`, `node` (see [`EntityKind::name`]).
    Kind,
}

/// What an address can belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EntityKind {
    Pod,
    NetworkSet,
    HostEndpoint,
    Node,
}

impl EntityKind {
    /// The value of [`Field::Kind`].
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::NetworkSet => "networkset",
            Self::HostEndpoint => "hostendpoint",
            Self::Node => "node",
        }
    }
}

/// A set of strings, to be copied for nothing: thousands of rules ask for one value each, and the compiler keeps copies
/// of what they ask.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Values(Arc<[Box<str>]>);

impl Values {
    #[must_use]
    pub fn contains(&self, value: &str) -> bool {
        self.0.binary_search_by(|own| (**own).cmp(value)).is_ok()
    }

    /// Ascending.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }
}

impl From<BTreeSet<String>> for Values {
    fn from(values: BTreeSet<String>) -> Self {
        Self(values.into_iter().map(String::into_boxed_str).collect())
    }
}

impl<const N: usize> From<[String; N]> for Values {
    fn from(values: [String; N]) -> Self {
        BTreeSet::from(values).into()
    }
}

/// A boolean expression over fields. An absent field makes every test false (so `Not(In(..))` is true where the
/// label is absent, as Kubernetes' `NotIn` and Calico's `!=` want it).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Selector {
    All,
    /// Matches nothing: what a selector becomes that cannot be understood.
    Nothing,
    Has(Field),
    /// The value is one of these.
    In(Field, Values),
    Contains(Field, String),
    StartsWith(Field, String),
    EndsWith(Field, String),
    Not(Box<Selector>),
    /// All of them; empty means all.
    And(Vec<Selector>),
    /// Any of them; empty means none.
    Or(Vec<Selector>),
}

/// What selectors are asked about.
pub trait Entity {
    /// The value of a field, if the entity has it.
    fn field(&self, field: &Field) -> Option<&str>;
}

impl Selector {
    /// `field == value`.
    #[must_use]
    pub fn equals(field: Field, value: impl Into<String>) -> Self {
        Self::In(field, Values::from([value.into()]))
    }

    /// Whether the entity matches.
    #[must_use]
    pub fn matches(&self, entity: &(impl Entity + ?Sized)) -> bool {
        match self {
            Self::All => true,
            Self::Nothing => false,
            Self::Has(field) => entity.field(field).is_some(),
            Self::In(field, values) => entity.field(field).is_some_and(|value| values.contains(value)),
            Self::Contains(field, part) => entity.field(field).is_some_and(|value| value.contains(part.as_str())),
            Self::StartsWith(field, part) => entity
                .field(field)
                .is_some_and(|value| value.starts_with(part.as_str())),
            Self::EndsWith(field, part) => entity.field(field).is_some_and(|value| value.ends_with(part.as_str())),
            Self::Not(inner) => !inner.matches(entity),
            Self::And(all) => all.iter().all(|inner| inner.matches(entity)),
            Self::Or(any) => any.iter().any(|inner| inner.matches(entity)),
        }
    }
}
