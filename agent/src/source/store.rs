//! Versions in force, kept for the next start: what cannot be understood then has a last valid version still.
//!
//! Shared by the sources. A log of JSON lines, one per version that came into force or went, written by a thread of its own. It is compacted
//! when most of it is history, and at every start; both by writing another file and renaming it.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use serde::{Deserialize, Serialize};

use crate::api::{Object, ObjectKey, manifest};

const LOG: &str = "last-valid.log";
/// History lines that are never worth a compaction.
const SPARE_LINES: usize = 512;

/// A version of an object, as one file gave it, came into force. None: that file's version went.
pub(in crate::source) struct Line {
    /// The file; of objects from the Kubernetes API, a name that stands for it.
    pub(in crate::source) file: Arc<Path>,
    pub(in crate::source) key: ObjectKey,
    pub(in crate::source) version: Option<Version>,
}

pub(in crate::source) struct Version {
    pub(in crate::source) object: Object,
    /// The object's text, where the object does not hold all of it.
    pub(in crate::source) text: Option<Arc<str>>,
}

#[derive(Serialize, Deserialize)]
struct Record<'a> {
    #[serde(borrow)]
    file: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    key: std::borrow::Cow<'a, str>,
    /// None: gone.
    manifest: Option<String>,
}

/// What the last agent left.
#[derive(Default)]
pub(in crate::source) struct Stored {
    by_file: HashMap<PathBuf, HashMap<String, String>>,
}

impl Stored {
    fn load(path: &Path) -> io::Result<Self> {
        let mut stored = Self::default();
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(stored),
            Err(error) => return Err(error),
        };
        for line in BufReader::new(file).split(b'\n') {
            // The last line may be cut short by a crash; nothing before it is.
            let line = line?;
            let Ok(record) = serde_json::from_slice::<Record<'_>>(&line) else {
                continue;
            };
            let objects = stored.by_file.entry(PathBuf::from(record.file.as_ref())).or_default();
            match record.manifest {
                Some(manifest) => objects.insert(record.key.into_owned(), manifest),
                None => objects.remove(record.key.as_ref()),
            };
        }
        Ok(stored)
    }

    /// The manifests of a file's objects, in the order of their names.
    pub(in crate::source) fn of_file(&self, file: &Path) -> Vec<&str> {
        let Some(objects) = self.by_file.get(file) else {
            return Vec::new();
        };
        let mut objects: Vec<(&String, &String)> = objects.iter().collect();
        objects.sort_unstable();
        objects.into_iter().map(|(_, manifest)| manifest.as_str()).collect()
    }

    /// An object's manifest: as this file gave it, else as the last of all files that did.
    pub(in crate::source) fn of_object(&self, file: &Path, key: &ObjectKey) -> Option<&str> {
        let key = key.to_string();
        let own = self.by_file.get(file).and_then(|objects| objects.get(&key));
        let other = || {
            let files = self
                .by_file
                .iter()
                .filter_map(|(file, objects)| Some((file, objects.get(&key)?)));
            files.max_by_key(|(file, _)| *file).map(|(_, manifest)| manifest)
        };
        own.or_else(other).map(String::as_str)
    }
}

enum Message {
    /// All there is: the log begins anew.
    Snapshot(Vec<Line>),
    Append(Vec<Line>),
}

/// The log's writer. What was given to it is on disk when it has been dropped.
pub(in crate::source) struct Store {
    messages: Option<mpsc::Sender<Message>>,
    thread: Option<JoinHandle<()>>,
}

impl Store {
    pub(in crate::source) fn open(run_dir: &Path) -> io::Result<(Self, Stored)> {
        let path = run_dir.join(LOG);
        let stored = Stored::load(&path)?;
        // Found out now, not when the first version is to be kept.
        OpenOptions::new().create(true).append(true).open(&path)?;
        let (messages, inbox) = mpsc::channel();
        let thread = thread::Builder::new().name("last-valid".to_owned()).spawn(move || {
            let mut log = Log::new(path);
            while let Ok(message) = inbox.recv() {
                if let Err(error) = log.write(message) {
                    tracing::error!(
                        file = %log.path.display(), %error,
                        "last valid versions cannot be kept; an agent started now would not know them (free space there)"
                    );
                }
            }
        })?;
        let store = Self {
            messages: Some(messages),
            thread: Some(thread),
        };
        Ok((store, stored))
    }

    pub(in crate::source) fn snapshot(&self, lines: Vec<Line>) {
        self.send(Message::Snapshot(lines));
    }

    pub(in crate::source) fn append(&self, lines: Vec<Line>) {
        if !lines.is_empty() {
            self.send(Message::Append(lines));
        }
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages {
            // The thread ends only when this sender is dropped.
            let _ = messages.send(message);
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.messages = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Log {
    path: PathBuf,
    file: Option<File>,
    lines: usize,
    /// By the hash of file and object: the number of the line that holds its version.
    live: HashMap<u64, usize>,
    /// A write failed half-way: the numbers of lines are not known any more.
    damaged: bool,
}

impl Log {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            lines: 0,
            live: HashMap::new(),
            damaged: false,
        }
    }

    fn write(&mut self, message: Message) -> io::Result<()> {
        match message {
            Message::Snapshot(lines) => {
                self.lines = 0;
                self.live.clear();
                // One line at a time: there may be very many.
                let mut new = self.begin()?;
                for line in lines {
                    if let Some(text) = self.render(&line) {
                        new.write_all(text.as_bytes())?;
                    }
                }
                self.finish(new)
            }
            Message::Append(lines) => {
                let text: String = lines.iter().filter_map(|line| self.render(line)).collect();
                self.append(&text)?;
                if !self.damaged && self.lines > 2 * self.live.len() + SPARE_LINES {
                    self.compact()?;
                }
                Ok(())
            }
        }
    }

    /// The line's text. Counts it.
    fn render(&mut self, line: &Line) -> Option<String> {
        let manifest = line.version.as_ref().map(|version| match &version.text {
            Some(text) => text.to_string(),
            None => manifest(&version.object).unwrap_or_default().to_string(),
        });
        let record = Record {
            file: line.file.to_string_lossy(),
            key: line.key.to_string().into(),
            manifest,
        };
        let mut hasher = DefaultHasher::new();
        (&record.file, &record.key).hash(&mut hasher);
        match record.manifest {
            Some(_) => self.live.insert(hasher.finish(), self.lines),
            None => self.live.remove(&hasher.finish()),
        };
        self.lines += 1;
        serde_json::to_string(&record).ok().map(|text| text + "\n")
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self
                .file
                .insert(OpenOptions::new().create(true).append(true).open(&self.path)?),
        };
        // Whatever a failed write left behind ends here.
        let separator = if self.damaged { "\n" } else { "" };
        let written = file
            .write_all(separator.as_bytes())
            .and_then(|()| file.write_all(text.as_bytes()))
            .and_then(|()| file.sync_data());
        self.damaged |= written.is_err();
        written
    }

    fn begin(&self) -> io::Result<BufWriter<File>> {
        Ok(BufWriter::new(File::create(self.path.with_extension("new"))?))
    }

    /// The new log takes the old one's place, whole.
    fn finish(&mut self, new: BufWriter<File>) -> io::Result<()> {
        new.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(self.path.with_extension("new"), &self.path)?;
        self.file = None;
        self.damaged = false;
        Ok(())
    }

    /// Leaves out lines that later ones have replaced.
    fn compact(&mut self) -> io::Result<()> {
        let live: std::collections::HashSet<usize> = self.live.values().copied().collect();
        let mut new = self.begin()?;
        for (number, line) in BufReader::new(File::open(&self.path)?).split(b'\n').enumerate() {
            if live.contains(&number) {
                new.write_all(&line?)?;
                new.write_all(b"\n")?;
            }
        }
        self.finish(new)?;
        let mut moved: Vec<(u64, usize)> = self.live.iter().map(|(key, number)| (*key, *number)).collect();
        moved.sort_unstable_by_key(|(_, number)| *number);
        self.live = moved
            .into_iter()
            .enumerate()
            .map(|(number, (key, _))| (key, number))
            .collect();
        self.lines = self.live.len();
        Ok(())
    }
}
