//! Which kinds to watch, and where: what discovery found decides between the two groups of Calico's kinds.

use super::{
    client::{JSON, METADATA_ONLY},
    project::{self, Shape},
    watch::Target,
};
use crate::api::{ApiKind, ObjectKind, Problem, api_kinds};

/// Calico's kinds as its API server shows them, or, in newer installations, as CRDs of that group.
pub(super) const SERVED: &str = "projectcalico.org";
/// Calico's kinds as its API server stores them.
pub(super) const STORED: &str = "crd.projectcalico.org";

/// A kind to watch.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    pub(super) api: ApiKind,
    pub(super) target: Target,
}

impl Resource {
    fn new(api: ApiKind, native: bool) -> Self {
        let group = if api.group.is_empty() {
            format!("/api/{}", api.version)
        } else {
            format!("/apis/{}/{}", api.group, api.version)
        };
        Self {
            api,
            target: Target {
                path: format!("{group}/{}", api.plural),
                selector: None,
                accept: JSON,
                shape: shape(api.object),
                native,
            },
        }
    }

    /// Without it nothing can be said of any pod of this node, and so nothing may be removed from it.
    pub(super) const fn is_essential(&self) -> bool {
        matches!(
            self.api.object,
            ObjectKind::Pod | ObjectKind::Namespace | ObjectKind::Node
        )
    }
}

const fn shape(kind: ObjectKind) -> &'static Shape {
    match kind {
        ObjectKind::Pod => &project::POD,
        ObjectKind::Node => &project::NODE,
        ObjectKind::Namespace | ObjectKind::ServiceAccount => &project::METADATA_OF,
        ObjectKind::Service => &project::SERVICE,
        ObjectKind::EndpointSlice => &project::ENDPOINT_SLICE,
        ObjectKind::Policy(_) | ObjectKind::Tier | ObjectKind::NetworkSet | ObjectKind::GlobalNetworkSet => {
            &project::POLICY
        }
    }
}

/// The kinds that every API server serves.
pub(super) fn built_in() -> Vec<Resource> {
    api_kinds()
        .filter(|api| api.group != SERVED && api.group != STORED)
        .map(|api| Resource::new(api, true))
        .collect()
}

/// Objects that are looked at for their names only.
pub(super) fn names_of(path: &str) -> Target {
    Target {
        path: path.to_owned(),
        selector: None,
        accept: METADATA_ONLY,
        shape: &project::METADATA_OF,
        native: true,
    }
}

/// What discovery has seen of Calico's groups: the resources that each serves, None if it is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) served: Option<Vec<String>>,
    pub(super) stored: Option<Vec<String>>,
    /// There are CRDs in the group [`SERVED`]: its objects are stored in it. None: nobody may tell.
    pub(super) served_is_stored: Option<bool>,
    /// Which groups hold policies. Known where there are CRDs in both.
    pub(super) policies: Option<Policies>,
    /// Why the group [`SERVED`] could not be asked, where it does not matter.
    pub(super) unanswered: Option<String>,
}

/// Which groups hold policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policies {
    pub(super) served: bool,
    pub(super) stored: bool,
}

impl Seen {
    fn of(&self, group: &str) -> Option<&Vec<String>> {
        if group == SERVED {
            self.served.as_ref()
        } else {
            self.stored.as_ref()
        }
    }

    /// The kinds of ours that a group serves.
    pub(super) fn kinds(&self, group: &'static str) -> impl Iterator<Item = ApiKind> {
        let plurals = self.of(group);
        api_kinds()
            .filter(move |api| api.group == group)
            .filter(move |api| plurals.is_some_and(|plurals| plurals.iter().any(|plural| plural == api.plural)))
    }

    fn has(&self, group: &'static str) -> bool {
        self.kinds(group).next().is_some()
    }

    /// There are CRDs of ours in both groups: two sets of objects, not two views of one.
    pub(super) fn has_two_sets(&self) -> bool {
        self.served_is_stored == Some(true) && self.has(SERVED) && self.has(STORED)
    }

    /// The group to watch. Where both show the same objects, that of the CRDs: it is served by kube-apiserver itself,
    /// whatever becomes of Calico's. Where both have objects of their own, the newer way of storing them counts, but not
    /// before it is used: CRDs come before what is to be moved to them.
    pub(super) fn group(&self) -> Option<&'static str> {
        match (self.has(SERVED), self.has(STORED)) {
            (true, true) if self.has_two_sets() && !self.is_before_the_move() => Some(SERVED),
            (_, true) => Some(STORED),
            (true, false) => Some(SERVED),
            (false, false) => None,
        }
    }

    fn is_before_the_move(&self) -> bool {
        self.policies
            .is_some_and(|policies| policies.stored && !policies.served)
    }

    /// Calico's kinds to watch: each of one group.
    pub(super) fn resources(&self) -> Vec<Resource> {
        let Some(group) = self.group() else { return Vec::new() };
        let mut kinds: Vec<ApiKind> = self.kinds(group).collect();
        if self.has_two_sets() {
            // What has no CRD in the one has nothing but that in the other.
            let other = if group == SERVED { STORED } else { SERVED };
            for api in self.kinds(other) {
                if !kinds.iter().any(|known| known.object == api.object) {
                    kinds.push(api);
                }
            }
        }
        let is_native = |api: &ApiKind| api.group == STORED || self.served_is_stored == Some(true);
        kinds
            .into_iter()
            .map(|api| Resource::new(api, is_native(&api)))
            .collect()
    }

    /// What a user should know of the two groups.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some(why) = &self.unanswered {
            problems.push(Problem::warning(
                format!(
                    "{SERVED} cannot be asked: {why}; Calico's objects are read from {STORED}, and none is missing"
                ),
                format!("see to Calico's API server; if there is none any more, delete APIService v3.{SERVED}"),
            ));
        }
        match self.policies.filter(|_| self.has_two_sets()) {
            Some(Policies {
                served: true,
                stored: true,
            }) => problems.push(Problem::error(
                format!("there are policies in both {SERVED} and {STORED}; those of {STORED} are not enforced"),
                format!("move them to {SERVED}, or delete them"),
            )),
            Some(Policies {
                served: false,
                stored: true,
            }) => problems.push(Problem::warning(
                format!("{SERVED} has CRDs, but no policy yet: the objects of {STORED} count until there is one"),
                format!("move the policies to {SERVED}, all at once, or delete the CRDs of one group"),
            )),
            _ => {}
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Severity;

    fn all() -> Option<Vec<String>> {
        Some(vec![
            "networkpolicies".to_owned(),
            "tiers".to_owned(),
            "ippools".to_owned(),
        ])
    }

    #[test]
    fn only_one_group_is_watched() {
        let seen = |served, stored, served_is_stored| Seen {
            served,
            stored,
            served_is_stored,
            ..Seen::default()
        };
        for (seen, group) in [
            (seen(None, None, Some(false)), None),
            (seen(None, all(), Some(false)), Some(STORED)),
            (seen(all(), None, Some(false)), Some(SERVED)),
            (seen(all(), None, Some(true)), Some(SERVED)),
            // Calico's API server in front of its CRDs.
            (seen(all(), all(), Some(false)), Some(STORED)),
            (seen(all(), all(), None), Some(STORED)),
            // CRDs in both groups: the newer way of storing them counts.
            (seen(all(), all(), Some(true)), Some(SERVED)),
            // A group that has nothing of ours.
            (seen(Some(vec!["ippools".to_owned()]), None, Some(true)), None),
            (seen(Some(vec!["ippools".to_owned()]), all(), Some(true)), Some(STORED)),
        ] {
            assert_eq!(seen.group(), group, "{seen:?}");
            let resources = seen.resources();
            assert!(resources.iter().all(|resource| Some(resource.api.group) == group));
            assert_eq!(resources.len(), if group.is_some() { 2 } else { 0 });
        }
    }

    #[test]
    fn crds_alone_take_nothing_out_of_force() {
        let seen = |served, stored| Seen {
            served: all(),
            stored: all(),
            served_is_stored: Some(true),
            policies: Some(Policies { served, stored }),
            ..Seen::default()
        };
        for (seen, group, problem) in [
            (seen(false, false), SERVED, None),
            (seen(false, true), STORED, Some(Severity::Warning)),
            (seen(true, true), SERVED, Some(Severity::Error)),
            (seen(true, false), SERVED, None),
        ] {
            assert_eq!(seen.group(), Some(group), "{seen:?}");
            let problems = seen.problems();
            assert_eq!(
                problems.first().map(|problem| problem.severity),
                problem,
                "{problems:?}"
            );
        }
    }

    #[test]
    fn a_kind_without_a_crd_in_the_one_group_is_read_from_the_other() {
        let tiers = Some(vec!["tiers".to_owned()]);
        for (served, stored, policies, expected) in [
            (
                all(),
                tiers.clone(),
                (true, false),
                [(SERVED, "networkpolicies"), (SERVED, "tiers")],
            ),
            (
                tiers.clone(),
                all(),
                (false, true),
                [(STORED, "networkpolicies"), (STORED, "tiers")],
            ),
            (
                tiers.clone(),
                all(),
                (false, false),
                [(STORED, "networkpolicies"), (SERVED, "tiers")],
            ),
            (
                all(),
                tiers,
                (false, true),
                [(SERVED, "networkpolicies"), (STORED, "tiers")],
            ),
        ] {
            let seen = Seen {
                served,
                stored,
                served_is_stored: Some(true),
                policies: Some(Policies {
                    served: policies.0,
                    stored: policies.1,
                }),
                ..Seen::default()
            };
            let mut resources: Vec<(&str, &str)> = seen
                .resources()
                .iter()
                .map(|resource| (resource.api.group, resource.api.plural))
                .collect();
            resources.sort_by_key(|(_, plural)| *plural);
            assert_eq!(resources, expected, "{seen:?}");
        }
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let paths: Vec<String> = built_in().into_iter().map(|resource| resource.target.path).collect();
        for path in [
            "/api/v1/pods",
            "/api/v1/nodes",
            "/api/v1/namespaces",
            "/api/v1/serviceaccounts",
            "/api/v1/services",
            "/apis/discovery.k8s.io/v1/endpointslices",
            "/apis/networking.k8s.io/v1/networkpolicies",
        ] {
            assert!(paths.iter().any(|known| known == path), "{path} of {paths:?}");
        }
        assert_eq!(paths.len(), 7);
    }
}
