//! What comes late, out of order, or from several sides at once.

use serde_json::json;
use tempfile::TempDir;

use super::*;

const PODS: &str = "pods";
const POLICIES: &str = "networkpolicies.networking.k8s.io";

struct Known {
    catalogue: Catalogue,
    home: TempDir,
}

fn api(object: &str) -> ApiKind {
    crate::api::api_kinds()
        .find(|api| kind_name(api) == object)
        .expect("a kind that is served")
}

impl Known {
    fn unlisted(home: TempDir) -> Self {
        let (store, stored) = Store::open(home.path()).expect("opens");
        let mut catalogue = Catalogue::new(store, stored);
        catalogue.add(PODS, api(PODS));
        catalogue.add(POLICIES, api(POLICIES));
        Self { catalogue, home }
    }

    fn started() -> Self {
        let mut known = Self::unlisted(tempfile::tempdir().expect("a directory"));
        known.list(PODS, &[], 10);
        known.list(POLICIES, &[], 10);
        known.catalogue.start(true);
        assert_eq!(known.events(), ["reset"]);
        known
    }

    fn list(&mut self, slot: &'static str, items: &[Value], version: u64) {
        self.catalogue.begin(slot);
        for item in items {
            self.catalogue.item(slot, item);
        }
        self.catalogue.listed(slot, version);
    }

    /// As text, one word each for what is told of pods and policies.
    fn events(&mut self) -> Vec<String> {
        let name = |object: &Object| match object {
            Object::Pod(pod) => {
                let label = pod.labels.get("v").map_or("", String::as_str);
                format!(" {}{label}", pod.name)
            }
            other => format!(" {}", other.key().name),
        };
        let names = |objects: &[Object]| {
            let mut names: Vec<String> = objects.iter().map(name).collect();
            names.sort();
            names.concat()
        };
        let text = |event: SourceEvent| match event {
            SourceEvent::Apply(object) => format!("apply{}", name(&object)),
            SourceEvent::Delete(key) => format!("delete {}", key.name),
            SourceEvent::Reset(objects) => format!("reset{}", names(&objects)),
            SourceEvent::ResetKinds { objects, .. } => format!("list{}", names(&objects)),
            SourceEvent::Problems { problems, .. } => format!("problems {}", problems.len()),
            other => format!("{other:?}"),
        };
        self.catalogue.events().into_iter().map(text).collect()
    }

    fn read(&mut self, value: &Value) -> Option<u64> {
        self.catalogue.read(PODS, value).map(|(_, version)| version)
    }
}

/// A pod whose labels say which version of it this is.
fn pod(name: &str, version: u64) -> Value {
    json!({
        "metadata": {
            "namespace": "ns", "name": name, "resourceVersion": version.to_string(), "labels": {"v": version.to_string()},
        },
    })
}

fn policy(name: &str, version: u64, port: Value) -> Value {
    json!({
        "metadata": {"namespace": "ns", "name": name, "resourceVersion": version.to_string(), "uid": "u"},
        "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": port}]}]},
    })
}

#[test]
fn an_older_version_never_replaces_a_newer_one() {
    let mut known = Known::started();
    known.catalogue.changed(PODS, &pod("a", 20));
    known.catalogue.changed(PODS, &pod("a", 19));
    known.catalogue.changed(PODS, &pod("a", 20));
    assert_eq!(known.events(), ["apply a20"]);
    known.catalogue.gone(PODS, &pod("a", 18));
    assert!(known.events().is_empty(), "the deletion of an earlier pod of that name");
    known.catalogue.gone(PODS, &pod("a", 21));
    assert_eq!(known.events(), ["delete a"]);
}

#[test]
fn what_was_read_by_itself_is_not_undone_by_an_older_event_of_the_watch() {
    let mut known = Known::started();
    known.catalogue.changed(PODS, &pod("a", 20));
    known.events();
    assert_eq!(known.read(&pod("a", 30)), Some(30));
    assert_eq!(known.events(), ["apply a30"]);
    // The watch catches up.
    known.catalogue.changed(PODS, &pod("a", 25));
    known.catalogue.gone(PODS, &pod("a", 26));
    known.catalogue.changed(PODS, &pod("a", 30));
    assert!(known.events().is_empty());
    known.catalogue.gone(PODS, &pod("a", 31));
    assert_eq!(known.events(), ["delete a"]);
}

#[test]
fn a_read_that_was_overtaken_by_the_watch_brings_nothing_back() {
    let mut known = Known::started();
    known.catalogue.changed(PODS, &pod("a", 20));
    known.catalogue.gone(PODS, &pod("a", 22));
    known.events();
    assert_eq!(known.read(&pod("a", 20)), None, "it was deleted since");
    assert!(known.events().is_empty());
    known.catalogue.changed(PODS, &pod("b", 24));
    known.events();
    assert_eq!(known.read(&pod("b", 23)), Some(24), "the newer version is the answer");
    assert!(known.events().is_empty());
}

#[test]
fn a_relist_is_one_event_and_says_what_is_gone() {
    let mut known = Known::started();
    for (name, version) in [("a", 11), ("b", 12), ("c", 13)] {
        known.catalogue.changed(PODS, &pod(name, version));
    }
    known.events();
    known.list(PODS, &[pod("a", 11), pod("c", 40)], 50);
    assert_eq!(known.events(), ["list a11 c40"]);
    assert_eq!(known.catalogue.delivered(PODS), 50);
    // What the old watch had under way is older than the list.
    known.catalogue.changed(PODS, &pod("b", 45));
    assert!(known.events().is_empty());
}

#[test]
fn a_list_beside_the_watch_is_overtaken_by_nothing() {
    let mut known = Known::started();
    known.catalogue.changed(PODS, &pod("a", 20));
    known.events();
    known.catalogue.listed_beside(PODS, &[pod("b", 29)], 30);
    assert_eq!(known.events(), ["list b29"]);
    // The watch tells late what the list knew.
    known.catalogue.changed(PODS, &pod("a", 25));
    known.catalogue.gone(PODS, &pod("a", 26));
    known.catalogue.changed(PODS, &pod("b", 29));
    assert!(known.events().is_empty());
    // A list that was answered late itself.
    known.catalogue.listed_beside(PODS, &[], 28);
    assert!(known.events().is_empty());
    known.catalogue.changed(PODS, &pod("c", 31));
    assert_eq!(known.events(), ["apply c31"]);
}

#[test]
fn what_was_read_after_a_list_survives_it() {
    let mut known = Known::started();
    known.catalogue.begin(PODS);
    known.catalogue.item(PODS, &pod("a", 15));
    assert_eq!(known.read(&pod("b", 60)), Some(60));
    assert_eq!(known.events(), ["apply b60"]);
    known.catalogue.listed(PODS, 50);
    assert_eq!(known.events(), ["list a15 b60"]);
}

#[test]
fn what_was_told_beside_the_watch_is_not_told_again() {
    let mut known = Known::started();
    let told = [(false, pod("a", 20)), (true, pod("a", 22))];
    known.catalogue.caught_up(PODS, &told, 30);
    assert_eq!(known.events(), ["apply a20", "delete a"]);
    assert_eq!(known.catalogue.delivered(PODS), 30);
    // The watch comes to the same.
    known.catalogue.changed(PODS, &pod("a", 20));
    known.catalogue.gone(PODS, &pod("a", 22));
    assert!(known.events().is_empty());
    known.catalogue.changed(PODS, &pod("a", 31));
    assert_eq!(known.events(), ["apply a31"]);
}

#[test]
fn what_the_watch_has_told_meanwhile_is_not_undone_by_what_was_read_beside_it() {
    let mut known = Known::started();
    known.catalogue.changed(PODS, &pod("a", 20));
    known.catalogue.gone(PODS, &pod("a", 22));
    assert_eq!(known.events(), ["apply a20", "delete a"]);
    // It was asked for until version 21.
    known.catalogue.caught_up(PODS, &[(false, pod("a", 20))], 21);
    assert!(known.events().is_empty());
    known.catalogue.caught_up(PODS, &[(false, pod("c", 23))], 23);
    assert_eq!(known.events(), ["apply c23"]);
}

#[test]
fn a_list_that_was_overtaken_takes_back_nothing() {
    let mut known = Known::started();
    known.catalogue.changed(PODS, &pod("a", 12));
    known.events();
    // The list is of version 15; before it has come, another one, of version 30, has.
    known.catalogue.begin(PODS);
    known.catalogue.item(PODS, &pod("a", 12));
    known.catalogue.listed_beside(PODS, &[pod("b", 25)], 30);
    assert_eq!(known.events(), ["list b25"]);
    known.catalogue.item(PODS, &pod("c", 14));
    known.catalogue.listed(PODS, 15);
    assert_eq!(known.events(), ["list b25"]);
}

#[test]
fn what_is_read_while_a_list_is_under_way_is_told_at_once() {
    let mut known = Known::started();
    known.catalogue.begin(PODS);
    known.catalogue.item(PODS, &pod("a", 15));
    assert!(known.events().is_empty(), "a list is told when it is over");
    assert_eq!(known.read(&pod("a", 15)), Some(15));
    assert_eq!(known.events(), ["apply a15"]);
}

#[test]
fn nobody_reports_on_what_is_gone() {
    let mut known = Known::started();
    known.catalogue.changed(POLICIES, &policy("p", 21, json!(-1)));
    assert_eq!(
        known.catalogue.reports().last().map(|report| report.problems.len()),
        Some(1)
    );
    known.catalogue.gone(POLICIES, &policy("p", 22, json!(-1)));
    assert_eq!(
        known.catalogue.reports().last().map(|report| report.problems.len()),
        Some(0)
    );
}

#[test]
fn a_store_that_was_put_back_to_an_earlier_state_is_believed() {
    let mut known = Known::started();
    known.catalogue.changed(PODS, &pod("a", 100));
    known.list(PODS, &[pod("a", 100), pod("b", 90)], 110);
    known.events();
    known.list(PODS, &[], 40);
    assert_eq!(known.events(), ["list"]);
    known.catalogue.changed(PODS, &pod("a", 41));
    assert_eq!(known.events(), ["apply a41"]);
}

#[test]
fn nothing_is_told_before_all_is_known() {
    let mut known = Known::unlisted(tempfile::tempdir().expect("a directory"));
    known.list(PODS, &[pod("a", 5)], 10);
    known.catalogue.changed(PODS, &pod("b", 11));
    assert!(known.events().is_empty());
    known.list(POLICIES, &[policy("p", 6, json!(80))], 10);
    known.catalogue.start(true);
    assert_eq!(known.events(), ["reset a5 b11 p"]);
}

#[test]
fn a_version_that_is_not_understood_keeps_the_last_valid_one_also_across_a_restart() {
    let mut known = Known::started();
    known.catalogue.changed(POLICIES, &policy("p", 20, json!(80)));
    assert_eq!(known.events(), ["apply p"]);
    known.catalogue.changed(POLICIES, &policy("p", 21, json!(-1)));
    assert_eq!(known.events(), ["problems 1"]);
    let reports = known.catalogue.reports();
    let report = reports.last().expect("a report");
    assert_eq!(
        (&*report.name, report.uid.as_str(), report.problems.len()),
        ("p", "u", 1)
    );
    assert!(report.problems[0].remedy.contains("last valid version"), "{report:?}");

    let home = known.home;
    drop(known.catalogue);
    let mut known = Known::unlisted(home);
    known.list(PODS, &[], 30);
    known.list(POLICIES, &[policy("p", 21, json!(-1))], 30);
    known.catalogue.start(true);
    let Some(SourceEvent::Reset(objects)) = known.catalogue.events().into_iter().next() else {
        panic!("no reset");
    };
    let Some(Object::Policy(kept)) = objects.first() else {
        panic!("{objects:?}");
    };
    let mut parser = Parser::of_validated();
    let valid = parser.parse(
        &policy("p", 20, json!(80)),
        Some(("networking.k8s.io/v1", "NetworkPolicy")),
    );
    assert_eq!(valid.outcome, crate::api::Outcome::Valid(Object::Policy(kept.clone())));
    // Once it is understood again, nothing is wrong any more.
    known.catalogue.changed(POLICIES, &policy("p", 40, json!(81)));
    assert_eq!(known.events(), ["problems 0", "apply p"]);
}

#[test]
fn kinds_that_cannot_be_read_are_those_of_the_last_agent() {
    let mut known = Known::started();
    known.catalogue.changed(POLICIES, &policy("p", 20, json!(80)));
    known.events();
    let home = known.home;
    drop(known.catalogue);

    let mut known = Known::unlisted(home);
    known.list(PODS, &[pod("a", 5)], 30);
    known.catalogue.start(true);
    assert_eq!(known.events(), ["reset a5 p"]);
    // At last they can be read, and the policy is not there any more.
    known.list(POLICIES, &[], 50);
    assert_eq!(known.events(), ["list"]);
}

#[test]
fn a_kind_that_is_not_served_any_more_takes_its_objects_along() {
    let mut known = Known::started();
    known.catalogue.changed(POLICIES, &policy("p", 20, json!(80)));
    known.events();
    known.catalogue.remove(POLICIES);
    assert_eq!(known.events(), ["list"]);
}
