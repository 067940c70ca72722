//! The installer on temporary directories: what others do to them, crashes, garbage.

mod follow;
mod lists;

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use serde_json::{Value, json};

use super::{
    conflist::Entry,
    pass::{self, Binary, Directories, Found},
    remove,
};
use crate::cni::PLUGIN;

fn entry() -> Entry {
    Entry::new("/run/weir", Duration::from_secs(10), &["kube-system".to_owned()])
}

/// As kind writes it.
const KIND: &str = r#"
{
	"cniVersion": "0.3.1",
	"name": "kindnet",
	"plugins": [
	{
		"type": "ptp",
		"ipMasq": false,
		"ipam": {
			"type": "host-local",
			"dataDir": "/run/cni-ipam-state",
			"routes": [{ "dst": "0.0.0.0/0" }],
			"ranges": [[{ "subnet": "10.244.0.0/24" }]]
		},
		"mtu": 1500
	},
	{
		"type": "portmap",
		"capabilities": {
			"portMappings": true
		}
	}
	]
}
"#;

/// As the AWS VPC CNI writes it.
const AWS: &str = r#"{"cniVersion":"0.4.0","name":"aws-cni","disableCheck":true,"plugins":[{"name":"aws-cni","type":"aws-cni","vethPrefix":"eni","mtu":"9001","podSGEnforcingMode":"strict","pluginLogFile":"/var/log/aws-routed-eni/plugin.log","pluginLogLevel":"DEBUG"},{"name":"egress-cni","type":"egress-cni","enabled":"false","ipam":{"type":"host-local","ranges":[[{"subnet": "fd00::ac:00/118"}]],"routes":[{"dst":"::/0"}],"dataDir":"/run/cni/v4pd/egress-v6-ipam"}},{"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}"#;

/// As `podman` and others write it: one plugin, no list.
const SINGLE: &str = r#"{ "cniVersion": "0.4.0", "name": "single", "type": "bridge", "bridge": "cni0", "ipam": {"type": "host-local"} }"#;

struct Node {
    _directory: tempfile::TempDir,
    directories: Directories,
    binary: Binary,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let make = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir(&path).expect("makes a directory");
            path
        };
        let directories = Directories {
            conf: make("net.d"),
            bin: make("bin"),
        };
        let source = directory.path().join("weir");
        fs::write(&source, "binary").expect("writes");
        Self {
            directories,
            binary: Binary::new(source),
            _directory: directory,
        }
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directories.conf.join(name), text).expect("writes");
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directories.conf.join(name)).expect("reads")
    }

    fn install(&mut self) -> Found {
        let found = pass::install(&self.directories, &entry(), &mut self.binary).expect("installs");
        // The same again changes nothing.
        let again = pass::install(&self.directories, &entry(), &mut self.binary).expect("installs");
        assert_eq!(again.written, 0, "{again:?}");
        assert_eq!((&again.installed, &again.problems), (&found.installed, &found.problems));
        found
    }

    fn uninstall(&self) {
        let ((), removed) = remove(&self.directories, || ());
        let removed = removed.expect("removes");
        assert_eq!(removed.problems, []);
        assert_eq!(fs::read_dir(&self.directories.bin).expect("reads").count(), 0);
    }

    fn names(&self) -> Vec<String> {
        names(&self.directories.conf)
    }

    fn installed(&self, name: &str) -> bool {
        plugins(&self.read(name)).last().is_some_and(|last| last == PLUGIN)
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .expect("reads")
        .map(|entry| entry.expect("reads").file_name().into_string().expect("a text"))
        .collect();
    names.sort();
    names
}

fn plugins(text: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(text).expect("a list");
    let plugins = list["plugins"].as_array().expect("plugins");
    plugins
        .iter()
        .map(|plugin| plugin["type"].as_str().expect("a type").to_owned())
        .collect()
}

#[test]
fn what_others_wrote_stays_as_it_is_and_comes_back_byte_for_byte() {
    for (text, others) in [
        (KIND, vec!["ptp", "portmap"]),
        (AWS, vec!["aws-cni", "egress-cni", "portmap"]),
    ] {
        let mut node = Node::new();
        node.write("10-a.conflist", text);
        node.write("99-other.txt", "anything");
        let found = node.install();
        assert_eq!(found.installed, Some(node.directories.conf.join("10-a.conflist")));
        assert_eq!((found.problems.as_slice(), found.written), ([].as_slice(), 1));
        assert_eq!(
            plugins(&node.read("10-a.conflist")),
            [others.as_slice(), &[PLUGIN]].concat()
        );
        let ours: Value = serde_json::from_str(&node.read("10-a.conflist")).expect("a list");
        assert_eq!(
            ours["plugins"].as_array().expect("plugins").last(),
            Some(&json!({
                "type": "weir-cni", "runDir": "/run/weir", "waitSeconds": 10.0,
                "exemptNamespaces": ["kube-system"], "statusNeedsAgent": false,
            }))
        );
        let plugin = node.directories.bin.join(PLUGIN);
        assert_eq!(fs::read(&plugin).expect("is there"), b"binary");
        assert_eq!(
            fs::metadata(&plugin).expect("is there").permissions().mode() & 0o7777,
            0o755
        );
        node.uninstall();
        assert_eq!(node.read("10-a.conflist"), text);
        assert_eq!(node.names(), ["10-a.conflist", "99-other.txt"]);
        node.uninstall();
    }
}

#[test]
fn another_configuration_of_ours_takes_the_place_of_the_one_before() {
    let mut node = Node::new();
    node.write("10-a.conflist", KIND);
    node.install();
    let other = Entry::new("/run/other", Duration::from_millis(2500), &[]);
    pass::install(&node.directories, &other, &mut node.binary).expect("installs");
    let text = node.read("10-a.conflist");
    assert_eq!(plugins(&text), ["ptp", "portmap", PLUGIN]);
    assert!(
        text.contains("/run/other") && text.contains("2.5") && !text.contains("/run/weir"),
        "{text}"
    );
    node.uninstall();
    assert_eq!(node.read("10-a.conflist"), KIND);
}

#[test]
fn the_binary_is_written_where_it_differs() {
    let mut node = Node::new();
    let plugin = node.directories.bin.join(PLUGIN);
    node.install();
    let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("is there"));
    let first = inode(&plugin);
    let source = node.directories.bin.with_file_name("weir");
    let again = |node: &mut Node| {
        node.binary = Binary::new(&source);
        node.install();
    };
    again(&mut node);
    assert_eq!(inode(&plugin), first);
    fs::write(&source, "newer").expect("writes");
    again(&mut node);
    assert_eq!(fs::read(&plugin).expect("is there"), b"newer");
    // Somebody else did this while the agent runs.
    fs::remove_file(&plugin).expect("removes");
    node.install();
    assert_eq!(fs::read(&plugin).expect("is there"), b"newer");
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o600)).expect("a mode");
    node.install();
    assert_eq!(
        fs::metadata(&plugin).expect("is there").permissions().mode() & 0o777,
        0o755
    );
    // Without a binary nothing may name it.
    node.write("10-a.conflist", KIND);
    node.binary = Binary::new("/nowhere");
    assert!(pass::install(&node.directories, &entry(), &mut node.binary).is_err());
    assert_eq!(node.read("10-a.conflist"), KIND);
}

#[test]
fn a_single_configuration_gets_a_list_before_it() {
    for ending in ["conf", "json"] {
        let mut node = Node::new();
        let name = format!("10-single.{ending}");
        node.write(&name, SINGLE);
        node.write("20-later.conflist", KIND);
        let found = node.install();
        assert_eq!(
            node.names(),
            [
                "10-single.0-weir.conflist".to_owned(),
                name.clone(),
                "20-later.conflist".to_owned()
            ]
        );
        assert_eq!(
            found.installed,
            Some(node.directories.conf.join("10-single.0-weir.conflist"))
        );
        let list: Value = serde_json::from_str(&node.read("10-single.0-weir.conflist")).expect("a list");
        assert_eq!(
            (&list["name"], &list["cniVersion"]),
            (&json!("single"), &json!("0.4.0"))
        );
        assert_eq!(list["plugins"][0], serde_json::from_str::<Value>(SINGLE).expect("JSON"));
        assert_eq!(list["plugins"][1]["type"], PLUGIN);
        // What it stands for changes, and goes.
        node.write(&name, &SINGLE.replace("cni0", "cni7"));
        node.install();
        assert!(node.read("10-single.0-weir.conflist").contains("cni7"));
        fs::remove_file(node.directories.conf.join(&name)).expect("removes");
        node.install();
        assert_eq!(node.names(), ["20-later.conflist"]);
        assert!(node.installed("20-later.conflist"));
        node.write(&name, SINGLE);
        node.install();
        assert_eq!(node.read("20-later.conflist"), KIND);
        node.uninstall();
        assert_eq!(node.names(), [name.as_str(), "20-later.conflist"]);
        assert_eq!(node.read(&name), SINGLE);
    }
}

#[test]
fn our_entry_follows_the_configuration_that_runtimes_use() {
    let mut node = Node::new();
    assert_eq!(node.install().installed, None);
    node.write("50-late.conflist", KIND);
    node.install();
    assert!(node.installed("50-late.conflist"));
    node.write("10-early.conflist", AWS);
    node.install();
    assert!(node.installed("10-early.conflist"));
    assert_eq!(node.read("50-late.conflist"), KIND);
    // Its own agent writes it again.
    node.write("10-early.conflist", AWS);
    assert_eq!(node.install().written, 1);
    assert!(node.installed("10-early.conflist"));
    fs::remove_file(node.directories.conf.join("10-early.conflist")).expect("removes");
    node.install();
    assert!(node.installed("50-late.conflist"));
    node.uninstall();
    assert_eq!(node.read("50-late.conflist"), KIND);
}

#[test]
fn what_cannot_be_used_is_left_alone_and_told() {
    let only_ours = format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{{"type":"{PLUGIN}"}}]}}"#);
    // Where a runtime may use it all the same, it has to be known that pods start by it.
    let runtimes_may_use = ["noversion.conflist", "old.conflist", "future.conflist", "ours.conflist"];
    let garbage: [(&str, &str); 13] = [
        ("empty.conflist", ""),
        ("half.conflist", &KIND[..KIND.len() / 2]),
        ("list.conflist", "[]"),
        (
            "noname.conflist",
            r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#,
        ),
        ("noversion.conflist", r#"{"name":"n","plugins":[{"type":"ptp"}]}"#),
        (
            "old.conflist",
            r#"{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"ptp"}]}"#,
        ),
        (
            "future.conflist",
            r#"{"cniVersion":"1.0.0","cniVersions":["1.0.0","7.0.0"],"name":"n","plugins":[{"type":"ptp"}]}"#,
        ),
        ("noplugins.conflist", r#"{"cniVersion":"1.0.0","name":"n"}"#),
        ("nothing.conflist", r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#),
        (
            "untyped.conflist",
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"},{}]}"#,
        ),
        ("ours.conflist", &only_ours),
        ("list.conf", KIND),
        ("untyped.json", r#"{"cniVersion":"1.0.0","name":"n"}"#),
    ];
    for (name, text) in garbage {
        let mut node = Node::new();
        let name = format!("10-{name}");
        node.write(&name, text);
        let found = node.install();
        assert_eq!((&found.installed, found.written), (&None, 0), "{name}");
        assert_eq!(found.problems.len(), 1, "{name}: {:?}", found.problems);
        assert_eq!(found.problems[0].file, Some(node.directories.conf.join(&name)));
        // The next one that can be used is: some runtimes take it.
        node.write("20-good.conflist", KIND);
        let found = node.install();
        assert_eq!(
            found.installed,
            Some(node.directories.conf.join("20-good.conflist")),
            "{name}"
        );
        let usable = runtimes_may_use.iter().any(|usable| name.ends_with(usable));
        assert_eq!(
            found.passed_over,
            usable.then(|| node.directories.conf.join(&name)),
            "{name}"
        );
        assert_eq!(node.read(&name), text);
    }
    // Bytes that are no text, directories with such names, links that lead elsewhere.
    let mut node = Node::new();
    fs::write(node.directories.conf.join("10-bytes.conflist"), [0xff, 0xfe]).expect("writes");
    fs::create_dir(node.directories.conf.join("11-directory.conflist")).expect("makes a directory");
    let elsewhere = node.directories.bin.with_file_name("elsewhere.conflist");
    fs::write(&elsewhere, KIND).expect("writes");
    std::os::unix::fs::symlink(&elsewhere, node.directories.conf.join("12-link.conflist")).expect("links");
    let link = node.directories.conf.join("12-link.conflist");
    let found = node.install();
    assert_eq!(
        (found.installed, found.passed_over.as_ref(), found.problems.len()),
        (None, Some(&link), 2),
        "{:?}",
        found.problems
    );
    assert_eq!(fs::read_to_string(&elsewhere).expect("reads"), KIND);
    // In the agent's container, where it leads cannot be seen.
    fs::remove_file(&elsewhere).expect("removes");
    let found = node.install();
    assert_eq!(
        (found.passed_over.as_ref(), found.problems.len()),
        (Some(&link), 2),
        "{:?}",
        found.problems
    );
    // A runtime finds nothing behind this one, either.
    fs::remove_file(&link).expect("removes");
    std::os::unix::fs::symlink("nothing.conflist", &link).expect("links");
    let found = node.install();
    assert_eq!((found.passed_over, found.problems.len()), (None, 1));
    // Within the directory a link is as good as the file, and stays one.
    node.write("99-real.conflist", KIND);
    fs::remove_file(node.directories.conf.join("12-link.conflist")).expect("removes");
    std::os::unix::fs::symlink("99-real.conflist", node.directories.conf.join("12-link.conflist")).expect("links");
    let found = node.install();
    assert_eq!((found.installed, found.passed_over), (Some(link), None));
    assert!(node.installed("99-real.conflist"));
    assert!(
        fs::symlink_metadata(node.directories.conf.join("12-link.conflist"))
            .expect("is there")
            .is_symlink()
    );
}

#[test]
fn a_plugin_that_a_file_may_name_still_is_not_removed() {
    let mut node = Node::new();
    node.write("10-a.conflist", KIND);
    node.install();
    let broken = node.read("10-a.conflist").replace("\"name\"", "name");
    node.write("10-a.conflist", &broken);
    let ((), removed) = remove(&node.directories, || ());
    let removed = removed.expect("removes what it can");
    assert!(!removed.plugin && removed.problems.len() == 1, "{removed:?}");
    assert!(node.directories.bin.join(PLUGIN).exists());
    node.write("10-a.conflist", KIND);
    node.uninstall();
}

/// As thin Multus makes it: one plugin, with a copy of the list that came first.
#[test]
fn a_plugin_that_a_copy_names_still_is_not_removed() {
    let mut node = Node::new();
    node.write("10-a.conflist", KIND);
    node.install();
    let copy = format!(
        r#"{{"cniVersion":"0.3.1","name":"multus","type":"multus","delegates":[{}]}}"#,
        node.read("10-a.conflist")
    );
    for name in ["00-multus.conf", "00-multus.json", "00-multus.conflist"] {
        let path = node.directories.conf.join(name);
        node.write(name, &copy);
        let ((), removed) = remove(&node.directories, || ());
        let removed = removed.expect("removes what it can");
        assert!(!removed.plugin, "{removed:?}");
        assert_eq!(
            removed
                .problems
                .iter()
                .map(|problem| problem.file.as_ref())
                .collect::<Vec<_>>(),
            [Some(&path)]
        );
        assert!(node.directories.bin.join(PLUGIN).exists());
        assert_eq!(node.read("10-a.conflist"), KIND, "the others are rid of it");
        // Its author makes the copy again.
        node.write(name, &copy.replace(PLUGIN, "tuning"));
        node.uninstall();
        fs::remove_file(path).expect("removes");
        node.install();
    }
}

#[test]
fn a_crash_between_any_two_steps_is_recovered_from() {
    type Files<'a> = &'a [(&'a str, &'a str)];

    let after = {
        let mut node = Node::new();
        node.write("10-a.conflist", KIND);
        node.install();
        node.read("10-a.conflist")
    };
    let half = format!(".{PLUGIN}.10-a.conflist.tmp");
    let half_binary = format!(".{PLUGIN}.{PLUGIN}.tmp");
    // What is on the disk when the agent dies: half of the binary; the binary; half of the list; the new list not yet in
    // place; in place, with the old one under the other name.
    let states: [(Files<'_>, Files<'_>); 5] = [
        (&[("10-a.conflist", KIND)], &[(&half_binary, "bin")]),
        (&[("10-a.conflist", KIND)], &[(PLUGIN, "binary")]),
        (&[("10-a.conflist", KIND), (&half, &after[..40])], &[(PLUGIN, "binary")]),
        (&[("10-a.conflist", KIND), (&half, &after)], &[(PLUGIN, "binary")]),
        (&[("10-a.conflist", &after), (&half, KIND)], &[(PLUGIN, "binary")]),
    ];
    for (conf, bin) in states {
        for uninstall in [false, true] {
            let mut node = Node::new();
            for (name, text) in conf {
                node.write(name, text);
            }
            for (name, text) in bin {
                fs::write(node.directories.bin.join(name), text).expect("writes");
            }
            // Whatever the state, what runtimes read can be read, and what it names is there.
            let list = node.read("10-a.conflist");
            assert!(
                !plugins(&list).iter().any(|plugin| plugin == PLUGIN) || node.directories.bin.join(PLUGIN).exists()
            );
            if uninstall {
                node.uninstall();
                assert_eq!(node.read("10-a.conflist"), KIND);
            } else {
                node.install();
                assert_eq!(node.read("10-a.conflist"), after);
                assert_eq!(names(&node.directories.bin), [PLUGIN]);
            }
            assert_eq!(node.names(), ["10-a.conflist"]);
        }
    }
}
