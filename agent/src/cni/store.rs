//! Attachments that outlive the agent: one file each in the run directory, which goes when the node reboots, as
//! interfaces do.
//!
//! A pod that was attached has no address in its status until the kubelet has started it. An agent that starts
//! meanwhile learns from here which interface and addresses are the pod's.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tracing::warn;

use super::attachment::{Attachment, AttachmentId};

/// Directory of attachments in the run directory.
pub const DIRECTORY: &str = "attachments";

/// Name of a file that is being written: no attachment's, since interface names hold no slash and containers start
/// with a letter or a digit.
const HALF: &str = ".half";

/// The files of one agent.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Makes the directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(run_dir: &Path) -> io::Result<Self> {
        let directory = run_dir.join(DIRECTORY);
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// All attachments that were kept. What cannot be read is left out, and said.
    #[must_use]
    pub fn load(&self) -> Vec<Attachment> {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) => {
                warn!(directory = %self.directory.display(), %error, "cannot read the attachments of pods");
                return Vec::new();
            }
        };
        let mut attachments = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_name() == HALF {
                continue;
            }
            let read = fs::read(&path).and_then(|text| Ok(serde_json::from_slice::<Attachment>(&text)?));
            match read {
                Ok(attachment) if attachment.id.is_valid() && path == self.path(&attachment.id) => {
                    attachments.push(attachment);
                }
                Ok(_) => warn!(file = %path.display(), "left out: it is not named after its attachment"),
                Err(error) => warn!(file = %path.display(), %error, "cannot read the attachment of a pod"),
            }
        }
        attachments.sort_by(|a, b| a.id.cmp(&b.id));
        attachments
    }

    /// Keeps an attachment, in place of what is kept under its name.
    ///
    /// # Errors
    /// The file system's; a name that is none.
    pub fn put(&self, attachment: &Attachment) -> io::Result<()> {
        if !attachment.id.is_valid() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no valid attachment"));
        }
        // The run directory is in memory: what survives the agent is there, what survives the machine need not be.
        let half = self.directory.join(HALF);
        fs::write(&half, serde_json::to_vec(attachment)?)?;
        fs::rename(&half, self.path(&attachment.id))
    }

    /// Forgets an attachment, if it is kept.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, id: &AttachmentId) -> io::Result<()> {
        if !id.is_valid() {
            return Ok(());
        }
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, id: &AttachmentId) -> PathBuf {
        self.directory.join(format!("{}:{}", id.container, id.interface))
    }
}

/// Removes what agents kept of attachments in a run directory.
///
/// # Errors
/// The file system's.
pub fn remove_all(run_dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(run_dir.join(DIRECTORY)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::attachment::{HostSide, PodName};

    fn attachment(container: &str) -> Attachment {
        Attachment {
            id: AttachmentId {
                container: container.to_owned(),
                interface: "eth0".to_owned(),
            },
            network: "n".to_owned(),
            pod: PodName {
                namespace: "x".to_owned(),
                name: "a".to_owned(),
                uid: None,
            },
            host: HostSide {
                ifindex: 7,
                name: "veth7".to_owned(),
                layer3: false,
            },
            addresses: vec![[10, 0, 0, 1].into()],
        }
    }

    #[test]
    fn what_is_kept_is_there_for_the_next_agent_until_it_is_removed() {
        let run_dir = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(run_dir.path()).expect("opens");
        store.put(&attachment("a")).expect("writes");
        store.put(&attachment("b")).expect("writes");
        store.put(&attachment("b")).expect("writes again");
        // What a crash or a stranger leaves is no attachment.
        fs::write(run_dir.path().join(DIRECTORY).join(HALF), "{").expect("writes");
        fs::write(run_dir.path().join(DIRECTORY).join("c:eth0"), "{").expect("writes");
        let copied = serde_json::to_vec(&attachment("a")).expect("serializes");
        fs::write(run_dir.path().join(DIRECTORY).join("d:eth0"), copied).expect("writes");
        let store = Store::open(run_dir.path()).expect("opens");
        assert_eq!(store.load(), [attachment("a"), attachment("b")]);
        store.remove(&attachment("a").id).expect("removes");
        store.remove(&attachment("a").id).expect("nothing to do");
        assert_eq!(store.load(), [attachment("b")]);
        assert!(store.put(&attachment("../b")).is_err());
        remove_all(run_dir.path()).expect("removes");
        remove_all(run_dir.path()).expect("nothing to do");
        assert_eq!(store.load(), []);
    }
}
