//! What policies can see of an entity.

use std::sync::Arc;

use weir_common::policy::{IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP};

use super::asked::{Asked, LabelSource};
use crate::policy::{
    model::NamedPort,
    selector::{Entity, EntityKind, Field, Labels},
};

/// An entity, cut down to what somebody asks for. Entities that look the same share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct View {
    /// Sorted by field.
    pub fields: Box<[(Arc<Field>, Box<str>)]>,
    /// Declared ports of names that somebody asks for, sorted.
    pub ports: Box<[NamedPort]>,
    pub local_node: bool,
}

impl Entity for View {
    fn field(&self, field: &Field) -> Option<&str> {
        let index = self.fields.binary_search_by(|(own, _)| (**own).cmp(field)).ok()?;
        Some(&self.fields[index].1)
    }
}

/// An entity in full.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    pub kind: EntityKind,
    pub namespace: Option<&'a str>,
    pub labels: &'a Labels,
    pub namespace_labels: Option<&'a Labels>,
    pub service_account: Option<&'a str>,
    pub service_account_labels: Option<&'a Labels>,
    pub named_ports: &'a [NamedPort],
    pub local_node: bool,
}

impl Entity for Subject<'_> {
    fn field(&self, field: &Field) -> Option<&str> {
        self.full_field(field)
    }
}

impl<'a> Subject<'a> {
    /// As [`Entity::field`], for as long as the entity lives.
    #[must_use]
    pub fn full_field(&self, field: &Field) -> Option<&'a str> {
        match field {
            Field::Label(key) => self.labels.get(key).map(String::as_str),
            Field::NamespaceLabel(key) => self.namespace_labels?.get(key).map(String::as_str),
            Field::ServiceAccountLabel(key) => self.service_account_labels?.get(key).map(String::as_str),
            Field::Namespace => self.namespace,
            Field::ServiceAccount => self.service_account,
            Field::Kind => Some(self.kind.name()),
        }
    }

    /// Calls `visit` with each field that it has.
    pub fn each_field(&self, visit: &mut impl FnMut(Field, &str)) {
        for (key, value) in self.labels.iter() {
            visit(Field::Label(key.clone()), value);
        }
        for (key, value) in self.namespace_labels.into_iter().flat_map(|labels| labels.iter()) {
            visit(Field::NamespaceLabel(key.clone()), value);
        }
        for (key, value) in self.service_account_labels.into_iter().flat_map(|labels| labels.iter()) {
            visit(Field::ServiceAccountLabel(key.clone()), value);
        }
        for field in [Field::Namespace, Field::ServiceAccount, Field::Kind] {
            if let Some(value) = self.field(&field) {
                visit(field.clone(), value);
            }
        }
    }

    /// Costs as much as the entity has labels, however many fields are asked for.
    #[must_use]
    pub fn view(&self, asked: &Asked) -> View {
        let mut fields = Vec::new();
        for (source, labels) in [
            (LabelSource::Own, Some(self.labels)),
            (LabelSource::Namespace, self.namespace_labels),
            (LabelSource::ServiceAccount, self.service_account_labels),
        ] {
            for (key, value) in labels.into_iter().flat_map(|labels| labels.iter()) {
                if let Some(field) = asked.label(source, key) {
                    fields.push((field.clone(), Box::from(value.as_str())));
                }
            }
        }
        for field in [Field::Namespace, Field::ServiceAccount, Field::Kind] {
            if let (Some(field), Some(value)) = (asked.field(&field), self.field(&field)) {
                fields.push((field.clone(), Box::from(value)));
            }
        }
        fields.sort_unstable();
        View {
            fields: fields.into(),
            ports: relevant_ports(self.named_ports, |name| asked.port(name)),
            local_node: self.local_node,
        }
    }
}

/// Declared ports of wanted names, of the protocols that have ports, sorted and each once.
#[must_use]
pub fn relevant_ports(ports: &[NamedPort], wanted: impl Fn(&str) -> bool) -> Box<[NamedPort]> {
    let mut relevant: Vec<_> = ports
        .iter()
        .filter(|port| matches!(port.protocol, IPPROTO_TCP | IPPROTO_UDP | IPPROTO_SCTP) && wanted(&port.name))
        .cloned()
        .collect();
    relevant.sort_unstable();
    relevant.dedup();
    relevant.into()
}
