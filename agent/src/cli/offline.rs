//! A directory of manifests as the agent would read it, without an agent.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use indexmap::IndexMap;

use super::{error::CliError, output::YELLOW};
use crate::{
    api::{Object, ObjectKey, Outcome, Parser, Severity, objects},
    control::explain::{ExplainRequest, Explanation, explain},
    index::Index,
    policy::evaluate::World,
    source::{SourceEvent, manifests::files_below},
};

/// Answers from manifests.
///
/// # Errors
/// The directory cannot be read, or as of [`explain`].
pub fn explain_manifests(directory: &Path, request: &ExplainRequest) -> Result<Explanation, CliError> {
    let (objects, errors) = read(directory)?;
    if errors > 0 {
        // What an agent would do with what is wrong is part of the answer; that something is wrong should be known.
        writeln!(
            anstream::stderr(),
            "{YELLOW}warning:{YELLOW:#} the manifests have errors, see `weir check {}`",
            directory.display()
        )?;
    }
    // No node is ours: pods of every node are explained alike.
    let mut index = Index::new("");
    index.apply(SourceEvent::Reset(objects));
    let mut world = World::new();
    for change in index.snapshot() {
        world.apply(change);
    }
    explain(&index, &world, request).map_err(|error| CliError::Failed {
        message: error.message,
        remedy: error.remedy,
    })
}

/// The objects that a new agent would enforce, and the number of errors.
fn read(directory: &Path) -> Result<(Vec<Object>, usize), CliError> {
    if !directory.is_dir() {
        return Err(CliError::Failed {
            message: format!("{} is no directory", directory.display()),
            remedy: Some("name the directory of manifests that the agent is started with".to_owned()),
        });
    }
    let mut parser = Parser::new();
    let mut found: IndexMap<ObjectKey, Object> = IndexMap::new();
    let mut errors = 0;
    for file in files_below(directory) {
        let text = read_file(&file)?;
        let (documents, broken) = objects(&file, &text, &mut parser);
        errors += broken.len();
        for document in documents {
            let parsed = document.parsed;
            errors += parsed
                .problems
                .iter()
                .filter(|problem| problem.severity == Severity::Error)
                .count();
            if let (Some(key), Outcome::Valid(object) | Outcome::Partial(object)) = (parsed.key, parsed.outcome) {
                found.insert(key, object);
            }
        }
    }
    Ok((found.into_values().collect(), errors))
}

fn read_file(file: &PathBuf) -> Result<String, CliError> {
    fs::read_to_string(file).map_err(|error| CliError::failed(format!("cannot read {}: {error}", file.display())))
}
