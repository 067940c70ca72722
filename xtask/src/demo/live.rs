//! The verbs of `weir`, run as a user would run them.

use std::{
    io::{BufRead as _, BufReader, IsTerminal as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use weir_tests::lab::cleanup::ChildGuard;

/// A line that is still to come comes sooner than this.
const QUIET: Duration = Duration::from_millis(300);

/// Runs verbs against one agent.
#[derive(Clone)]
pub struct Verb {
    weir: PathBuf,
    run_dir: PathBuf,
}

impl Verb {
    pub fn new(weir: &Path, run_dir: &Path) -> Self {
        Self {
            weir: weir.to_owned(),
            run_dir: run_dir.to_owned(),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.weir);
        command.args(arguments).arg("--run-dir").arg(&self.run_dir);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // What is shown here is shown on: with colours if there is somebody to see them.
        if std::io::stdout().is_terminal() {
            command.env("CLICOLOR_FORCE", "1");
        }
        command
    }

    /// Runs a verb and returns what it prints.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(arguments)
            .stderr(Stdio::piped())
            .output()
            .context("start weir")?;
        ensure!(
            output.status.success(),
            "weir {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// `weir flows -f`, running on every node.
pub struct Flows {
    lines: Receiver<String>,
    _readers: Vec<Reader>,
}

struct Reader {
    child: Child,
    _guard: ChildGuard,
}

impl Flows {
    pub fn follow(verbs: &[Verb]) -> Result<Self> {
        let (sender, lines) = channel();
        let mut readers = Vec::new();
        for verb in verbs {
            let mut child = verb.command(&["flows", "-f"]).spawn().context("start weir flows")?;
            let guard = ChildGuard::new(i32::try_from(child.id())?);
            let output = child.stdout.take();
            readers.push(Reader { child, _guard: guard });
            let output = output.context("output of weir flows")?;
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self {
            lines,
            _readers: readers,
        })
    }

    /// Leaves out what has come so far and is still on its way.
    pub fn skip(&self) {
        while self.lines.recv_timeout(QUIET).is_ok() {}
    }

    /// The next lines, at most so many: openings and denials, not the ends of flows.
    pub fn lines(&self, limit: usize) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.len() < limit
            && let Ok(line) = self.lines.recv_timeout(QUIET)
        {
            if !line.contains(" ended after ") {
                lines.push(line);
            }
        }
        lines
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // It has nothing to clean up; if it is gone already, so much the better.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
