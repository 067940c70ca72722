//! Files on the node that others read and write too: replaced whole, never in part, and never against a change that
//! somebody else makes at the same time.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    unistd::geteuid,
};

use crate::cni::PLUGIN;

/// Ends the names of files that are being written; none that any runtime reads.
const TEMPORARY: &str = ".tmp";

/// Somebody who had a file open for writing when it was replaced has this long to finish.
const WRITERS: Duration = Duration::from_millis(20);

/// What became of a replacement.
#[derive(Debug, PartialEq, Eq)]
pub enum Replaced {
    Done,
    /// The file is not as it was read any more: read it again.
    Changed,
    /// Done, but somebody was still writing to the file before: that is what they wrote.
    Overtaken(Vec<u8>),
}

/// Replaces what a file holds, if that is still `old`. Its mode stays; its owner too, where the agent may give files
/// away (CAP_CHOWN).
///
/// # Errors
/// The file system's. The file is as it was then.
pub fn replace(path: &Path, old: &[u8], new: &[u8]) -> io::Result<Replaced> {
    let mut before = File::open(path)?;
    let metadata = before.metadata()?;
    if read_whole(&mut before)? != old {
        return Ok(Replaced::Changed);
    }
    let temporary = temporary(path)?;
    write(&temporary, new, metadata.mode() & 0o7777, Some(&metadata))?;
    let exchanged = exchange(&temporary, path);
    let result = exchanged.and_then(|exchanged| {
        if !exchanged {
            fs::rename(&temporary, path)?;
            return Ok(Replaced::Done);
        }
        // What was there at that very moment is under the other name now.
        if fs::read(&temporary)? != old {
            exchange(&temporary, path)?;
            return Ok(Replaced::Changed);
        }
        thread::sleep(WRITERS);
        let after = read_whole(&mut before)?;
        Ok(if after == old {
            Replaced::Done
        } else {
            Replaced::Overtaken(after)
        })
    });
    let _ = fs::remove_file(&temporary);
    sync_directory(path);
    result
}

/// Makes a file, or replaces what it holds.
///
/// # Errors
/// The file system's.
pub fn put(path: &Path, text: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary(path)?;
    write(&temporary, text, mode, None)?;
    fs::rename(&temporary, path).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })?;
    sync_directory(path);
    Ok(())
}

/// Removes a file; none is fine. True: there was one.
///
/// # Errors
/// The file system's.
pub fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => {
            sync_directory(path);
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(explained(path, error)),
    }
}

/// Without DAC_OVERRIDE root is a user like others: it may not write into a directory that is somebody else's
/// (Kubespray's /opt/cni/bin), and "permission denied" for root says nothing about why.
fn explained(path: &Path, error: io::Error) -> io::Error {
    let owner = path
        .parent()
        .and_then(|directory| Some((directory, fs::metadata(directory).ok()?.uid())));
    match owner {
        Some((directory, owner)) if error.kind() == io::ErrorKind::PermissionDenied && owner != geteuid().as_raw() => {
            io::Error::new(
                error.kind(),
                format!(
                    "{error}: {} belongs to user {owner}; give the agent the capability DAC_OVERRIDE (in the chart: \
                     securityContext.extraCapabilities), or the directory to root",
                    directory.display()
                ),
            )
        }
        _ => error,
    }
}

/// Removes what a crash has left half written in a directory.
///
/// # Errors
/// The directory cannot be read.
pub fn remove_temporary(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if name.to_str().is_some_and(is_temporary) {
            remove(&directory.join(name))?;
        }
    }
    Ok(())
}

fn is_temporary(name: &str) -> bool {
    name.strip_prefix('.')
        .and_then(|name| name.strip_prefix(PLUGIN)?.strip_prefix('.'))
        .is_some_and(|name| name.ends_with(TEMPORARY))
}

/// In the same directory: runtimes that watch it are told of both names, and there is no other file system between.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "its name is no text"))?;
    Ok(path.with_file_name(format!(".{PLUGIN}.{name}{TEMPORARY}")))
}

fn write(path: &Path, text: &[u8], mode: u32, owner: Option<&fs::Metadata>) -> io::Result<()> {
    // One that a crash has left may have another mode, or be something else altogether.
    remove(path)?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(|error| explained(path, error))?;
    let written = (|| {
        file.write_all(text)?;
        // Before the owner: the mode of somebody else's file takes CAP_FOWNER.
        file.set_permissions(Permissions::from_mode(mode))?;
        if let Some(owner) = owner.filter(|owner| {
            file.metadata()
                .is_ok_and(|own| (own.uid(), own.gid()) != (owner.uid(), owner.gid()))
        }) {
            match fchown(&file, Some(owner.uid()), Some(owner.gid())) {
                // It takes CAP_CHOWN. Then the file is root's: runtimes, which read it, are so too.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                changed => changed?,
            }
        }
        file.sync_all()
    })();
    written.inspect_err(|_| {
        let _ = fs::remove_file(path);
    })
}

/// Swaps two files in one step. False: this file system cannot.
fn exchange(a: &Path, b: &Path) -> io::Result<bool> {
    match renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn read_whole(file: &mut File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    Ok(text)
}

/// So that a power failure keeps the order of steps. Where it cannot be done, nothing is lost but that.
fn sync_directory(path: &Path) {
    if let Some(Ok(directory)) = path.parent().map(File::open) {
        let _ = directory.sync_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_only_as_it_was_read() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("10-a.conflist");
        fs::write(&path, "old").expect("writes");
        fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("a mode");
        assert_eq!(replace(&path, b"other", b"new").expect("reads"), Replaced::Changed);
        assert_eq!(fs::read(&path).expect("reads"), b"old");
        assert_eq!(replace(&path, b"old", b"new").expect("replaces"), Replaced::Done);
        assert_eq!(fs::read(&path).expect("reads"), b"new");
        assert_eq!(fs::metadata(&path).expect("is there").mode() & 0o7777, 0o640);
        assert_eq!(
            fs::read_dir(directory.path()).expect("reads").count(),
            1,
            "nothing else is left"
        );
        assert!(replace(&directory.path().join("none"), b"", b"new").is_err());
    }

    #[test]
    fn a_writer_who_has_the_file_open_is_not_overlooked() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("10-a.conflist");
        fs::write(&path, "old").expect("writes");
        let mut writer = OpenOptions::new().write(true).open(&path).expect("opens");
        // Asked before the other thread runs, which may begin after the file is another one.
        let old = fs::metadata(&path).expect("is there").ino();
        let late = thread::spawn({
            let path = path.clone();
            move || {
                // Once the file is another one, before the replacement looks back.
                while fs::metadata(&path).expect("is there").ino() == old {
                    thread::yield_now();
                }
                writer.write_all(b"later").expect("writes");
            }
        });
        // The other thread may have been put aside for longer than the time that writers have; or have been so quick that
        // the first look finds what it wrote.
        let replaced = replace(&path, b"old", b"new").expect("replaces");
        late.join().expect("writes");
        let left: &[u8] = match &replaced {
            Replaced::Changed => b"later",
            Replaced::Done => b"new",
            Replaced::Overtaken(later) => {
                assert_eq!(later, b"later");
                b"new"
            }
        };
        assert_eq!(fs::read(&path).expect("reads"), left, "{replaced:?}");
    }

    #[test]
    fn what_a_crash_leaves_is_removed_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for name in [
            ".weir-cni.10-a.conflist.tmp",
            ".weir-cni..tmp",
            "weir-cni.tmp",
            ".weir-cni",
            "10-a.tmp",
        ] {
            fs::write(directory.path().join(name), "").expect("writes");
        }
        remove_temporary(directory.path()).expect("removes");
        let mut left: Vec<_> = fs::read_dir(directory.path())
            .expect("reads")
            .map(|entry| entry.expect("reads").file_name().into_string().expect("a text"))
            .collect();
        left.sort();
        assert_eq!(left, [".weir-cni", "10-a.tmp", "weir-cni.tmp"]);
    }
}
