//! Tier.

use std::sync::Arc;

use super::value::float;
use crate::{
    api::{
        at::described,
        object::Object,
        parse::{Context, Outcome},
    },
    policy::model::{Order, Tier, TierDefault},
};

/// Tiers that Calico makes itself, and whose order and default action it lets nobody change.
const FIXED: [&str; 3] = ["kube-admin", Tier::DEFAULT, "kube-baseline"];

pub(super) fn parse(cx: &mut Context<'_>) -> Outcome {
    let root = cx.root;
    let spec = root.get_or_empty("spec");
    if spec.map(cx.report).is_err() {
        return Outcome::Invalid;
    }
    let name = cx.name.clone();
    let report = &mut *cx.report;
    if name.contains('.') || name.len() > 63 {
        report.error(
            "metadata.name",
            "is no name of a tier: at most 63 characters, without dots",
            "rename the tier; Calico refuses this name",
        );
    }
    let fixed = FIXED.contains(&&*name).then(|| Tier::implied(&name));
    let order = match spec.get("order") {
        None => Ok(None),
        Some(order) => float(&order, report).map(|order| Some(Order(order))),
    };
    let action = match spec.get("defaultAction") {
        None => Ok(None),
        Some(action) => match action.value().as_str() {
            Some("Deny" | "") => Ok(Some(TierDefault::Deny)),
            Some("Pass") => Ok(Some(TierDefault::Pass)),
            _ => Err(report.error(
                action.path(),
                format!("must be Deny or Pass, is {}", described(action.value())),
                "correct it; until then the tier denies",
            )),
        },
    };
    // Of a tier whose place is not known nobody knows what it should come before: its policies would be the last.
    let Ok(order) = order else {
        return Outcome::Invalid;
    };
    let partial = action.is_err();
    let action = action.unwrap_or(Some(TierDefault::Deny));
    let tier = match fixed {
        Some(fixed) => {
            for (field, differs) in [
                ("spec.order", order.is_some_and(|order| order != fixed.order)),
                (
                    "spec.defaultAction",
                    action.is_some_and(|action| action != fixed.default_action),
                ),
            ] {
                if differs {
                    report.error(
                        field,
                        format!("of tier {name} cannot be changed; it stays as it is"),
                        "make a tier of your own",
                    );
                }
            }
            fixed
        }
        None => Tier {
            name: name.clone(),
            order: order.unwrap_or(Order::LAST),
            default_action: action.unwrap_or(TierDefault::Deny),
        },
    };
    let object = Object::Tier(Arc::new(tier));
    if partial {
        Outcome::Partial(object)
    } else {
        Outcome::Valid(object)
    }
}
