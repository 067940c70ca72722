//! What stays in force when text or objects are invalid, also across restarts.

use super::*;

#[test]
fn text_that_does_not_parse_keeps_its_last_objects() {
    let text = format!("{}---\n{}", policy("p", 1), policy("q", 1));
    let mut watched = Watched::with(&[("p.yaml", &text)]);
    watched.write("p.yaml", &text[..text.len() - 4]);
    assert_eq!(watched.until(|w| !w.errors().is_empty()), Vec::<String>::new());
    let problem = watched.errors()[0];
    assert_eq!(problem.file.as_deref(), Some(watched.path("p.yaml").as_path()));
    assert!(problem.line.is_some_and(|line| line >= 5), "{problem}");
    assert!(problem.remedy.contains("last objects stay in force"));
    watched.write("p.yaml", &text);
    assert_eq!(watched.until(|w| w.errors().is_empty()), Vec::<String>::new());
    // Of a file never seen before, the documents that parse count.
    watched.write("new.yaml", &format!("{}---\nkind: [", policy("r", 1)));
    watched.until(|w| w.has("NetworkPolicy ns/r") && !w.errors().is_empty());
}

#[test]
fn invalid_objects() {
    let mut watched = Watched::with(&[("p.yaml", &partly_broken("p"))]);
    // New and broken in part: it applies, and the broken rule matches nothing.
    assert_eq!(watched.rules(P), Some(2));
    let problem = watched.errors()[0].clone();
    assert_eq!(problem.object.as_deref(), Some(P));
    assert_eq!(problem.field.as_deref(), Some("spec.ingress[0].ports[0].port"));
    assert!(problem.remedy.contains("matches nothing"), "{problem}");
    // Valid, then broken: the last valid version stays.
    watched.write("p.yaml", &policy("p", 4));
    watched.until(|w| w.rules(P) == Some(4) && w.errors().is_empty());
    for broken in [partly_broken("p"), wholly_broken("p")] {
        watched.write("p.yaml", &broken);
        assert_eq!(watched.refresh(), Vec::<String>::new());
        assert!(
            watched.errors()[0].remedy.contains("last valid version"),
            "{}",
            watched.errors()[0]
        );
    }
    // Its name lost, it may be any of those that were there.
    watched.write("p.yaml", &policy("p", 4).replace("name: p", "nme: p"));
    assert_eq!(watched.refresh(), Vec::<String>::new());
    // Another object in its place.
    watched.write("p.yaml", &policy("q", 1));
    assert_eq!(
        watched.refresh(),
        ["apply NetworkPolicy ns/q", "delete NetworkPolicy ns/p"]
    );
    watched.write("p.yaml", &wholly_broken("r"));
    assert_eq!(watched.refresh(), ["delete NetworkPolicy ns/q"]);
    assert!(watched.errors()[0].remedy.contains("nothing of it is enforced"));
}

#[test]
fn an_object_that_moves_and_breaks_at_once_keeps_its_last_valid_version() {
    let mut watched = Watched::with(&[("a.yaml", &policy("p", 4))]);
    watched.write("b.yaml", &partly_broken("p"));
    watched.until(|w| !w.errors().is_empty());
    fs::remove_file(watched.path("a.yaml")).unwrap();
    watched.refresh();
    assert_eq!(watched.rules(P), Some(4));
    let watched = watched.restart();
    assert_eq!(watched.rules(P), Some(4));
}

#[test]
fn a_restart_forgets_no_valid_version() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: ns}\nstatus: {podIP: 10.0.0.1}\n";
    let mut watched = Watched::with(&[
        ("p.yaml", &policy("p", 4)),
        ("q.yaml", &format!("{}---\n{}", policy("q", 1), policy("q2", 1))),
        ("pod.yaml", pod),
        ("gone.yaml", &policy("gone", 1)),
    ]);
    watched.write("p.yaml", &policy("p", 5));
    watched.until(|w| w.rules(P) == Some(5));
    watched.write("p.yaml", &wholly_broken("p"));
    watched.until(|w| !w.errors().is_empty());
    let before = watched.objects.clone();
    // What breaks while no agent runs.
    watched.source = None;
    watched.write("q.yaml", "kind: [");
    watched.write("pod.yaml", &pod.replace("10.0.0.1", "ten"));
    let mut watched = watched.restart();
    assert_eq!(watched.objects, before);
    assert_eq!(watched.errors().len(), 3, "{:?}", watched.errors());
    // And once more, with nothing but kept versions to keep.
    watched.source = None;
    fs::remove_file(watched.path("gone.yaml")).unwrap();
    let mut watched = watched.restart();
    assert_eq!(
        watched.names(),
        [
            "NetworkPolicy ns/p",
            "NetworkPolicy ns/q",
            "NetworkPolicy ns/q2",
            "Pod ns/web"
        ]
    );
    watched.write("q.yaml", &policy("q", 2));
    watched.until(|w| w.rules("NetworkPolicy ns/q") == Some(2) && !w.has("NetworkPolicy ns/q2"));
    // A log cut short by a crash.
    let log = watched.home.path().join("run/last-valid.log");
    watched.source = None;
    let text = fs::read(&log).unwrap();
    fs::write(&log, &text[..text.len() - 9]).unwrap();
    OpenOptions::new()
        .append(true)
        .open(&log)
        .unwrap()
        .write_all(b"\n{\"nonsense\": 1}\n\xff\n")
        .unwrap();
    let watched = watched.restart();
    assert!(watched.has("NetworkPolicy ns/q"));
}

#[test]
fn kept_versions_do_not_pile_up() {
    let mut watched = Watched::with(&[("p.yaml", &policy("p", 1)), ("q.yaml", &policy("q", 1))]);
    let log = watched.home.path().join("run/last-valid.log");
    let mut told = 0;
    for n in 0..700 {
        watched.write("p.yaml", &policy("p", n % 2));
        told += watched.refresh().len();
    }
    assert!(told >= 699, "{told}");
    watched.write("p.yaml", &policy("p", 7));
    watched.write("q.yaml", &wholly_broken("q"));
    watched.refresh();
    watched.source = None;
    let lines = fs::read_to_string(&log).unwrap().lines().count();
    assert!(lines < 600, "{lines}");
    watched.write("p.yaml", &wholly_broken("p"));
    let watched = watched.restart();
    assert_eq!(
        (watched.rules(P), watched.rules("NetworkPolicy ns/q")),
        (Some(7), Some(1))
    );
}

#[test]
fn check_says_what_is_wrong_in_files_and_directories() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(home.path().join(name), text).unwrap();
    write("a.yaml", &partly_broken("p"));
    write("b.yaml", &policy("p", 1));
    write("c.yml", "kind: [");
    write("good.yaml", &policy("q", 1));
    let found = crate::api::check(&[
        home.path().to_path_buf(),
        Path::new("/does/not/exist.yaml").to_path_buf(),
    ]);
    let text: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(text.len(), 4, "{text:#?}");
    assert!(
        text[0].contains("a.yaml:1: NetworkPolicy ns/p: spec.ingress[0].ports[0].port: must be a port"),
        "{}",
        text[0]
    );
    assert!(
        text[1].starts_with("warning: ") && text[1].contains("is also in"),
        "{}",
        text[1]
    );
    assert!(text[2].contains("c.yml:1: cannot be parsed"), "{}", text[2]);
    assert!(text[3].contains("exist.yaml: cannot be read"), "{}", text[3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever is written in whatever order: in force is the last valid version of each, or for one that never was
    /// valid the last that could be enforced in part, also after a restart.
    #[test]
    fn the_last_valid_version_is_in_force(steps in prop::collection::vec((0..3usize, 0..6u8, any::<bool>()), 1..12)) {
        let mut watched = Watched::empty();
        let mut expected: BTreeMap<String, (usize, bool)> = BTreeMap::new();
        for (n, (file, kind, restart)) in steps.into_iter().enumerate() {
            let (name, rules) = (format!("o{file}"), n + 3);
            let key = format!("NetworkPolicy ns/{name}");
            let path = format!("{name}.yaml");
            match kind {
                0 | 1 => {
                    watched.write(&path, &policy(&name, rules));
                    expected.insert(key, (rules, true));
                }
                2 => {
                    watched.write(&path, &partly_broken(&name));
                    if expected.get(&key).is_none_or(|(_, valid)| !valid) {
                        expected.insert(key, (2, false));
                    }
                }
                3 => watched.write(&path, &wholly_broken(&name)),
                4 => watched.write(&path, "metadata: {"),
                _ => {
                    let _ = fs::remove_file(watched.path(&path));
                    expected.remove(&key);
                }
            }
            if restart {
                watched = watched.restart();
            } else {
                watched.refresh();
            }
            let found: BTreeMap<String, usize> =
                watched.objects.keys().map(|key| (key.clone(), watched.rules(key).unwrap())).collect();
            let wanted: BTreeMap<String, usize> =
                expected.iter().map(|(key, (rules, _))| (key.clone(), *rules)).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
