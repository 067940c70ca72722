//! Which kinds to watch, and where: what discovery found decides between the two groups of Calico's kinds.

use super::{
    client::{JSON, METADATA_ONLY},
    project::{self, Shape},
    watch::Target,
};
use crate::api::{ApiKind, ObjectKind, api_kinds};

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
}

impl Seen {
    fn of(&self, group: &str) -> Option<&Vec<String>> {
        if group == SERVED {
            self.served.as_ref()
        } else {
            self.stored.as_ref()
        }
    }

    /// The one group to watch. Where both show the same objects, that of the CRDs: it is served by kube-apiserver itself,
    /// whatever becomes of Calico's.
    pub(super) fn group(&self) -> Option<&'static str> {
        let has = |group| {
            self.of(group).is_some_and(|plurals| {
                api_kinds().any(|api| api.group == group && plurals.iter().any(|plural| plural == api.plural))
            })
        };
        match (has(SERVED), has(STORED)) {
            (true, true) if self.served_is_stored == Some(true) => Some(SERVED),
            (_, true) => Some(STORED),
            (true, false) => Some(SERVED),
            (false, false) => None,
        }
    }

    /// Calico's kinds to watch.
    pub(super) fn resources(&self) -> Vec<Resource> {
        let Some(group) = self.group() else { return Vec::new() };
        let plurals = self.of(group);
        let native = group == STORED || self.served_is_stored == Some(true);
        api_kinds()
            .filter(|api| api.group == group)
            .filter(|api| plurals.is_some_and(|plurals| plurals.iter().any(|plural| plural == api.plural)))
            .map(|api| Resource::new(api, native))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
