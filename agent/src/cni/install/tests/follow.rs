//! The installer as a thread, while others write to its directories.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{
    super::{Options, watch::Installer},
    AWS, Directories, KIND, Node, plugins,
};
use crate::cni::PLUGIN;

/// Waits for what another thread does.
fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_installer_follows_what_others_do() {
    let node = Node::new();
    let options = Options {
        directories: node.directories.clone(),
        install: true,
        wait: Duration::from_secs(10),
        exempt_namespaces: vec!["kube-system".to_owned()],
    };
    let installer = Installer::start(&options, Path::new("/run/weir")).expect("starts");
    let reports = installer.reports();
    let report = || reports.borrow().clone().unwrap_or_default();
    until("it waits for a configuration", || report().reason.is_some());
    assert!(!report().failed && report().installed.is_none(), "{:?}", report());
    let installed = |name: &str| {
        fs::read_to_string(node.directories.conf.join(name))
            .ok()
            .and_then(|text| serde_json::from_str::<Value>(&text).ok())
            .is_some_and(|list| {
                list["plugins"]
                    .as_array()
                    .is_some_and(|plugins| plugins.last().is_some_and(|last| last["type"] == PLUGIN))
            })
    };
    node.write("50-a.conflist", KIND);
    until("a first configuration", || {
        installed("50-a.conflist") && report().installed.is_some()
    });
    // In place, and by another file in its place.
    node.write("50-a.conflist", AWS);
    until("one that was written again", || installed("50-a.conflist"));
    fs::write(node.directories.conf.join("new"), KIND).expect("writes");
    fs::rename(
        node.directories.conf.join("new"),
        node.directories.conf.join("50-a.conflist"),
    )
    .expect("renames");
    until("one that was replaced", || installed("50-a.conflist"));
    node.write("10-b.conflist", KIND);
    until("one that comes before it", || {
        installed("10-b.conflist") && !installed("50-a.conflist")
    });
    fs::remove_file(node.directories.conf.join("10-b.conflist")).expect("removes");
    until("the one before is gone", || installed("50-a.conflist"));
    fs::remove_file(node.directories.bin.join(PLUGIN)).expect("removes");
    until("the binary was removed", || node.directories.bin.join(PLUGIN).exists());
    node.write("00-broken.conflist", "{");
    until("what cannot be read is told", || !report().problems.is_empty());
    assert!(installed("50-a.conflist"));
    fs::remove_file(node.directories.conf.join("50-a.conflist")).expect("removes");
    until("none can be used", || report().failed);
    fs::remove_file(node.directories.conf.join("00-broken.conflist")).expect("removes");
    until("there is none", || !report().failed && report().problems.is_empty());
    node.write("50-a.conflist", KIND);
    until("there is one again", || installed("50-a.conflist"));
    drop(installer);
    assert!(installed("50-a.conflist"), "an agent that ends leaves it");
    node.uninstall();
    assert_eq!(node.read("50-a.conflist"), KIND);
}

#[test]
fn no_change_of_others_is_lost_while_they_write_all_the_time() {
    let node = Node::new();
    let options = Options {
        directories: node.directories.clone(),
        install: true,
        wait: Duration::from_secs(10),
        exempt_namespaces: Vec::new(),
    };
    let path = node.directories.conf.join("10-a.conflist");
    let version = |number: usize| KIND.replace("1500", &number.to_string());
    fs::write(&path, version(0)).expect("writes");
    let installer = Installer::start(&options, Path::new("/run/weir")).expect("starts");
    for number in 1..=40 {
        if number % 2 == 0 {
            fs::write(&path, version(number)).expect("writes");
        } else {
            let new = node.directories.conf.join("new");
            fs::write(&new, version(number)).expect("writes");
            fs::rename(&new, &path).expect("renames");
        }
        thread::sleep(Duration::from_millis(number as u64 % 7));
        let list: Value = serde_json::from_str(&fs::read_to_string(&path).expect("reads")).expect("never half of it");
        assert_eq!(list["plugins"][0]["mtu"], number, "what was written last is there");
    }
    until("it is chained in the end", || {
        plugins(&fs::read_to_string(&path).expect("reads")) == ["ptp", "portmap", PLUGIN]
    });
    drop(installer);
    node.uninstall();
    assert_eq!(node.read("10-a.conflist"), version(40));
}

#[test]
fn what_is_switched_off_is_taken_away() {
    let mut node = Node::new();
    node.write("10-a.conflist", KIND);
    node.install();
    let copy = node.read("10-a.conflist").replace("\"plugins\"", "\"delegates\"");
    node.write("00-copy.conf", &copy);
    let options = Options {
        directories: node.directories.clone(),
        install: false,
        wait: Duration::from_secs(10),
        exempt_namespaces: Vec::new(),
    };
    let installer = Installer::start(&options, Path::new("/run/weir")).expect("starts");
    let reports = installer.reports();
    let report = || reports.borrow().clone().unwrap_or_default();
    until("what names it still is told", || report().failed);
    let told: Vec<_> = report()
        .problems
        .into_iter()
        .filter_map(|problem| problem.file)
        .collect();
    assert_eq!(told, [node.directories.conf.join("00-copy.conf")]);
    assert_eq!(node.read("10-a.conflist"), KIND);
    assert!(node.directories.bin.join(PLUGIN).exists());
    fs::remove_file(node.directories.conf.join("00-copy.conf")).expect("removes");
    until("nothing of it is left", || !report().failed);
    assert!(!node.directories.bin.join(PLUGIN).exists());
    assert_eq!(
        (report().installed, report().reason.as_deref()),
        (None, Some("it is switched off"))
    );
    // It does not come back.
    node.write("20-b.conflist", KIND);
    drop(installer);
    assert_eq!(node.read("20-b.conflist"), KIND);

    // Neither does a directory that is not there keep it from being done.
    let directories = Directories {
        conf: node.directories.conf.join("none"),
        bin: node.directories.bin.join("none"),
    };
    let installer = Installer::start(&Options { directories, ..options }, Path::new("/run/weir")).expect("starts");
    let reports = installer.reports();
    until("there is nothing to do", || reports.borrow().is_some());
    let report = reports.borrow().clone().unwrap_or_default();
    assert!(!report.failed && report.problems.is_empty(), "{report:?}");
}

#[test]
fn what_runtimes_use_and_we_cannot_edit_is_a_failure() {
    let node = Node::new();
    node.write("10-old.conflist", &KIND.replace("0.3.1", "0.2.0"));
    node.write("20-b.conflist", KIND);
    let options = Options {
        directories: node.directories.clone(),
        install: true,
        wait: Duration::from_secs(10),
        exempt_namespaces: Vec::new(),
    };
    let installer = Installer::start(&options, Path::new("/run/weir")).expect("starts");
    let reports = installer.reports();
    let report = || reports.borrow().clone().unwrap_or_default();
    until("it is told", || report().failed);
    let reason = report().reason.unwrap_or_default();
    assert!(reason.contains("10-old.conflist"), "{reason}");
    // Some runtimes take the next one.
    assert!(node.installed("20-b.conflist"));
    fs::remove_file(node.directories.conf.join("10-old.conflist")).expect("removes");
    until("the one that is left is the first", || {
        !report().failed && report().installed.is_some()
    });
}
