//! What comes late, out of order, or from several sides at once.

use serde_json::json;
use tempfile::TempDir;

use super::*;

const PODS: &str = "pods";
const POLICIES: &str = "networkpolicies.networking.k8s.io";
const CALICO: &str = "networkpolicies.crd.projectcalico.org";
const SERVED: &str = "networkpolicies.projectcalico.org";

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
        catalogue.add(CALICO, api(CALICO));
        Self { catalogue, home }
    }

    fn started() -> Self {
        let mut known = Self::unlisted(tempfile::tempdir().expect("a directory"));
        known.list(PODS, &[], 10);
        known.list(POLICIES, &[], 10);
        known.list(CALICO, &[], 10);
        known.catalogue.start(true);
        assert_eq!(known.events(), ["reset"]);
        known
    }

    /// As often as is asked for.
    fn list(&mut self, slot: &'static str, items: &[Value], version: u64) -> usize {
        for times in 1.. {
            self.catalogue.begin(slot);
            for item in items {
                self.catalogue.item(slot, item);
            }
            if self.catalogue.listed(slot, version) {
                return times;
            }
            assert!(times < 2, "listed without end");
        }
        unreachable!("there is no last number")
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
    assert_eq!(known.list(PODS, &[], 40), 2);
    assert_eq!(known.events(), ["list"]);
    known.catalogue.changed(PODS, &pod("a", 41));
    assert_eq!(known.events(), ["apply a41"]);
}

#[test]
fn a_store_that_was_put_back_is_believed_also_where_only_the_watch_had_come_further() {
    let mut known = Known::started();
    known.list(PODS, &[pod("a", 20)], 30);
    known.catalogue.changed(PODS, &pod("a", 100));
    known.events();
    // Later than the last list, earlier than the last event.
    assert_eq!(known.list(PODS, &[pod("a", 20)], 60), 2);
    assert_eq!(known.events(), ["list a20"]);
    known.catalogue.changed(PODS, &pod("a", 61));
    assert_eq!(known.events(), ["apply a61"]);
}

#[test]
fn a_store_that_was_put_back_is_believed_also_where_its_versions_go_on_from_the_last_ones() {
    let mut known = Known::started();
    known.list(PODS, &[pod("a", 20), pod("b", 21)], 30);
    known.catalogue.changed(PODS, &pod("a", 100));
    known.events();
    assert_eq!(known.list(PODS, &[pod("a", 20), pod("b", 21)], 1_000_000), 2);
    assert_eq!(known.events(), ["list a20 b21"]);

    known.catalogue.changed(PODS, &pod("b", 1_000_001));
    known.events();
    known
        .catalogue
        .listed_beside(PODS, &[pod("a", 20), pod("b", 21)], 2_000_000);
    assert_eq!(known.events(), ["list a20 b21"]);
}

#[test]
fn a_list_that_begins_with_an_earlier_state_and_goes_on_contradicts_nothing() {
    let mut known = Known::started();
    known.catalogue.changed(PODS, &pod("a", 40));
    known.events();
    assert_eq!(known.list(PODS, &[pod("a", 20), pod("b", 25), pod("a", 40)], 50), 1);
    assert_eq!(known.events(), ["list a40 b25"]);
    // What has been read by itself may be newer than a list.
    known.read(&pod("a", 80));
    known.events();
    assert_eq!(known.list(PODS, &[pod("a", 40), pod("b", 25)], 70), 1);
    assert_eq!(known.events(), ["list a80 b25"]);
}

#[test]
fn a_pod_that_was_deleted_before_a_list_does_not_survive_it_because_it_was_read() {
    let mut known = Known::started();
    known.catalogue.begin(PODS);
    // Read at version 20, deleted at 30, before the list of 50.
    assert_eq!(known.read(&pod("a", 20)), Some(20));
    known.events();
    known.catalogue.listed(PODS, 50);
    assert_eq!(known.events(), ["list"]);
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
    known.catalogue.remove(POLICIES, false);
    assert_eq!(known.events(), ["list"]);
}

// === Names that several claim ===

/// A policy of Calico's storage: its name in the API, and the one that an annotation gives it, if one does.
fn calico(name: &str, version: u64, created: u32, annotation: Option<&str>) -> Value {
    let mut value = json!({
        "metadata": {
            "namespace": "ns", "name": name, "resourceVersion": version.to_string(), "uid": format!("uid of {name}"),
            "creationTimestamp": format!("2026-01-{created:02}T00:00:00Z"),
        },
        "spec": {"selector": format!("of == '{name}'"), "types": ["Ingress"], "ingress": [{"action": "Deny"}]},
    });
    if let Some(known_as) = annotation {
        let kept = json!({"name": known_as, "uid": "other"}).to_string();
        value["metadata"]["annotations"] = json!({"projectcalico.org/metadata": kept});
    }
    value
}

impl Known {
    /// Applies what follows to an index. By name, the policies in force, as the API has them; and the problems told now.
    fn in_force(&mut self, index: &mut crate::index::Index) -> (Vec<String>, Vec<String>) {
        let mut told = Vec::new();
        for event in self.catalogue.events() {
            if let SourceEvent::Problems { problems, .. } = &event {
                told.extend(problems.iter().map(|problem| {
                    assert_eq!(problem.severity, Severity::Error);
                    format!("{}: {}", problem.object.as_deref().unwrap_or_default(), problem.message)
                }));
            }
            index.apply(event);
        }
        let mut policies: Vec<String> = index.policies().map(|policy| said(policy)).collect();
        policies.sort();
        (policies, told)
    }
}

/// The name that a policy of [`calico`] is known by, and that of the object that says what it is.
fn said(policy: &crate::policy::model::Policy) -> String {
    let text = format!("{:?}", policy.subject);
    let of = ["security.deny", "default.foo", "evil", "foo", "old", "new", "a", "b"]
        .into_iter()
        .find(|name| text.contains(&format!("\"{name}\"")));
    format!("{}={}", policy.key.name, of.expect("one of the names"))
}

#[test]
fn nobody_takes_a_policy_out_of_force_by_giving_another_its_name() {
    for listed in [false, true] {
        let mut known = Known::started();
        let mut index = crate::index::Index::new("node");
        let admins = calico("security.deny", 20, 5, None);
        // Made before it, and told after it.
        let evil = calico("evil", 30, 1, Some("security.deny"));
        if listed {
            known.list(CALICO, &[evil.clone(), admins.clone()], 40);
        } else {
            known.catalogue.changed(CALICO, &admins);
            known.catalogue.changed(CALICO, &evil);
        }
        let (policies, problems) = known.in_force(&mut index);
        assert_eq!(policies, ["security.deny=security.deny"]);
        assert_eq!(
            problems,
            [
                "Calico NetworkPolicy ns/evil: is known by the name security.deny, which is that of Calico NetworkPolicy \
              ns/security.deny"
            ]
        );
        let report = known.catalogue.reports().pop().expect("a report");
        assert_eq!(
            (&*report.name, &*report.uid, report.problems.len()),
            ("evil", "uid of evil", 1)
        );
        // Whatever becomes of it later.
        known
            .catalogue
            .changed(CALICO, &calico("evil", 50, 1, Some("security.deny")));
        known
            .catalogue
            .gone(CALICO, &calico("evil", 51, 1, Some("security.deny")));
        assert_eq!(known.in_force(&mut index).0, ["security.deny=security.deny"]);
        known
            .catalogue
            .changed(CALICO, &calico("evil", 52, 1, Some("security.deny")));
        known.in_force(&mut index);
        // Once the name is free it is its own.
        known.catalogue.gone(CALICO, &calico("security.deny", 53, 5, None));
        assert_eq!(
            known.in_force(&mut index),
            (vec!["security.deny=evil".to_owned()], vec![])
        );
        known.catalogue.changed(CALICO, &calico("security.deny", 54, 6, None));
        assert_eq!(known.in_force(&mut index).0, ["security.deny=security.deny"]);
    }
}

#[test]
fn of_two_names_that_storage_makes_one_the_same_counts_whatever_came_first() {
    let own = calico("foo", 20, 9, None);
    let prefixed = calico("default.foo", 21, 1, None);
    for order in [[&own, &prefixed], [&prefixed, &own]] {
        let mut known = Known::started();
        let mut index = crate::index::Index::new("node");
        known.list(CALICO, &[order[0].clone()], 30);
        known.list(CALICO, &[order[0].clone(), order[1].clone()], 40);
        let (policies, problems) = known.in_force(&mut index);
        assert_eq!((policies, problems.len()), (vec!["foo=foo".to_owned()], 1));
    }
    // Of two that say so themselves, the older one.
    let (old, new) = (calico("old", 22, 1, Some("c")), calico("new", 21, 2, Some("c")));
    for order in [[&old, &new], [&new, &old]] {
        let mut known = Known::started();
        let mut index = crate::index::Index::new("node");
        known.catalogue.changed(CALICO, order[0]);
        known.catalogue.changed(CALICO, order[1]);
        assert_eq!(known.in_force(&mut index).0, ["c=old"]);
    }
}

#[test]
fn a_policy_that_changes_its_name_gives_back_the_one_that_was_another_s() {
    let mut index = crate::index::Index::new("node");
    let mut known = Known::started();
    known.catalogue.changed(CALICO, &calico("a", 20, 1, None));
    known.catalogue.changed(CALICO, &calico("b", 21, 2, Some("a")));
    assert_eq!(known.in_force(&mut index).0, ["a=a"]);
    known.catalogue.changed(CALICO, &calico("a", 22, 1, Some("old")));
    assert_eq!(
        known.in_force(&mut index),
        (vec!["a=b".to_owned(), "old=a".to_owned()], vec![])
    );
    known.catalogue.changed(CALICO, &calico("b", 23, 2, None));
    assert_eq!(known.in_force(&mut index).0, ["b=b", "old=a"]);
}

#[test]
fn names_are_whose_they_are_also_after_a_restart_without_the_api() {
    let mut known = Known::started();
    let mut index = crate::index::Index::new("node");
    known.list(
        CALICO,
        &[
            calico("evil", 20, 1, Some("security.deny")),
            calico("security.deny", 21, 5, None),
        ],
        30,
    );
    known.in_force(&mut index);
    // Its name changes, which the store's line for it must follow.
    known.catalogue.changed(CALICO, &calico("a", 31, 5, None));
    known.catalogue.changed(CALICO, &calico("a", 32, 5, Some("b")));
    known.in_force(&mut index);
    let home = known.home;
    drop(known.catalogue);

    let mut known = Known::unlisted(home);
    known.list(PODS, &[], 30);
    known.list(POLICIES, &[], 30);
    known.catalogue.start(true);
    let mut index = crate::index::Index::new("node");
    assert_eq!(known.in_force(&mut index).0, ["b=a", "security.deny=security.deny"]);
    // All of them are known still.
    let home = known.home;
    drop(known.catalogue);
    let mut known = Known::unlisted(home);
    known.list(CALICO, &[calico("evil", 40, 1, Some("security.deny"))], 50);
    known.list(PODS, &[], 50);
    known.list(POLICIES, &[], 50);
    known.catalogue.start(true);
    let mut index = crate::index::Index::new("node");
    assert_eq!(known.in_force(&mut index).0, ["security.deny=evil"]);
}

#[test]
fn a_list_that_is_not_over_takes_no_policy_out_of_force() {
    let mut known = Known::started();
    known.catalogue.changed(CALICO, &calico("a", 20, 1, None));
    assert_eq!(known.events(), ["apply a"]);
    known.catalogue.begin(CALICO);
    known.catalogue.item(CALICO, &calico("a", 30, 1, Some("b")));
    assert!(known.events().is_empty(), "the API server goes away here");
    known.catalogue.listed(CALICO, 40);
    assert_eq!(known.events(), ["list b"]);
}

// === What follows one another ===

#[test]
fn what_another_group_is_to_tell_stays_until_it_has() {
    let mut known = Known::started();
    known.catalogue.changed(CALICO, &calico("a", 20, 1, None));
    known.catalogue.changed(CALICO, &calico("b", 21, 1, None));
    known.events();
    known.catalogue.remove(CALICO, true);
    known.catalogue.add(SERVED, api(SERVED));
    assert!(known.events().is_empty());
    assert!(known.catalogue.is_adopted(api(SERVED).object));

    // Also across a restart, if the other one has not been listed until then.
    let home = known.home;
    drop(known.catalogue);
    let mut known = Known::unlisted(home);
    known.catalogue.remove(CALICO, true);
    known.catalogue.add(SERVED, api(SERVED));
    known.list(PODS, &[], 30);
    known.list(POLICIES, &[], 30);
    known.catalogue.start(true);
    assert_eq!(known.events(), ["reset a b"]);
    assert!(known.catalogue.is_adopted(api(SERVED).object));
    known.list(SERVED, &[calico("a", 40, 1, None)], 50);
    assert_eq!(known.events(), ["list a"]);
    assert!(!known.catalogue.is_adopted(api(SERVED).object));
}

#[test]
fn what_the_other_group_does_not_have_is_not_kept_for_the_next_agent() {
    let mut known = Known::started();
    known.catalogue.changed(CALICO, &calico("a", 20, 1, None));
    known.catalogue.changed(CALICO, &calico("b", 21, 1, None));
    known.catalogue.remove(CALICO, true);
    known.catalogue.add(SERVED, api(SERVED));
    known.list(SERVED, &[calico("a", 40, 1, None)], 50);
    known.events();
    let home = known.home;
    drop(known.catalogue);
    let mut known = Known::unlisted(home);
    known.list(PODS, &[], 60);
    known.list(POLICIES, &[], 60);
    known.catalogue.start(true);
    assert_eq!(known.events(), ["reset a"]);
}

#[test]
fn a_list_of_one_kind_leaves_what_the_last_agent_knew_of_one_that_is_not_watched_yet() {
    let mut known = Known::started();
    known.catalogue.changed(CALICO, &calico("a", 20, 1, None));
    known.events();
    let home = known.home;
    drop(known.catalogue);

    // It is not known whether Calico's kinds are served.
    let mut known = Known::unlisted(home);
    known.catalogue.remove(CALICO, false);
    known.list(PODS, &[], 30);
    known.list(POLICIES, &[], 30);
    known.catalogue.start(false);
    assert_eq!(known.events(), ["reset a"]);
    known.list(PODS, &[], 40);
    known.events();
    // They are; and the policy cannot be understood any more.
    known.catalogue.add(CALICO, api(CALICO));
    let mut broken = calico("a", 50, 1, None);
    broken["spec"]["selector"] = json!("no selector");
    known.list(CALICO, &[broken], 60);
    assert_eq!(known.events(), ["problems 1", "list a"]);
}

#[test]
fn unknown_fields_of_what_never_was_valid_are_forgotten_with_it() {
    let mut known = Known::started();
    let mut broken = calico("a", 20, 1, None);
    broken["spec"] = json!({"selector": "no selector", "form": 1});
    known.catalogue.changed(CALICO, &broken);
    let unknown = |known: &mut Known| {
        known.catalogue.events().into_iter().find_map(|event| match event {
            SourceEvent::Problems { origin, problems } if &*origin == "unknown fields" => Some(problems.len()),
            _ => None,
        })
    };
    assert_eq!(unknown(&mut known), Some(1));
    broken["metadata"]["resourceVersion"] = json!("21");
    known.catalogue.gone(CALICO, &broken);
    assert_eq!(unknown(&mut known), Some(0));
}

#[test]
fn service_accounts_that_cannot_be_read_are_those_of_the_last_agent() {
    const ACCOUNTS: &str = "serviceaccounts";
    let account = json!({"metadata": {"namespace": "ns", "name": "a", "resourceVersion": "20", "labels": {"l": "1"}}});
    let mut known = Known::started();
    known.catalogue.add(ACCOUNTS, api(ACCOUNTS));
    known.list(ACCOUNTS, &[account], 30);
    known.events();
    let home = known.home;
    drop(known.catalogue);

    let mut known = Known::unlisted(home);
    known.catalogue.add(ACCOUNTS, api(ACCOUNTS));
    for slot in [PODS, POLICIES, CALICO] {
        known.list(slot, &[], 40);
    }
    known.catalogue.start(true);
    let Some(SourceEvent::Reset(objects)) = known.catalogue.events().into_iter().next() else {
        panic!("no reset");
    };
    let [Object::ServiceAccount(account)] = &*objects else {
        panic!("{objects:?}");
    };
    assert_eq!(
        (&*account.name, account.labels.get("l").map(String::as_str)),
        ("a", Some("1"))
    );
}
