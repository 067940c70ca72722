//! One end of a rule (EntityRule): `source` or `destination`.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;

use super::{
    selector::{Expression, Scope, lower, not, parse},
    value::{family, list, port, rule_net},
};
use crate::{
    api::at::{At, Report, Reported},
    policy::{
        model::{Family, PeerMatch, PortMatch},
        selector::{EntityKind, Field, Selector},
    },
};

/// What Calico's API server allows in one list.
pub(super) const MOST_NETS: usize = 256;
pub(super) const MOST_PORTS: usize = 50;
pub(super) const MOST_NAMES: usize = 1024;
/// Characters of a selector.
pub(super) const LONGEST_SELECTOR: usize = 1024;

/// Namespace and name of a Service.
pub(super) type ServiceName = (Arc<str>, Arc<str>);

/// Conditions on one end.
#[derive(Debug, Default)]
pub(super) struct End {
    pub(super) peer: PeerMatch,
    pub(super) ports: Option<Vec<PortMatch>>,
    pub(super) not_ports: Vec<PortMatch>,
    /// A Service whose endpoints it must be one of.
    pub(super) service: Option<ServiceName>,
}

impl End {
    /// The condition on the address, if there is one.
    pub(super) fn condition(&self) -> Option<PeerMatch> {
        (self.peer != PeerMatch::default()).then(|| self.peer.clone())
    }

    pub(super) fn all_ports(&self) -> impl Iterator<Item = &PortMatch> {
        self.ports.iter().flatten().chain(&self.not_ports)
    }
}

/// What the ends of one rule share.
pub(super) struct Ends<'a> {
    /// Of a namespaced policy.
    pub(super) namespace: Option<&'a str>,
    /// The family of the networks met so far.
    pub(super) family: Option<Family>,
}

impl Ends<'_> {
    /// `services`: whether this end may name a Service.
    pub(super) fn end(&mut self, at: Option<At<'_>>, services: bool, report: &mut Report) -> Result<End, Reported> {
        let Some(at) = at else {
            return Ok(End::default());
        };
        at.map(report)?;
        // All of it is looked at before giving up, so that all that is wrong is told at once.
        let selectors = self.selectors(&at, report);
        let nets = self.nets(&at, "nets", report);
        let not_nets = self.nets(&at, "notNets", report);
        let ports = list(&at, "ports", MOST_PORTS, report, port);
        let not_ports = list(&at, "notPorts", MOST_PORTS, report, port);
        let service = self.service(&at, services, report);
        let (selector, not_selector) = selectors?;
        let (nets, not_nets, ports) = (nets?, not_nets?, ports?);
        if let Some(everything) = not_nets.iter().find(|net| net.prefix_len() == 0) {
            return Err(report.error(
                at.path_of("notNets"),
                format!("without {everything} nothing is left to match"),
                "remove it, or the rule",
            ));
        }
        Ok(End {
            peer: PeerMatch {
                family: None,
                selector,
                not_selector,
                nets: (!nets.is_empty()).then_some(nets),
                not_nets,
            },
            ports: (!ports.is_empty()).then_some(ports),
            not_ports: not_ports?,
            service: service?,
        })
    }

    fn nets(&mut self, at: &At<'_>, key: &str, report: &mut Report) -> Result<Vec<IpNet>, Reported> {
        list(at, key, MOST_NETS, report, |element, report| {
            let net = rule_net(element, report)?;
            if *self.family.get_or_insert(family(&net)) == family(&net) {
                return Ok(net);
            }
            Err(report.error(
                element.path(),
                format!("{net} is of another address family than the rule's other networks"),
                "write one rule for IPv4 and one for IPv6",
            ))
        })
    }

    /// The condition that an entity must match, and the one that none may.
    fn selectors(&self, at: &At<'_>, report: &mut Report) -> Result<(Option<Selector>, Option<Selector>), Reported> {
        let selector = entity_selector(at, "selector", report);
        let not_selector = entity_selector(at, "notSelector", report);
        let namespaces = rule_namespaces(at, report);
        let accounts = match at.get("serviceAccounts") {
            Some(accounts) => service_accounts(&accounts, report),
            None => Ok(Vec::new()),
        };
        let (selector, not_selector, namespaces) = (selector?, not_selector?, namespaces?);
        let mut parts = accounts?;
        parts.extend(selector);
        match (namespaces, self.namespace) {
            (Some(namespaces), _) => parts.insert(0, namespaces),
            // Any condition on who it is, also a negative one, means the policy's own namespace.
            (None, Some(own)) if !parts.is_empty() || not_selector.is_some() => {
                parts.insert(0, Selector::equals(Field::Namespace, own));
            }
            _ => {}
        }
        if parts.is_empty() {
            return Ok((
                None,
                not_selector.map(|selector| Selector::And(vec![selector, not_a_node()])),
            ));
        }
        // The entity that matches must not match notSelector; who else has the address does not count.
        parts.extend(not_selector.map(not));
        parts.push(not_a_node());
        Ok((Some(conjunction(parts)), None))
    }

    fn service(&self, at: &At<'_>, allowed: bool, report: &mut Report) -> Result<Option<ServiceName>, Reported> {
        let Some(service) = at.get("services") else {
            return Ok(None);
        };
        service.map(report)?;
        if !allowed {
            return Err(report.error(
                service.path(),
                "services can only be the destination of egress rules and the source of ingress rules",
                "use a selector here",
            ));
        }
        for key in [
            "selector",
            "notSelector",
            "namespaceSelector",
            "nets",
            "notNets",
            "serviceAccounts",
        ] {
            if at.get(key).is_some_and(|at| !is_empty(&at)) {
                return Err(report.error(
                    at.path_of(key),
                    "cannot stand together with services",
                    "make two rules of it",
                ));
            }
        }
        let text = |key, report: &mut Report| match service.get(key) {
            Some(at) => at.string(report),
            None => Ok(""),
        };
        let (name, namespace) = (text("name", report)?, text("namespace", report)?);
        if name.is_empty() {
            return Err(report.error(service.path_of("name"), "is missing", "name the Service"));
        }
        let namespace = match (namespace, self.namespace) {
            ("", Some(own)) => own,
            ("", None) => {
                return Err(report.error(
                    service.path_of("namespace"),
                    "is missing",
                    "say which namespace the Service is in: a global policy has none of its own",
                ));
            }
            (namespace, _) => namespace,
        };
        Ok(Some((namespace.into(), name.into())))
    }
}

/// Selectors speak of pods, host endpoints and network sets. A Node is none of them, whatever its labels: `all()` does
/// not open pods to what runs on hosts, or comes masqueraded as them.
fn not_a_node() -> Selector {
    not(Selector::equals(Field::Kind, EntityKind::Node.name()))
}

fn is_empty(at: &At<'_>) -> bool {
    match at.value() {
        serde_json::Value::String(text) => text.is_empty(),
        serde_json::Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

pub(super) fn conjunction(mut parts: Vec<Selector>) -> Selector {
    if parts.len() == 1 {
        parts.remove(0)
    } else {
        Selector::And(parts)
    }
}

fn expression(at: &At<'_>, report: &mut Report) -> Result<Option<Expression>, Reported> {
    let text = at.string(report)?;
    if text.is_empty() {
        return Ok(None);
    }
    if text.chars().count() > LONGEST_SELECTOR {
        report.error(
            at.path(),
            format!("is longer than {LONGEST_SELECTOR} characters, which Calico refuses"),
            "shorten the selector",
        );
    }
    parse(text).map(Some).map_err(|error| {
        report.error(
            at.path(),
            error.to_string(),
            "correct the selector, as in app == \"web\" && has(tier)",
        )
    })
}

/// The selector at a field, if there is one. `global()` is not allowed.
pub(super) fn selector(
    parent: &At<'_>,
    key: &str,
    scope: Scope,
    report: &mut Report,
) -> Result<Option<Selector>, Reported> {
    let Some(at) = parent.get(key) else {
        return Ok(None);
    };
    let Some(expression) = expression(&at, report)? else {
        return Ok(None);
    };
    if has_global(&expression) {
        return Err(report.error(
            at.path(),
            "global() can only stand alone, as the namespaceSelector of a rule's source or destination",
            "use !has(projectcalico.org/namespace) for what is in no namespace",
        ));
    }
    Ok(Some(lower(&expression, scope)))
}

fn entity_selector(parent: &At<'_>, key: &str, report: &mut Report) -> Result<Option<Selector>, Reported> {
    selector(parent, key, Scope::Entity, report)
}

fn rule_namespaces(parent: &At<'_>, report: &mut Report) -> Result<Option<Selector>, Reported> {
    if let Some(at) = parent.get("namespaceSelector")
        && let Some(Expression::Global) = expression(&at, &mut Report::default()).ok().flatten()
    {
        return Ok(Some(lower(&Expression::Global, Scope::Namespace)));
    }
    selector(parent, "namespaceSelector", Scope::Namespace, report)
}

fn has_global(expression: &Expression) -> bool {
    match expression {
        Expression::Global => true,
        Expression::Not(inner) => has_global(inner),
        Expression::And(parts) | Expression::Or(parts) => parts.iter().any(has_global),
        _ => false,
    }
}

/// Names and selector, both of which must hold.
fn service_accounts(at: &At<'_>, report: &mut Report) -> Result<Vec<Selector>, Reported> {
    at.map(report)?;
    let names = list(at, "names", MOST_NAMES, report, |name, report| {
        name.string(report).map(str::to_owned)
    });
    let selector = selector(at, "selector", Scope::RuleServiceAccount, report);
    let names: BTreeSet<String> = names?.into_iter().collect();
    let names = (!names.is_empty()).then_some(Selector::In(Field::ServiceAccount, names.into()));
    Ok(selector?.into_iter().chain(names).collect())
}
