//! Who may do what: the agent's own account, and people who were given the rights of one namespace.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    pods::{namespace, remove_namespace},
    stage::{NAMESPACE, Stage},
};
use crate::lab::manifests::labels;

const TEAM: &str = "weir-e2e-team";
const OTHER: &str = "weir-e2e-other";

/// A question to the API server's authorization.
struct Right {
    account: &'static str,
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    /// Empty: everywhere, or no namespace.
    namespace: &'static str,
    allowed: bool,
}

const CORE: &str = "";
const POLICY: &str = "networking.k8s.io";
const CALICO: &str = "crd.projectcalico.org";
/// In namespace `kube-system`.
const AGENT: &str = "agent";
const VIEWER: &str = "viewer";
const EDITOR: &str = "editor";
const ADMIN: &str = "admin";

const fn right(
    account: &'static str,
    verb: &'static str,
    (group, resource): (&'static str, &'static str),
    namespace: &'static str,
    allowed: bool,
) -> Right {
    Right {
        account,
        verb,
        group,
        resource,
        namespace,
        allowed,
    }
}

const RIGHTS: [Right; 39] = [
    right(AGENT, "list", (CORE, "pods"), "", true),
    right(AGENT, "watch", (CORE, "namespaces"), "", true),
    right(AGENT, "watch", (POLICY, "networkpolicies"), "", true),
    right(AGENT, "watch", (CALICO, "globalnetworkpolicies"), "", true),
    // It asks for single pods and for its own namespace (by name: not for all, nor for another).
    right(AGENT, "get", (CORE, "pods"), "", true),
    right(AGENT, "get", (CORE, "namespaces"), "", false),
    right(AGENT, "get", (CORE, "nodes"), "", false),
    right(AGENT, "get", (CORE, "services"), "", false),
    right(AGENT, "get", (POLICY, "networkpolicies"), "", false),
    right(AGENT, "create", (CORE, "pods"), "", false),
    right(AGENT, "delete", (CORE, "pods"), "", false),
    right(AGENT, "update", (CORE, "nodes"), "", false),
    // Only where the chart is told to have conditions written.
    right(AGENT, "patch", (CORE, "nodes/status"), "", false),
    right(AGENT, "get", (CORE, "secrets"), "", false),
    right(AGENT, "get", (CORE, "configmaps"), "", false),
    right(AGENT, "update", (POLICY, "networkpolicies"), "", false),
    right(AGENT, "delete", (CALICO, "networkpolicies"), "", false),
    right(AGENT, "delete", ("apps", "daemonsets"), NAMESPACE, false),
    right(VIEWER, "list", (POLICY, "networkpolicies"), TEAM, true),
    right(VIEWER, "list", (CALICO, "networkpolicies"), TEAM, true),
    right(VIEWER, "create", (CALICO, "networkpolicies"), TEAM, false),
    right(VIEWER, "list", (CALICO, "networkpolicies"), OTHER, false),
    right(EDITOR, "create", (POLICY, "networkpolicies"), TEAM, true),
    right(EDITOR, "create", (CALICO, "networkpolicies"), TEAM, true),
    right(EDITOR, "create", (CALICO, "networksets"), TEAM, true),
    right(EDITOR, "create", (CALICO, "networkpolicies"), OTHER, false),
    right(EDITOR, "delete", (CALICO, "networksets"), OTHER, false),
    right(EDITOR, "create", (CALICO, "globalnetworkpolicies"), "", false),
    right(EDITOR, "create", (CALICO, "tiers"), "", false),
    right(
        EDITOR,
        "create",
        ("rbac.authorization.k8s.io", "clusterrolebindings"),
        "",
        false,
    ),
    right(ADMIN, "list", (POLICY, "networkpolicies"), TEAM, true),
    right(ADMIN, "list", (CALICO, "networkpolicies"), TEAM, true),
    right(ADMIN, "create", (CALICO, "networkpolicies"), TEAM, true),
    right(ADMIN, "delete", (CALICO, "networksets"), TEAM, true),
    right(ADMIN, "create", (CALICO, "stagednetworkpolicies"), TEAM, true),
    right(ADMIN, "list", (CALICO, "networkpolicies"), OTHER, false),
    right(ADMIN, "create", (CALICO, "networkpolicies"), OTHER, false),
    right(ADMIN, "create", (CALICO, "globalnetworkpolicies"), "", false),
    right(ADMIN, "create", (CALICO, "tiers"), "", false),
];

/// Asks the API server for each right, and then uses two of them for real.
///
/// # Errors
/// What somebody may do who must not, or the other way round.
pub fn run(stage: &Stage) -> Result<()> {
    let api = stage.api();
    for name in [TEAM, OTHER] {
        namespace(api, name, &labels(&[]))?;
    }
    for (account, role) in [(VIEWER, "view"), (EDITOR, "edit"), (ADMIN, "admin")] {
        api.apply(&json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": TEAM, "name": account}}))?;
        api.apply(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"namespace": TEAM, "name": account},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "namespace": TEAM, "name": account}],
        }))?;
    }
    // Aggregated roles are put together by a controller.
    super::pods::eventually("the aggregated roles are complete", super::pods::STARTED, || {
        for account in [EDITOR, ADMIN] {
            if !asked(
                stage,
                &right(account, "create", (CALICO, "networkpolicies"), TEAM, true),
            )? {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    let mut wrong = Vec::new();
    for right in &RIGHTS {
        if asked(stage, right)? != right.allowed {
            wrong.push(format!(
                "{} {} {} {}.{} in {:?}",
                right.account,
                if right.allowed { "may not" } else { "may" },
                right.verb,
                right.resource,
                right.group,
                right.namespace
            ));
        }
    }
    ensure!(
        wrong.is_empty(),
        "rights are not as they should be:\n{}",
        wrong.join("\n")
    );

    let policy = |namespace: &str| {
        json!({
            "apiVersion": "crd.projectcalico.org/v1",
            "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace, "name": "by-the-team"},
            "spec": {"selector": "all()", "types": ["Ingress"]},
        })
    };
    let user = user(EDITOR);
    api.create_as(&user, &policy(TEAM))?;
    let refused = api.create_as(&user, &policy(OTHER));
    ensure!(refused.is_err(), "the editor of {TEAM} has made a policy in {OTHER}");
    for name in [TEAM, OTHER] {
        remove_namespace(api, name)?;
    }
    Ok(())
}

fn user(account: &str) -> String {
    match account {
        AGENT => format!("system:serviceaccount:{NAMESPACE}:weir"),
        other => format!("system:serviceaccount:{TEAM}:{other}"),
    }
}

fn asked(stage: &Stage, right: &Right) -> Result<bool> {
    let (resource, subresource) = right.resource.split_once('/').unwrap_or((right.resource, ""));
    let mut attributes =
        json!({"verb": right.verb, "group": right.group, "resource": resource, "subresource": subresource});
    if !right.namespace.is_empty() {
        attributes["namespace"] = json!(right.namespace);
    }
    let namespace = if right.account == AGENT { NAMESPACE } else { TEAM };
    let review: Value = stage.api().post(
        "/apis/authorization.k8s.io/v1/subjectaccessreviews",
        &json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user(right.account),
                "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
                "resourceAttributes": attributes,
            },
        }),
    )?;
    Ok(review["status"]["allowed"] == true)
}
