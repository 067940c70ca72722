//! One look at the node's directories, and what has to be done to them: the same again after every change, and after
//! a crash in the middle of it.
//!
//! The binary comes before the first configuration that names it, and goes after the last.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use serde::de::IgnoredAny;
use tracing::info;

use super::{
    conflist::{self, Entry, Fault},
    files::{self, Replaced},
};
use crate::{api::Problem, cni::PLUGIN};

/// What lists are called that stand for the single configuration `STEM.conf` or `STEM.json`: they come just before it in
/// the order of names.
const DERIVED: &str = ".0-weir.conflist";

/// The node's directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directories {
    /// Where runtimes look for network configurations.
    pub conf: PathBuf,
    /// Where they look for plugins.
    pub bin: PathBuf,
}

/// What was found, and is so now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The configuration that runtimes use, with our entry.
    pub installed: Option<PathBuf>,
    /// A configuration that comes before that one and that runtimes may well use, but that we cannot edit.
    pub passed_over: Option<PathBuf>,
    /// Files that cannot be used, and why.
    pub problems: Vec<Problem>,
    /// Files that were written.
    pub written: usize,
}

/// The binary to install. Remembers what need not be compared again.
#[derive(Debug)]
pub struct Binary {
    source: PathBuf,
    same: Option<(u64, u64, u64, i64, i64)>,
}

impl Binary {
    #[must_use]
    pub fn new(source: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            same: None,
        }
    }

    /// Copies the binary into place, unless it is there already.
    ///
    /// # Errors
    /// The file system's.
    pub fn install(&mut self, directory: &Path) -> io::Result<()> {
        let path = directory.join(PLUGIN);
        if self.same.is_some() && stamp(&path).ok() == self.same {
            return Ok(());
        }
        let own = fs::read(&self.source)?;
        let there = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            there => Some(there?),
        };
        let executable =
            fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o7777 == 0o755);
        if there.as_ref() != Some(&own) || !executable {
            files::put(&path, &own, 0o755)?;
            info!(plugin = %path.display(), "installed the CNI plugin");
        }
        self.same = stamp(&path).ok();
        Ok(())
    }
}

fn stamp(path: &Path) -> io::Result<(u64, u64, u64, i64, i64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ))
}

/// Puts our entry into the configuration that runtimes use (the first by name that can be used), and takes it out of
/// all others. What only we cannot use is passed over like what nobody can, since runtimes differ in what they take;
/// but it is told, as pods may start by it.
///
/// # Errors
/// A directory cannot be read or written.
pub fn install(directories: &Directories, entry: &Entry, binary: &mut Binary) -> io::Result<Found> {
    for directory in [&directories.conf, &directories.bin] {
        files::remove_temporary(directory)?;
    }
    binary.install(&directories.bin)?;
    let mut found = Found::default();
    let names = configurations(&directories.conf)?;
    let mut used: Option<String> = None;
    for name in &names {
        let path = directories.conf.join(name);
        match edit(&path, entry) {
            Ok(Edited { file, written }) => {
                found.written += usize::from(written);
                used = Some(file);
                break;
            }
            Err(Refused::Gone) => {}
            Err(refused) => {
                let (what, usable) = match &refused {
                    Refused::Fault(fault) => (fault.to_string(), !fault.is_everybodys()),
                    Refused::Io(error) => (error.to_string(), true),
                    Refused::Gone => continue,
                };
                found.problems.push(problem(&path, &what));
                if usable {
                    found.passed_over.get_or_insert(path);
                }
            }
        }
    }
    found.installed = used.as_ref().map(|name| directories.conf.join(name));
    // Only when it is where it has to be does it go from where it was.
    let kept = found.installed.as_deref().map(identity).transpose()?;
    found.written += remove_but(&directories.conf, kept, &mut found.problems)?;
    Ok(found)
}

/// Takes our entry out of every configuration, and removes the lists that we have made.
///
/// # Errors
/// The directory cannot be read or written. What cannot be read is a problem and left alone; so is what still names the
/// plugin somewhere else than in a list's plugins (Multus copies a whole list into its own configuration).
pub fn remove_entries(conf: &Path) -> io::Result<(usize, Vec<Problem>)> {
    match fs::metadata(conf) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((0, Vec::new())),
        metadata => metadata?,
    };
    files::remove_temporary(conf)?;
    let mut problems = Vec::new();
    let written = remove_but(conf, None, &mut problems)?;
    for name in names(conf)? {
        let path = conf.join(&name);
        if read_some(&path).is_some_and(|text| conflist::still_names(&text))
            && !problems.iter().any(|problem| problem.file.as_ref() == Some(&path))
        {
            problems.push(
                Problem::warning(
                    format!("it names {PLUGIN} where only its author can take it out"),
                    format!(
                        "have it written again (where it is a copy of another configuration: restart what copies it), \
                         or take the object with \"type\": \"{PLUGIN}\" out by hand"
                    ),
                )
                .in_file(&path, None),
            );
        }
    }
    Ok((written, problems))
}

/// Removes the plugin. True: it was there.
///
/// # Errors
/// The file system's.
pub fn remove_plugin(bin: &Path) -> io::Result<bool> {
    match fs::metadata(bin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        metadata => metadata?,
    };
    files::remove_temporary(bin)?;
    files::remove(&bin.join(PLUGIN))
}

/// Names of what runtimes read in the directory (libcni's ConfFiles), in their order, but for lists that we have made.
fn configurations(directory: &Path) -> io::Result<Vec<String>> {
    let names = names(directory)?;
    Ok(names.into_iter().filter(|name| !name.ends_with(DERIVED)).collect())
}

fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let read = [".conf", ".conflist", ".json"]
            .iter()
            .any(|ending| name.ends_with(ending));
        if read && !entry.file_type()?.is_dir() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

struct Edited {
    /// The name of the file that has our entry.
    file: String,
    written: bool,
}

enum Refused {
    Fault(Fault),
    Io(io::Error),
    /// Between looking and reading.
    Gone,
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            return Self::Gone;
        }
        Self::Io(error)
    }
}

fn text(bytes: Vec<u8>) -> Result<String, Fault> {
    String::from_utf8(bytes).map_err(|error| {
        match serde_json::from_str::<IgnoredAny>(&String::from_utf8_lossy(error.as_bytes())) {
            // Go replaces such bytes, and goes on.
            Ok(_) => Fault::Encoding,
            Err(_) => Fault::Json(error.to_string()),
        }
    })
}

/// Puts our entry into what a file configures.
fn edit(path: &Path, entry: &Entry) -> Result<Edited, Refused> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Some(stem) = name.strip_suffix(".conf").or_else(|| name.strip_suffix(".json")) {
        let single = fs::read(path).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => fs::read(target(path)?),
            _ => Err(error),
        });
        let list = conflist::wrap(&text(single?)?, entry)?;
        let file = format!("{stem}{DERIVED}");
        let derived = path.with_file_name(&file);
        let written = fs::read(&derived).ok().as_deref() != Some(list.as_bytes());
        if written {
            // As readable as what it stands for.
            files::put(&derived, list.as_bytes(), fs::metadata(path)?.mode() & 0o777)?;
            info!(file = %derived.display(), "chained the CNI plugin by a list for {name}");
        }
        return Ok(Edited { file, written });
    }
    let path = target(path)?;
    let written = rewrite(&path, |text| conflist::insert(text, entry))?;
    if written {
        info!(file = %path.display(), "chained the CNI plugin");
    }
    Ok(Edited {
        file: name.to_owned(),
        written,
    })
}

/// Edits a list until nobody else has changed it meanwhile. True: it was written.
fn rewrite(path: &Path, edit: impl Fn(&str) -> Result<Option<String>, Fault>) -> Result<bool, Refused> {
    let mut written = false;
    // Whoever writes more often than this is heard of again.
    for _ in 0..16 {
        let old = text(fs::read(path)?)?;
        let Some(new) = edit(&old)? else {
            return Ok(written);
        };
        match files::replace(path, old.as_bytes(), new.as_bytes())? {
            Replaced::Done => return Ok(true),
            Replaced::Changed => {}
            Replaced::Overtaken(later) => {
                written = true;
                let Ok(edited) = text(later).and_then(|later| Ok(edit(&later)?.unwrap_or(later))) else {
                    // Half of something: its author will come back to it, and we have what was whole.
                    return Ok(true);
                };
                // If this has changed again, the next round finds it so.
                if files::replace(path, new.as_bytes(), edited.as_bytes())? == Replaced::Done {
                    return Ok(true);
                }
            }
        }
    }
    Err(Refused::Io(io::Error::other("others change it again and again")))
}

/// The file itself, where a name is a symbolic link: within the same directory, since what is elsewhere may be anything.
/// In a container nothing else of the node can be seen: a link that leads out of the directory seems to lead nowhere.
fn target(path: &Path) -> io::Result<PathBuf> {
    if !fs::symlink_metadata(path)?.is_symlink() {
        return Ok(path.to_owned());
    }
    let target = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let link = fs::read_link(path)?;
            if link.components().eq(link.file_name().map(Component::Normal)) {
                return Err(error);
            }
            link
        }
        target => target?,
    };
    let directory = path.parent().map(fs::canonicalize).transpose()?;
    if target.parent() == directory.as_deref() {
        return Ok(target);
    }
    Err(io::Error::other(format!(
        "it is a symbolic link to {}, which is in another directory or cannot be reached from here",
        target.display()
    )))
}

/// Device and inode of what a name leads to.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Takes our entry out of all configurations but one.
fn remove_but(conf: &Path, kept: Option<(u64, u64)>, problems: &mut Vec<Problem>) -> io::Result<usize> {
    let mut written = 0;
    for name in names(conf)? {
        let path = conf.join(&name);
        // By whatever name.
        if kept.is_some() && identity(&path).ok() == kept {
            continue;
        }
        if name.ends_with(DERIVED) {
            match files::remove(&path) {
                Ok(removed) => {
                    written += usize::from(removed);
                    info!(file = %path.display(), "removed the list that chained the CNI plugin");
                }
                Err(error) => problems.push(problem(&path, &error.to_string())),
            }
            continue;
        }
        if !name.ends_with(".conflist") {
            continue;
        }
        let removed = target(&path)
            .map_err(Refused::from)
            .and_then(|path| rewrite(&path, conflist::remove));
        match removed {
            Ok(true) => {
                written += 1;
                info!(file = %path.display(), "took the CNI plugin out");
            }
            Ok(false) | Err(Refused::Gone) => {}
            // What nobody can read is nobody's business, unless we may be in it.
            Err(refused) => {
                if read_some(&path).is_some_and(|text| conflist::mentions(&text))
                    && !problems.iter().any(|problem| problem.file.as_ref() == Some(&path))
                {
                    problems.push(match refused {
                        Refused::Fault(fault) => problem(&path, &fault.to_string()),
                        Refused::Io(error) => problem(&path, &error.to_string()),
                        Refused::Gone => continue,
                    });
                }
            }
        }
    }
    Ok(written)
}

fn read_some(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut text = Vec::new();
    File::open(path).ok()?.take(1 << 20).read_to_end(&mut text).ok()?;
    Some(text)
}

fn problem(path: &Path, what: &str) -> Problem {
    Problem::warning(
        format!("left alone: {what}"),
        format!("mend or remove the file: {PLUGIN} is chained into the first network configuration that can be used"),
    )
    .in_file(path, None)
}
