//! A condition on the agent's Node: whether policies are enforced there, for those who look at nodes rather than at agents.

use http::Method;
use serde_json::{Value, json};

use super::{
    client::{Api, Failure},
    watch::escaped,
};

/// The condition's type. True: all that the agent knows is enforced.
pub const CONDITION: &str = "WeirReady";

const MERGE: &str = "application/strategic-merge-patch+json";

/// Why the condition could not be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot write the node's condition: {0} (it takes permission to patch nodes/status)")]
pub struct ConditionError(String);

impl From<Failure> for ConditionError {
    fn from(failure: Failure) -> Self {
        Self(failure.to_string())
    }
}

/// Writes the condition. Cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeCondition {
    pub(super) api: Api,
    pub(super) node: String,
}

impl NodeCondition {
    /// `reason`: why not everything is enforced; None if all is. `last`: the status as written last, by which it is told
    /// whether this is a transition; None: an earlier agent may have written one, which is read from the Node.
    ///
    /// # Errors
    /// The API server cannot be reached, or does not permit it.
    pub async fn set(&self, reason: Option<&str>, last: Option<bool>) -> Result<(), ConditionError> {
        let last = match last {
            None => status(&self.api.get(&self.path()).await?),
            known => known,
        };
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut condition = json!({
            "type": CONDITION,
            "status": if reason.is_none() { "True" } else { "False" },
            "reason": if reason.is_none() { "Enforced" } else { "NotEnforced" },
            "message": reason.unwrap_or("network policies are enforced"),
            "lastHeartbeatTime": now,
        });
        if last != Some(reason.is_none()) {
            condition["lastTransitionTime"] = json!(now);
        }
        self.patch(&condition).await
    }

    /// Takes the condition away.
    ///
    /// # Errors
    /// As of [`Self::set`].
    pub async fn remove(&self) -> Result<(), ConditionError> {
        self.patch(&json!({"$patch": "delete", "type": CONDITION})).await
    }

    fn path(&self) -> String {
        format!("/api/v1/nodes/{}", escaped(&self.node))
    }

    async fn patch(&self, condition: &Value) -> Result<(), ConditionError> {
        let path = format!("{}/status", self.path());
        let patch = json!({"status": {"conditions": [condition]}});
        let body = patch.to_string().into_bytes();
        Ok(self.api.write(Method::PATCH, &path, MERGE, body).await?)
    }
}

/// What a Node's condition says: True or False. None: it has none, or one that says neither.
fn status(node: &[u8]) -> Option<bool> {
    let node: Value = serde_json::from_slice(node).ok()?;
    let conditions = node.pointer("/status/conditions")?.as_array()?;
    let condition = conditions.iter().find(|condition| condition["type"] == CONDITION)?;
    match condition["status"].as_str()? {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_agent_wrote_is_found() {
        let node = |conditions: Value| json!({"status": {"conditions": conditions}}).to_string().into_bytes();
        let ready = json!({"type": "Ready", "status": "True"});
        let ours = |status: &str| node(json!([ready, {"type": CONDITION, "status": status}]));
        assert_eq!(status(&ours("True")), Some(true));
        assert_eq!(status(&ours("False")), Some(false));
        assert_eq!(status(&ours("Unknown")), None);
        assert_eq!(status(&node(json!([ready]))), None);
        assert_eq!(status(b"{}"), None);
        assert_eq!(status(b"no Node"), None);
    }
}
