//! Entering the namespaces of a running process, and starting programs in them.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};
use nix::{
    sched::{CloneFlags, setns},
    unistd::setsid,
};

/// Network, mount and host name namespaces that some process lives in.
#[derive(Debug)]
pub struct Namespaces {
    files: Vec<(File, CloneFlags)>,
}

impl Namespaces {
    /// Those of a process.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn of(pid: i32) -> Result<Self> {
        let directory = Path::new("/proc").join(pid.to_string()).join("ns");
        // Mounts last: the others' files are found through them no longer.
        let files = [
            ("net", CloneFlags::CLONE_NEWNET),
            ("uts", CloneFlags::CLONE_NEWUTS),
            ("mnt", CloneFlags::CLONE_NEWNS),
        ]
        .into_iter()
        .map(|(name, flag)| {
            let path = directory.join(name);
            File::open(&path)
                .map(|file| (file, flag))
                .with_context(|| format!("open {}", path.display()))
        })
        .collect::<Result<_>>()?;
        Ok(Self { files })
    }

    /// Makes a command run in them.
    ///
    /// # Errors
    /// If descriptors cannot be duplicated.
    pub fn command(&self, command: &mut Command) -> Result<()> {
        let files: Vec<(File, CloneFlags)> = self
            .files
            .iter()
            .map(|(file, flag)| Ok((file.try_clone()?, *flag)))
            .collect::<io::Result<_>>()
            .context("duplicate the descriptors of namespaces")?;
        // SAFETY: setns is a bare system call, safe between fork and exec; the descriptors live in the closure.
        unsafe {
            command.pre_exec(move || {
                files
                    .iter()
                    .try_for_each(|(file, flag)| setns(file, *flag).map_err(io::Error::from))
            });
        }
        Ok(())
    }
}

/// Makes a command run in a session of its own, so that the terminal's signals do not reach it, and in the control group
/// that `entrance` leads to.
pub fn apart(command: &mut Command, mut entrance: File) {
    // SAFETY: setsid and write are bare system calls, safe between fork and exec; the descriptor lives in the closure.
    unsafe {
        command.pre_exec(move || {
            setsid().map_err(io::Error::from)?;
            entrance.write_all(b"0")
        });
    }
}
