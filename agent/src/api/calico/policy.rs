//! NetworkPolicy, GlobalNetworkPolicy and their staged kinds -> the policy model.

use std::sync::Arc;

use weir_common::Direction;

use super::{
    entity::{conjunction, selector},
    rule::{list_name, rules},
    selector::Scope,
    value::float,
};
use crate::{
    api::{
        at::{At, Report, Reported, quoted},
        network_policy,
        object::{Object, ServicePolicy},
        parse::{Context, Outcome},
    },
    policy::{
        model::{Action, Order, Policy, PolicyKey, PolicyKind, Rule, Tier},
        selector::{EntityKind, Field, Selector},
    },
};

/// A policy of one of Calico's own kinds.
pub(super) fn parse(cx: &mut Context<'_>, kind: PolicyKind) -> Outcome {
    let namespaced = matches!(kind, PolicyKind::NetworkPolicy | PolicyKind::StagedNetworkPolicy);
    let staged = matches!(
        kind,
        PolicyKind::StagedNetworkPolicy | PolicyKind::StagedGlobalNetworkPolicy
    );
    let namespace = namespaced.then(|| cx.namespace.clone());
    let root = cx.root;
    let report = &mut *cx.report;
    let Ok(spec) = network_policy::spec(&root, "everything it can select", "say spec.selector and types", report)
    else {
        return Outcome::Invalid;
    };
    // All of it is looked at before giving up, so that all that is wrong is told at once.
    let subject = subject(&spec, namespace.as_ref(), report);
    let directions = directions(&spec, report);
    let evaluated = if staged { evaluated(&spec, report) } else { Ok(true) };
    let mut ingress = rules(&spec, Direction::Ingress, namespace.as_deref(), report);
    let mut egress = rules(&spec, Direction::Egress, namespace.as_deref(), report);
    let position = position(&spec, report);
    let host_only = host_only(&spec, namespaced, report);
    let (Ok(subject), Ok((for_ingress, for_egress)), Ok(evaluated), Ok(host_only)) =
        (subject, directions, evaluated, host_only)
    else {
        return Outcome::Invalid;
    };
    let mut partial = ingress.partial || egress.partial;
    let (tier, order) = position.unwrap_or_else(|Reported| {
        // Where it stands among the others is not known: it comes first, and what it lets through matches nothing.
        partial = true;
        for rules in [&mut ingress, &mut egress] {
            rules.services.retain(|service| denies_or_logs(&service.rule));
            rules
                .rules
                .iter_mut()
                .filter(|rule| !denies_or_logs(rule))
                .for_each(match_nothing);
        }
        (Tier::DEFAULT.to_owned(), Order(f64::NEG_INFINITY))
    });
    for (listed, rules, direction) in [
        (for_ingress, &ingress.rules, Direction::Ingress),
        (for_egress, &egress.rules, Direction::Egress),
    ] {
        if !listed && !rules.is_empty() {
            report.warn(
                format!("spec.{}", list_name(direction)),
                "these rules are ignored: spec.types does not list their direction",
                "add the direction to spec.types, or remove the rules",
            );
        }
    }
    let policy = Policy {
        key: PolicyKey {
            kind,
            namespace,
            name: cx.name.clone(),
        },
        tier: cx.interner.string(&tier),
        order,
        subject: if host_only {
            let hosts = Selector::equals(Field::Kind, EntityKind::HostEndpoint.name());
            Selector::And(vec![hosts, subject])
        } else {
            subject
        },
        ingress: (for_ingress && evaluated).then_some(ingress.rules),
        egress: (for_egress && evaluated).then_some(egress.rules),
        staged,
    };
    let mut services = Vec::new();
    if policy.ingress.is_some() {
        services.append(&mut ingress.services);
    }
    if policy.egress.is_some() {
        services.append(&mut egress.services);
    }
    let object = if services.is_empty() {
        Object::Policy(Arc::new(policy))
    } else {
        Object::ServicePolicy(Arc::new(ServicePolicy { policy, services }))
    };
    if partial {
        Outcome::Partial(object)
    } else {
        Outcome::Valid(object)
    }
}

/// A Kubernetes NetworkPolicy that is not enforced.
pub(super) fn staged_kubernetes(cx: &mut Context<'_>) -> Outcome {
    let root = cx.root;
    let evaluated = match root.get("spec") {
        Some(spec) => evaluated(&spec, cx.report),
        None => Ok(true),
    };
    let without_rules = |object| match object {
        Object::Policy(policy) => Object::Policy(Arc::new(Policy {
            ingress: None,
            egress: None,
            ..Arc::unwrap_or_clone(policy)
        })),
        other => other,
    };
    let outcome = network_policy::parse_as(cx, PolicyKind::StagedKubernetesNetworkPolicy);
    match (evaluated, outcome) {
        (Err(Reported), _) => Outcome::Invalid,
        (Ok(false), Outcome::Valid(object)) => Outcome::Valid(without_rules(object)),
        (Ok(false), Outcome::Partial(object)) => Outcome::Partial(without_rules(object)),
        (_, outcome) => outcome,
    }
}

fn denies_or_logs(rule: &Rule) -> bool {
    matches!(rule.action, Action::Deny | Action::Log)
}

fn match_nothing(rule: &mut Rule) {
    rule.peers = Some(Vec::new());
    rule.traffic.clear();
}

fn subject(spec: &At<'_>, namespace: Option<&Arc<str>>, report: &mut Report) -> Result<Selector, Reported> {
    let own = selector(spec, "selector", Scope::Entity, report);
    let accounts = selector(spec, "serviceAccountSelector", Scope::ServiceAccount, report);
    let namespaces = match (namespace, spec.get("namespaceSelector")) {
        (Some(_), Some(at)) if at.value().as_str() != Some("") => {
            report.warn(
                at.path(),
                "is ignored: a NetworkPolicy is about its own namespace",
                "use a GlobalNetworkPolicy, or remove the field",
            );
            Ok(None)
        }
        (Some(_), _) => Ok(None),
        (None, _) => selector(spec, "namespaceSelector", Scope::Namespace, report),
    };
    let mut parts: Vec<Selector> = namespace
        .map(|namespace| Selector::equals(Field::Namespace, &**namespace))
        .into_iter()
        .collect();
    parts.extend(namespaces?);
    parts.extend(own?);
    parts.extend(accounts?);
    Ok(if parts.is_empty() {
        Selector::All
    } else {
        conjunction(parts)
    })
}

/// Whether the policy speaks about ingress, and about egress. Not said: about what it has rules for, and about ingress
/// if it has none. (Calico fills this in when a policy is written through its API.)
fn directions(spec: &At<'_>, report: &mut Report) -> Result<(bool, bool), Reported> {
    let mut listed = (false, false);
    if let Some(types) = spec.get("types") {
        for entry in types.elements(report)? {
            let text = entry.string(report)?;
            if text.eq_ignore_ascii_case("Ingress") {
                listed.0 = true;
            } else if text.eq_ignore_ascii_case("Egress") {
                listed.1 = true;
            } else {
                return Err(report.error(
                    entry.path(),
                    format!("{} is no policy type", quoted(text)),
                    "use Ingress or Egress",
                ));
            }
        }
    }
    if listed != (false, false) {
        return Ok(listed);
    }
    // A value that is no list might be rules.
    let has = |key| {
        spec.get(key)
            .is_some_and(|rules| rules.value().as_array().is_none_or(|rules| !rules.is_empty()))
    };
    Ok((has("ingress") || !has("egress"), has("egress")))
}

/// Tier and place in it.
fn position(spec: &At<'_>, report: &mut Report) -> Result<(String, Order), Reported> {
    let order = match spec.get("order") {
        Some(order) => float(&order, report).map(Order),
        None => Ok(Order::LAST),
    };
    let tier = match spec.get("tier") {
        Some(tier) => tier.string(report)?,
        None => "",
    };
    let tier = if tier.is_empty() { Tier::DEFAULT } else { tier };
    Ok((tier.to_owned(), order?))
}

/// Of a staged policy: whether it is evaluated. (`Delete` stages the absence of a policy.)
fn evaluated(spec: &At<'_>, report: &mut Report) -> Result<bool, Reported> {
    let Some(action) = spec.get("stagedAction") else {
        return Ok(true);
    };
    match action.string(report)? {
        "Set" | "Learn" | "Ignore" | "" => Ok(true),
        "Delete" => Ok(false),
        other => Err(report.error(
            action.path(),
            format!("{} is no staged action", quoted(other)),
            "use Set or Delete",
        )),
    }
}

/// Whether the policy is about host endpoints alone: untracked and pre-DNAT policies never affect a pod.
fn host_only(spec: &At<'_>, namespaced: bool, report: &mut Report) -> Result<bool, Reported> {
    if namespaced {
        return Ok(false);
    }
    let flag = |key, report: &mut Report| spec.get(key).map_or(Ok(false), |at| at.bool(report));
    let untracked = flag("doNotTrack", report);
    let pre_dnat = flag("preDNAT", report);
    let forward = flag("applyOnForward", report);
    let (untracked, pre_dnat, forward) = (untracked?, pre_dnat?, forward?);
    if !untracked && !pre_dnat {
        return Ok(false);
    }
    let key = if untracked { "doNotTrack" } else { "preDNAT" };
    if !forward {
        report.error(
            "spec.applyOnForward",
            format!("must be true with {key}"),
            "add applyOnForward: true",
        );
    }
    if untracked && pre_dnat {
        report.error(
            "spec.preDNAT",
            "cannot stand together with doNotTrack",
            "make two policies of it",
        );
    }
    let has_egress = |key| {
        spec.get(key).is_some_and(|at| {
            at.value().as_array().is_some_and(|list| {
                key == "egress" && !list.is_empty()
                    || list
                        .iter()
                        .any(|entry| entry.as_str().is_some_and(|entry| entry.eq_ignore_ascii_case("Egress")))
            })
        })
    };
    if pre_dnat && (has_egress("egress") || has_egress("types")) {
        report.error(
            "spec.preDNAT",
            "is about ingress alone: the policy cannot have egress rules",
            "remove the egress rules and the type Egress",
        );
    }
    report.warn(
        format!("spec.{key}"),
        "such a policy is for host endpoints alone: it affects no pod",
        format!("remove {key}, if pods are meant"),
    );
    Ok(true)
}
