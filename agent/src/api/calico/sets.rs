//! NetworkSet and GlobalNetworkSet.

use std::sync::Arc;

use super::value::set_net;
use crate::api::{
    at::Reported,
    object::{NetworkSet, Object},
    parse::{Context, Outcome},
};

/// Members that Calico enforces.
const MOST_NETS: usize = 1_048_576;
/// The label by which sets are told from each other's namespaces, which no set may give itself.
const NAMESPACE: &str = "projectcalico.org/namespace";

pub(super) fn namespaced(cx: &mut Context<'_>) -> Outcome {
    let namespace = cx.namespace.clone();
    set(cx, Some(namespace))
}

pub(super) fn global(cx: &mut Context<'_>) -> Outcome {
    set(cx, None)
}

/// A set with an entry that cannot be read is used without it as long as no better version is known: what it would
/// have added is missing, whatever the rules that name it do. An update keeps the last valid version.
fn set(cx: &mut Context<'_>, namespace: Option<Arc<str>>) -> Outcome {
    let Ok(mut labels) = cx.own_labels() else {
        return Outcome::Invalid;
    };
    if labels.remove(NAMESPACE).is_some() {
        cx.report.error(
            format!("metadata.labels.{NAMESPACE}"),
            "cannot be given to a network set; ignored",
            "remove the label",
        );
    }
    let root = cx.root;
    let spec = root.get_or_empty("spec");
    if spec.map(cx.report).is_err() {
        return Outcome::Invalid;
    }
    let mut nets = Vec::new();
    let mut partial = false;
    if let Some(list) = spec.get("nets") {
        let Ok(elements) = list.elements(cx.report) else {
            return Outcome::Invalid;
        };
        for element in elements {
            match set_net(&element, cx.report) {
                Ok(net) => nets.push(net),
                Err(Reported) => partial = true,
            }
        }
        if nets.len() > MOST_NETS {
            cx.report.warn(
                list.path(),
                format!("has {} entries; Calico takes at most {MOST_NETS}", nets.len()),
                "join neighbouring networks",
            );
        }
    }
    nets.sort_unstable();
    nets.dedup();
    let object = Object::NetworkSet(Arc::new(NetworkSet {
        namespace,
        name: cx.name.clone(),
        labels: cx.interner.labels(labels),
        nets,
    }));
    if partial {
        Outcome::Partial(object)
    } else {
        Outcome::Valid(object)
    }
}
