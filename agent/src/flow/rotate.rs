//! A file that starts anew when it is large, keeping a few of its predecessors.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// `FILE` is written; `FILE.1` is the one before, and so on.
#[derive(Debug)]
pub struct RotatingFile {
    path: PathBuf,
    max_size: u64,
    max_files: u32,
    /// None: could not be opened again; tried at every write.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Bytes, whole lines only.
    size: u64,
    device: u64,
    inode: u64,
}

impl RotatingFile {
    /// Opens the file for appending, makes it and its directory where missing. Flow records tell who talks to whom:
    /// only the owner and its group may read them.
    ///
    /// # Errors
    /// As of `open`.
    pub fn open(path: PathBuf, max_size: u64, max_files: u32) -> io::Result<Self> {
        let mut rotating = Self {
            path,
            max_size,
            max_files: max_files.max(1),
            open: None,
        };
        rotating.open = Some(rotating.open_file()?);
        Ok(rotating)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether so many bytes more stay within the size.
    #[must_use]
    pub fn fits(&self, more: u64) -> bool {
        self.size() + more <= self.max_size
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.size() == 0
    }

    fn size(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.size)
    }

    /// Appends whole lines. A file that somebody removed or moved away is made anew.
    ///
    /// # Errors
    /// As of `open` and `write`. Nothing of the lines is in the file then (half a line would make two unreadable).
    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let in_place = self.open.as_ref().is_some_and(|open| {
            std::fs::metadata(&self.path).is_ok_and(|at| at.dev() == open.device && at.ino() == open.inode)
        });
        if !in_place {
            self.open = None;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let opened = self.open_file()?;
                self.open.insert(opened)
            }
        };
        match open.file.write_all(lines) {
            Ok(()) => {
                open.size += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // If even that fails, the next lines follow half a one; readers skip a line they cannot parse.
                let _ = open.file.set_len(open.size);
                Err(error)
            }
        }
    }

    /// Moves every file one place on and starts an empty one.
    ///
    /// # Errors
    /// As of `rename` and `open`. The current file is written further then.
    pub fn rotate(&mut self) -> io::Result<()> {
        if self.max_files == 1 {
            if let Some(open) = &mut self.open {
                open.file.set_len(0)?;
                open.size = 0;
            }
            return Ok(());
        }
        for number in (1..self.max_files - 1).rev() {
            ignore_missing(std::fs::rename(self.numbered(number), self.numbered(number + 1)))?;
        }
        ignore_missing(std::fs::rename(&self.path, self.numbered(1)))?;
        self.open = None;
        self.open = Some(self.open_file()?);
        Ok(())
    }

    fn numbered(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn open_file(&self) -> io::Result<Open> {
        if let Some(directory) = self.path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .open(&self.path)?;
        let metadata = file.metadata()?;
        Ok(Open {
            size: metadata.len(),
            device: metadata.dev(),
            inode: metadata.ino(),
            file,
        })
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn keeps_so_many_files_and_no_more() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("new/flows.json");
        let mut file = RotatingFile::open(path.clone(), 10, 3).expect("opens");
        for line in ["1\n", "2\n", "3\n", "4\n"] {
            file.write(line.as_bytes()).expect("writes");
            file.rotate().expect("rotates");
        }
        file.write(b"5\n").expect("writes");
        let numbered = |n| file.numbered(n);
        assert_eq!(
            (
                read(&path),
                read(&numbered(1)),
                read(&numbered(2)),
                numbered(3).exists()
            ),
            ("5\n".to_owned(), "4\n".to_owned(), "3\n".to_owned(), false)
        );
    }

    #[test]
    fn one_file_only_is_emptied() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("flows.json");
        let mut file = RotatingFile::open(path.clone(), 4, 1).expect("opens");
        file.write(b"123\n").expect("writes");
        assert!(!file.fits(1));
        file.rotate().expect("rotates");
        file.write(b"456\n").expect("writes");
        assert_eq!(read(&path), "456\n");
        assert_eq!(std::fs::read_dir(directory.path()).expect("reads").count(), 1);
    }

    #[test]
    fn a_removed_or_moved_file_is_made_anew() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("flows.json");
        let mut file = RotatingFile::open(path.clone(), 1000, 3).expect("opens");
        file.write(b"a\n").expect("writes");
        std::fs::remove_file(&path).expect("removes");
        file.write(b"b\n").expect("writes");
        assert_eq!(read(&path), "b\n");
        std::fs::rename(&path, directory.path().join("away")).expect("moves");
        file.write(b"c\n").expect("writes");
        assert_eq!(read(&path), "c\n");
    }

    #[test]
    fn an_existing_file_is_continued_and_its_size_counts() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("flows.json");
        std::fs::write(&path, "12345678\n").expect("writes");
        let file = RotatingFile::open(path, 10, 3).expect("opens");
        assert!(file.fits(1) && !file.fits(2) && !file.is_empty());
    }
}
