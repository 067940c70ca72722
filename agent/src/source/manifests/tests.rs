//! Real files, the real watcher.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError};

use super::{Config, ManifestSource, SETTLE};
use crate::{
    api::{Object, Problem, Severity},
    source::SourceEvent,
};

/// Longer than anything here takes, on the slowest machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// A source and the world as its events tell it.
struct Watched {
    source: Option<ManifestSource>,
    events: UnboundedReceiver<SourceEvent>,
    objects: BTreeMap<String, Object>,
    problems: BTreeMap<String, Vec<Problem>>,
    /// Every event since the last look, as text.
    history: Vec<String>,
    home: TempDir,
}

impl Watched {
    fn empty() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("manifests")).unwrap();
        Self::start(home)
    }

    fn with(files: &[(&str, &str)]) -> Self {
        let home = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = home.path().join("manifests").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self::start(home)
    }

    fn start(home: TempDir) -> Self {
        let config = Config {
            directory: home.path().join("manifests"),
            run_dir: home.path().join("run"),
        };
        let (source, events) = ManifestSource::start(&config).unwrap();
        let mut watched = Self {
            source: Some(source),
            events,
            objects: BTreeMap::new(),
            problems: BTreeMap::new(),
            history: Vec::new(),
            home,
        };
        let first = watched.next();
        assert!(matches!(first, SourceEvent::Reset(_)), "{first:?}");
        watched.refresh();
        watched
    }

    /// Stops the source and starts another one on the same directories.
    fn restart(mut self) -> Self {
        self.source = None;
        Self::start(self.home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join("manifests").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn next(&mut self) -> SourceEvent {
        let until = Instant::now() + DEADLINE;
        loop {
            match self.events.try_recv() {
                Ok(event) => {
                    self.take(&event);
                    return event;
                }
                Err(TryRecvError::Empty) => assert!(Instant::now() < until, "nothing came: {:?}", self.history),
                Err(TryRecvError::Disconnected) => panic!("the source ended"),
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn take(&mut self, event: &SourceEvent) {
        match event {
            SourceEvent::Reset(objects) => {
                self.objects = objects
                    .iter()
                    .map(|object| (object.key().to_string(), object.clone()))
                    .collect();
                self.history.push("reset".into());
            }
            SourceEvent::Apply(object) => {
                self.history.push(format!("apply {}", object.key()));
                self.objects.insert(object.key().to_string(), object.clone());
            }
            SourceEvent::Delete(key) => {
                self.history.push(format!("delete {key}"));
                assert!(self.objects.remove(&key.to_string()).is_some());
            }
            SourceEvent::Problems { origin, problems } => {
                self.problems.insert(origin.to_string(), problems.clone());
            }
            SourceEvent::Refreshed(_) => {}
        }
    }

    /// Takes in all that is in the directory now. Returns what happened since the last time.
    fn refresh(&mut self) -> Vec<String> {
        let token = self.source.as_ref().unwrap().refresh();
        while self.next() != SourceEvent::Refreshed(token) {}
        std::mem::take(&mut self.history)
    }

    /// Waits for the watcher, without asking for a refresh.
    fn until(&mut self, what: impl Fn(&Self) -> bool) -> Vec<String> {
        while !what(self) {
            self.next();
        }
        std::mem::take(&mut self.history)
    }

    fn names(&self) -> Vec<&str> {
        self.objects.keys().map(String::as_str).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.objects.contains_key(name)
    }

    /// How many rules the policy has for ingress.
    fn rules(&self, name: &str) -> Option<usize> {
        match self.objects.get(name) {
            Some(Object::Policy(policy)) => policy.ingress.as_ref().map(Vec::len),
            _ => None,
        }
    }

    fn errors(&self) -> Vec<&Problem> {
        self.problems
            .values()
            .flatten()
            .filter(|problem| problem.severity == Severity::Error)
            .collect()
    }

    fn warnings(&self) -> Vec<&Problem> {
        self.problems
            .values()
            .flatten()
            .filter(|problem| problem.severity == Severity::Warning)
            .collect()
    }
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n")
}

/// A policy with as many rules as said.
fn policy(name: &str, rules: usize) -> String {
    let rules = vec!["{}"; rules].join(", ");
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: ns}}\n\
         spec: {{podSelector: {{}}, policyTypes: [Ingress], ingress: [{rules}]}}\n"
    )
}

fn partly_broken(name: &str) -> String {
    policy(name, 2).replacen("{}, {}]", "{ports: [{port: 99999}]}, {}]", 1)
}

fn wholly_broken(name: &str) -> String {
    policy(name, 1).replace("podSelector: {}", "podSelector: 7")
}

const P: &str = "NetworkPolicy ns/p";

#[test]
fn everything_below_the_directory_is_read_in_order() {
    let watched = Watched::with(&[
        ("b.yaml", &namespace("b")),
        ("sub/deep/c.yml", &format!("{}---\n{}", namespace("c"), namespace("d"))),
        (
            "a.json",
            r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}]}"#,
        ),
        ("readme.txt", "no manifest"),
        (".hidden.yaml", &namespace("hidden")),
        (".git/x.yaml", &namespace("hidden")),
    ]);
    assert_eq!(
        watched.names(),
        ["Namespace a", "Namespace b", "Namespace c", "Namespace d"]
    );
    assert!(watched.errors().is_empty() && watched.warnings().is_empty());
}

#[test]
fn missing_directories_are_made_and_a_file_is_none() {
    let home = tempfile::tempdir().unwrap();
    let watched = Watched::start(home);
    assert!(watched.path("").is_dir() && watched.objects.is_empty());
    let config = Config {
        directory: watched.home.path().join("run").join("last-valid.log"),
        run_dir: watched.home.path().join("run"),
    };
    let error = ManifestSource::start(&config).unwrap_err().to_string();
    assert!(error.contains("is no directory"), "{error}");
}

#[test]
fn files_that_come_change_and_go() {
    let mut watched = Watched::empty();
    watched.write("p.yaml", &policy("p", 0));
    assert_eq!(watched.until(|w| w.has(P)), ["apply NetworkPolicy ns/p"]);
    // In place.
    watched.write("p.yaml", &policy("p", 1));
    watched.until(|w| w.rules(P) == Some(1));
    // By rename.
    fs::write(watched.path(".p.yaml.swp"), policy("p", 2)).unwrap();
    fs::rename(watched.path(".p.yaml.swp"), watched.path("p.yaml")).unwrap();
    watched.until(|w| w.rules(P) == Some(2));
    // Appended to.
    let mut file = OpenOptions::new().append(true).open(watched.path("p.yaml")).unwrap();
    writeln!(file, "---\n{}", namespace("x")).unwrap();
    drop(file);
    assert_eq!(watched.until(|w| w.has("Namespace x")), ["apply Namespace x"]);
    fs::remove_file(watched.path("p.yaml")).unwrap();
    watched.until(|w| w.objects.is_empty());
    // Hard links and symlinks to files elsewhere.
    fs::write(watched.home.path().join("else"), namespace("y")).unwrap();
    fs::hard_link(watched.home.path().join("else"), watched.path("y.yaml")).unwrap();
    watched.until(|w| w.has("Namespace y"));
    fs::write(watched.home.path().join("other"), namespace("z")).unwrap();
    symlink(watched.home.path().join("other"), watched.path("z.yaml")).unwrap();
    watched.until(|w| w.has("Namespace z"));
}

#[test]
fn what_does_not_change_is_not_told() {
    let mut watched = Watched::with(&[("p.yaml", &policy("p", 1))]);
    watched.write("p.yaml", &policy("p", 1));
    watched.write("p.yaml", &format!("# a comment\n{}", policy("p", 1)));
    assert_eq!(watched.refresh(), Vec::<String>::new());
    let both = format!("{}---\n{}", policy("p", 1), policy("q", 1));
    watched.write("p.yaml", &both);
    assert_eq!(watched.refresh(), ["apply NetworkPolicy ns/q"]);
}

#[test]
fn a_file_being_written_counts_when_it_is_closed() {
    let mut watched = Watched::with(&[("p.yaml", &policy("p", 3))]);
    let text = policy("p", 5);
    let mut file = File::create(watched.path("p.yaml")).unwrap();
    // Each of these cuts would be another policy, or none.
    for part in text.as_bytes().chunks(40) {
        file.write_all(part).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
    drop(file);
    assert_eq!(watched.until(|w| w.rules(P) == Some(5)), ["apply NetworkPolicy ns/p"]);
    assert!(watched.errors().is_empty());
}

#[test]
fn an_emptied_file_opens_no_window() {
    let mut watched = Watched::with(&[("p.yaml", &policy("p", 1))]);
    File::create(watched.path("p.yaml")).unwrap();
    std::thread::sleep(SETTLE / 4);
    watched.write("p.yaml", &policy("p", 2));
    assert_eq!(watched.until(|w| w.rules(P) == Some(2)), ["apply NetworkPolicy ns/p"]);
    // One that stays empty is.
    let since = Instant::now();
    File::create(watched.path("p.yaml")).unwrap();
    assert_eq!(watched.until(|w| !w.has(P)), ["delete NetworkPolicy ns/p"]);
    assert!(since.elapsed() >= SETTLE / 2);
    // A refresh waits for it too.
    watched.write("p.yaml", &policy("p", 1));
    watched.until(|w| w.has(P));
    File::create(watched.path("p.yaml")).unwrap();
    assert_eq!(watched.refresh(), ["delete NetworkPolicy ns/p"]);
}

#[test]
fn renames_and_backups_open_no_window() {
    let mut watched = Watched::with(&[("p.yaml", &policy("p", 1))]);
    fs::rename(watched.path("p.yaml"), watched.path("q.yaml")).unwrap();
    assert_eq!(watched.refresh(), Vec::<String>::new());
    // As an editor does that keeps a backup.
    fs::rename(watched.path("q.yaml"), watched.path("q.yaml~")).unwrap();
    std::thread::sleep(SETTLE / 8);
    watched.write("q.yaml", &policy("p", 2));
    assert_eq!(watched.until(|w| w.rules(P) == Some(2)), ["apply NetworkPolicy ns/p"]);
    fs::remove_file(watched.path("q.yaml~")).unwrap();
    // As git does.
    fs::remove_file(watched.path("q.yaml")).unwrap();
    watched.write("q.yaml", &policy("p", 3));
    watched.until(|w| w.rules(P) == Some(3));
    // Away for good.
    fs::rename(watched.path("q.yaml"), watched.path("q.yaml.off")).unwrap();
    watched.until(|w| !w.has(P));
}

#[test]
fn directories_that_come_move_and_go() {
    let mut watched = Watched::empty();
    fs::create_dir_all(watched.path("one/two")).unwrap();
    watched.write("one/two/a.yaml", &namespace("a"));
    watched.until(|w| w.has("Namespace a"));
    watched.write("one/two/b.yaml", &namespace("b"));
    watched.until(|w| w.has("Namespace b"));
    fs::rename(watched.path("one"), watched.path("uno")).unwrap();
    assert_eq!(watched.refresh(), Vec::<String>::new());
    watched.write("uno/two/c.yaml", &namespace("c"));
    watched.until(|w| w.has("Namespace c"));
    // Moved out, it is watched no more.
    let outside = watched.home.path().join("outside");
    fs::rename(watched.path("uno"), &outside).unwrap();
    watched.until(|w| w.objects.is_empty());
    fs::write(outside.join("two/d.yaml"), namespace("d")).unwrap();
    assert_eq!(watched.refresh(), Vec::<String>::new());
    fs::rename(&outside, watched.path("uno")).unwrap();
    watched.until(|w| w.objects.len() == 4);
    fs::remove_dir_all(watched.path("uno")).unwrap();
    watched.until(|w| w.objects.is_empty());
}

#[test]
fn a_configmap_volume_is_swapped_at_once() {
    let mut watched = Watched::empty();
    let swap = |watched: &Watched, version: &str, rules: usize| {
        fs::create_dir(watched.path(version)).unwrap();
        watched.write(&format!("{version}/p.yaml"), &policy("p", rules));
        symlink(version, watched.path("..data_tmp")).unwrap();
        fs::rename(watched.path("..data_tmp"), watched.path("..data")).unwrap();
    };
    swap(&watched, "..1", 1);
    symlink("..data/p.yaml", watched.path("p.yaml")).unwrap();
    watched.until(|w| w.rules(P) == Some(1));
    swap(&watched, "..2", 2);
    fs::remove_dir_all(watched.path("..1")).unwrap();
    assert_eq!(watched.until(|w| w.rules(P) == Some(2)), ["apply NetworkPolicy ns/p"]);
    assert!(watched.warnings().is_empty(), "{:?}", watched.warnings());
}

#[test]
fn links_that_lead_in_circles_or_nowhere() {
    let mut watched = Watched::with(&[("sub/a.yaml", &namespace("a"))]);
    symlink(watched.path("sub"), watched.path("sub/loop")).unwrap();
    symlink(watched.path(""), watched.path("sub/top")).unwrap();
    watched.refresh();
    assert_eq!(watched.names(), ["Namespace a"]);
    symlink("nowhere", watched.path("b.yaml")).unwrap();
    watched.refresh();
    assert!(watched.errors()[0].message.contains("leads nowhere"));
    // A directory behind a link.
    fs::create_dir(watched.home.path().join("far")).unwrap();
    fs::write(watched.home.path().join("far/c.yaml"), namespace("c")).unwrap();
    symlink(watched.home.path().join("far"), watched.path("near")).unwrap();
    watched.until(|w| w.has("Namespace c"));
    fs::write(watched.home.path().join("far/d.yaml"), namespace("d")).unwrap();
    watched.until(|w| w.has("Namespace d"));
    fs::remove_file(watched.path("near")).unwrap();
    watched.until(|w| w.names() == ["Namespace a"]);
}

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
fn an_object_in_two_files_is_that_of_the_later() {
    let mut watched = Watched::with(&[("a.yaml", &policy("p", 1)), ("b.yaml", &policy("p", 2))]);
    assert_eq!(watched.rules(P), Some(2));
    let warning = watched.warnings()[0].to_string();
    assert!(
        warning.contains("b.yaml: NetworkPolicy ns/p: is also in") && warning.contains("a.yaml"),
        "{warning}"
    );
    watched.write("a.yaml", &policy("p", 3));
    assert_eq!(watched.refresh(), Vec::<String>::new());
    fs::remove_file(watched.path("b.yaml")).unwrap();
    watched.until(|w| w.rules(P) == Some(3) && w.warnings().is_empty());
    watched.write("a.yaml", &format!("{}---\n{}", policy("p", 3), policy("p", 4)));
    watched.until(|w| w.rules(P) == Some(4) && !w.warnings().is_empty());
    assert!(watched.warnings()[0].message.contains("also on line 1"));
}

#[test]
fn what_is_unknown_is_told_once() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n";
    let mut watched = Watched::with(&[
        ("a.yaml", deployment),
        ("b.yaml", deployment),
        ("c.yaml", &policy("p", 1).replace("podSelector", "podSelectr")),
    ]);
    let warnings: Vec<String> = watched.warnings().iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].contains("Deployment (apps/v1) are ignored (in 2 files"),
        "{warnings:?}"
    );
    assert!(
        warnings[1].contains("NetworkPolicy ns/p: spec.podSelectr: unknown field"),
        "{warnings:?}"
    );
    assert!(watched.has(P) && watched.errors().is_empty());
    fs::remove_file(watched.path("a.yaml")).unwrap();
    fs::remove_file(watched.path("b.yaml")).unwrap();
    watched.until(|w| w.warnings().len() == 1);
}

#[test]
fn a_directory_that_is_gone_keeps_its_objects() {
    let mut watched = Watched::with(&[("p.yaml", &policy("p", 1))]);
    let away = watched.home.path().join("away");
    fs::rename(watched.path(""), &away).unwrap();
    watched.until(|w| !w.errors().is_empty());
    assert!(watched.has(P) && watched.errors()[0].message.contains("is gone"));
    watched.refresh();
    assert!(watched.has(P));
    fs::rename(&away, watched.path("")).unwrap();
    watched.until(|w| w.errors().is_empty());
    watched.write("p.yaml", &policy("p", 2));
    watched.until(|w| w.rules(P) == Some(2));
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
fn of_a_large_file_only_what_differs_is_told() {
    let pod = |n: usize, app: &str| {
        format!(
            "- apiVersion: v1\n  kind: Pod\n  metadata: {{name: p{n}, namespace: ns, labels: {{app: {app}}}}}\n  \
             status: {{podIP: 10.1.{}.{}}}\n",
            n / 256,
            n % 256
        )
    };
    let list = |odd: Option<usize>| {
        let items: String = (0..2000)
            .map(|n| pod(n, if Some(n) == odd { "odd" } else { "web" }))
            .collect();
        format!("apiVersion: v1\nkind: List\nitems:\n{items}")
    };
    let mut watched = Watched::with(&[("pods.yaml", &list(None))]);
    assert_eq!(watched.objects.len(), 2000);
    watched.write("pods.yaml", &list(Some(77)));
    assert_eq!(watched.until(|w| !w.history.is_empty()), ["apply Pod ns/p77"]);
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
