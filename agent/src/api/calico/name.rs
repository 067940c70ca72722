//! What a policy is called.

use crate::{api::at::At, policy::model::Tier};

/// Where Calico keeps what its own API says of an object's metadata.
pub(crate) const METADATA: &str = "projectcalico.org/metadata";

/// The name by which a policy is known: that of the annotation, if it has one (Calico 3.30 and later), else without the
/// prefix that Calico's storage gives to policies of tier `default`.
pub(super) fn of_policy(root: &At<'_>, name: &str) -> String {
    let value = root.value();
    let kept = value
        .pointer("/metadata/annotations")
        .and_then(|annotations| annotations.get(METADATA)?.as_str())
        .and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok())
        .and_then(|metadata| metadata.get("name")?.as_str().map(str::to_owned))
        .filter(|name| !name.is_empty());
    if let Some(kept) = kept {
        return kept;
    }
    let tier = value.pointer("/spec/tier").and_then(serde_json::Value::as_str);
    let in_default = tier.is_none_or(|tier| tier.is_empty() || tier == Tier::DEFAULT);
    name.strip_prefix("default.")
        .filter(|rest| in_default && !rest.is_empty())
        .unwrap_or(name)
        .to_owned()
}
