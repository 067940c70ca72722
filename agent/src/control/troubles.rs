//! Events on local pods that are not enforced: their interface is not found, programs are refused there, or their decisions do
//! not fit into the maps.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::query::Query;
use crate::{cli::server::ControlHandle, policy::change::PeerKey, source::kubernetes::PodEvents};

/// How often to look.
const LOOK: Duration = Duration::from_secs(5);
/// What is over sooner is no trouble: pods that start, maps that grow.
const LASTING: Duration = Duration::from_secs(30);
/// For the control loop to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells until it is dropped.
pub(super) async fn tell(events: PodEvents, handle: ControlHandle) {
    let mut troubles = Troubles::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(found) = handle.ask(PATIENCE, Query::Troubles).await else {
            continue;
        };
        for (pod, reason) in troubles.look(Instant::now(), found) {
            events.tell(pod.namespace.unwrap_or_default(), pod.name, reason);
        }
    }
}

struct Trouble {
    since: Instant,
    told: Option<String>,
}

/// Since when which pods are in trouble.
#[derive(Default)]
struct Troubles {
    pods: BTreeMap<PeerKey, Trouble>,
}

impl Troubles {
    /// What has to be told after a look: the reason of a pod's trouble, or None if it is over and was told.
    fn look(&mut self, now: Instant, found: BTreeMap<PeerKey, String>) -> Vec<(PeerKey, Option<String>)> {
        let mut tell = Vec::new();
        self.pods.retain(|pod, trouble| {
            let lasts = found.contains_key(pod);
            if !lasts && trouble.told.is_some() {
                tell.push((pod.clone(), None));
            }
            lasts
        });
        for (pod, reason) in found {
            let trouble = self
                .pods
                .entry(pod.clone())
                .or_insert(Trouble { since: now, told: None });
            if now.duration_since(trouble.since) >= LASTING && trouble.told.as_ref() != Some(&reason) {
                trouble.told = Some(reason.clone());
                tell.push((pod, Some(reason)));
            }
        }
        tell
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::selector::EntityKind;

    fn pod(name: &str) -> PeerKey {
        PeerKey {
            kind: EntityKind::Pod,
            namespace: Some("x".into()),
            name: name.into(),
        }
    }

    fn found(pods: &[(&str, &str)]) -> BTreeMap<PeerKey, String> {
        let pods = pods.iter().map(|(name, reason)| (pod(name), (*reason).to_owned()));
        pods.collect()
    }

    #[test]
    fn only_what_lasts_is_told_and_its_end() {
        let mut troubles = Troubles::default();
        let start = Instant::now();
        let short = found(&[("a", "no route"), ("b", "no route")]);
        assert_eq!(troubles.look(start, short), []);
        // b was about to start.
        assert_eq!(troubles.look(start + LASTING / 2, found(&[("a", "no route")])), []);
        let told = troubles.look(start + LASTING, found(&[("a", "no route"), ("b", "no route")]));
        assert_eq!(told, [(pod("a"), Some("no route".to_owned()))]);
        // Once, unless there is something new to say.
        let later = start + LASTING + LOOK;
        assert_eq!(troubles.look(later, found(&[("a", "no route")])), []);
        let told = troubles.look(later + LOOK, found(&[("a", "refused")]));
        assert_eq!(told, [(pod("a"), Some("refused".to_owned()))]);
        assert_eq!(troubles.look(later + LOOK * 2, found(&[])), [(pod("a"), None)]);
        assert_eq!(troubles.look(later + LOOK * 3, found(&[])), []);
    }
}
