//! Everything that is wrong in files that a user names.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    object::ObjectKey,
    parse::{Parser, Unknown},
    problem::Problem,
    yaml::objects,
};
use crate::source::manifests::files_below;

/// Reads the files (and, below directories, every *.yaml, *.yml and *.json) and says all that is wrong in them, in the
/// order of files and lines.
#[must_use]
pub fn check(paths: &[PathBuf]) -> Vec<Problem> {
    let mut checker = Checker::default();
    for path in paths {
        if path.is_dir() {
            for file in files_below(path) {
                checker.file(&file);
            }
        } else {
            checker.file(path);
        }
    }
    checker.finish()
}

#[derive(Default)]
struct Checker {
    parser: Parser,
    problems: Vec<Problem>,
    seen: HashMap<ObjectKey, (PathBuf, u32)>,
    unknown: BTreeMap<Unknown, (PathBuf, u32, Option<ObjectKey>, usize)>,
}

impl Checker {
    fn file(&mut self, path: &Path) {
        let text = match fs::read(path) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| io::Error::other("is not UTF-8 text")),
            Err(error) => Err(error),
        };
        let text = match text {
            Ok(text) => text,
            Err(error) => {
                let problem = Problem::error(format!("cannot be read: {error}"), "name a readable manifest file");
                self.problems.push(problem.in_file(path, None));
                return;
            }
        };
        let (documents, errors) = objects(path, &text, &mut self.parser);
        for error in errors {
            self.problems.push(
                Problem::error(format!("cannot be parsed: {}", error.message), "correct the text")
                    .in_file(path, error.line),
            );
        }
        for document in documents {
            let line = document.line;
            for problem in document.parsed.problems {
                self.problems.push(problem.in_file(path, Some(line)));
            }
            for unknown in document.parsed.unknown {
                let place = || (path.to_owned(), line, document.parsed.key.clone(), 0);
                self.unknown.entry(unknown).or_insert_with(place).3 += 1;
            }
            if let Some(key) = document.parsed.key
                && let Some((other, other_line)) = self.seen.insert(key.clone(), (path.to_owned(), line))
            {
                self.problems.push(
                    Problem::warning(
                        format!("is also in {}:{other_line}; this one counts", other.display()),
                        "remove one of them",
                    )
                    .in_file(path, Some(line))
                    .of_object(key.to_string()),
                );
            }
        }
    }

    fn finish(mut self) -> Vec<Problem> {
        for (unknown, (file, line, object, _)) in self.unknown {
            let mut problem = unknown.problem(1, "files").in_file(file, Some(line));
            problem.object = object.map(|object| object.to_string());
            self.problems.push(problem);
        }
        self.problems
    }
}
