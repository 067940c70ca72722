//! A condition on the agent's Node: whether policies are enforced there, for those who look at nodes rather than at agents.

use http::Method;
use serde_json::json;

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
    /// `reason`: why not everything is enforced; None if all is. `changed`: it was another before.
    ///
    /// # Errors
    /// The API server cannot be reached, or does not permit it.
    pub async fn set(&self, reason: Option<&str>, changed: bool) -> Result<(), ConditionError> {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut condition = json!({
            "type": CONDITION,
            "status": if reason.is_none() { "True" } else { "False" },
            "reason": if reason.is_none() { "Enforced" } else { "NotEnforced" },
            "message": reason.unwrap_or("network policies are enforced"),
            "lastHeartbeatTime": now,
        });
        if changed {
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

    async fn patch(&self, condition: &serde_json::Value) -> Result<(), ConditionError> {
        let path = format!("/api/v1/nodes/{}/status", escaped(&self.node));
        let patch = json!({"status": {"conditions": [condition]}});
        let body = patch.to_string().into_bytes();
        Ok(self.api.write(Method::PATCH, &path, MERGE, body).await?)
    }
}
