//! How files come, change and go.

use super::*;

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
    let error = ManifestSource::start(&config, Arrivals::default())
        .unwrap_err()
        .to_string();
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
