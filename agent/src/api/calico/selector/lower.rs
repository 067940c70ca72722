//! An expression -> the policy model's selector, by what its labels are labels of.

use std::collections::BTreeSet;

use super::expression::Expression;
use crate::policy::selector::{EntityKind, Field, Selector};

/// What the labels of a selector are labels of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The pod's or network set's own, and the labels that Calico gives it.
    Entity,
    /// Its namespace's. `all()` is everything that has one.
    Namespace,
    /// Its service account's, in a policy's own selector. `all()` is everything that has one.
    ServiceAccount,
    /// Its service account's, in a rule. `all()` is everything known, as in Calico.
    RuleServiceAccount,
}

/// Namespaces and service accounts are known to selectors by this label.
const NAME: &str = "projectcalico.org/name";
const NAMESPACE: &str = "projectcalico.org/namespace";
const SERVICE_ACCOUNT: &str = "projectcalico.org/serviceaccount";
const ORCHESTRATOR: &str = "projectcalico.org/orchestrator";
/// The orchestrator of every pod.
const KUBERNETES: &str = "k8s";
/// What Calico puts before the labels that a pod has of its namespace and of its service account.
const OF_NAMESPACE: &str = "pcns.";
const OF_SERVICE_ACCOUNT: &str = "pcsa.";

/// The same condition over the model's fields. `global()` means what is in no namespace; where it may stand is the
/// caller's to know.
#[must_use]
pub fn lower(expression: &Expression, scope: Scope) -> Selector {
    let all = |parts: &[Expression]| parts.iter().map(|part| lower(part, scope)).collect();
    match expression {
        Expression::All => match scope {
            Scope::Entity | Scope::RuleServiceAccount => Selector::All,
            Scope::Namespace => Selector::Has(Field::Namespace),
            Scope::ServiceAccount => Selector::Has(Field::ServiceAccount),
        },
        Expression::Global => not(Selector::Has(Field::Namespace)),
        Expression::Has(label) => test(label, scope, Test::Has),
        Expression::Equals(label, value) => test(label, scope, Test::In([value.clone()].into())),
        Expression::NotEquals(label, value) => not(test(label, scope, Test::In([value.clone()].into()))),
        Expression::In(label, values) => test(label, scope, Test::In(values.clone())),
        Expression::NotIn(label, values) => not(test(label, scope, Test::In(values.clone()))),
        Expression::Contains(label, part) => test(label, scope, Test::Contains(part.clone())),
        Expression::StartsWith(label, part) => test(label, scope, Test::StartsWith(part.clone())),
        Expression::EndsWith(label, part) => test(label, scope, Test::EndsWith(part.clone())),
        Expression::Not(inner) => not(lower(inner, scope)),
        Expression::And(parts) => Selector::And(all(parts)),
        Expression::Or(parts) => Selector::Or(all(parts)),
    }
}

pub(in crate::api::calico) fn not(selector: Selector) -> Selector {
    Selector::Not(Box::new(selector))
}

enum Test {
    Has,
    In(BTreeSet<String>),
    Contains(String),
    StartsWith(String),
    EndsWith(String),
}

impl Test {
    fn on(self, field: Field) -> Selector {
        match self {
            Self::Has => Selector::Has(field),
            Self::In(values) => Selector::In(field, values.into()),
            Self::Contains(part) => Selector::Contains(field, part),
            Self::StartsWith(part) => Selector::StartsWith(field, part),
            Self::EndsWith(part) => Selector::EndsWith(field, part),
        }
    }

    fn holds_for(&self, value: &str) -> bool {
        match self {
            Self::Has => true,
            Self::In(values) => values.contains(value),
            Self::Contains(part) => value.contains(part.as_str()),
            Self::StartsWith(part) => value.starts_with(part.as_str()),
            Self::EndsWith(part) => value.ends_with(part.as_str()),
        }
    }
}

fn test(label: &str, scope: Scope, test: Test) -> Selector {
    let field = match (scope, label) {
        (Scope::Namespace, NAME) | (Scope::Entity, NAMESPACE) => Field::Namespace,
        (Scope::Namespace, label) => Field::NamespaceLabel(label.to_owned()),
        (Scope::ServiceAccount | Scope::RuleServiceAccount, NAME) | (Scope::Entity, SERVICE_ACCOUNT) => {
            Field::ServiceAccount
        }
        (Scope::ServiceAccount | Scope::RuleServiceAccount, label) => Field::ServiceAccountLabel(label.to_owned()),
        (Scope::Entity, ORCHESTRATOR) => {
            return if test.holds_for(KUBERNETES) {
                Selector::equals(Field::Kind, EntityKind::Pod.name())
            } else {
                Selector::Nothing
            };
        }
        (Scope::Entity, label) => {
            if let Some(label) = label.strip_prefix(OF_NAMESPACE) {
                return self::test(label, Scope::Namespace, test);
            }
            if let Some(label) = label.strip_prefix(OF_SERVICE_ACCOUNT) {
                return self::test(label, Scope::RuleServiceAccount, test);
            }
            Field::Label(label.to_owned())
        }
    };
    test.on(field)
}
