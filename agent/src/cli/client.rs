//! A verb's end of the socket. Blocking: a verb does one thing.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use super::{
    error::CliError,
    protocol::{Request, Response, VERSION, Verb, socket_path},
};

/// How long an answer may take where nobody asked to wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// A conversation with the agent.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the agent of a run directory.
    ///
    /// # Errors
    /// [`CliError::NoAgent`] where nobody listens; no permission.
    pub fn connect(run_dir: &Path) -> Result<Self, CliError> {
        let path = socket_path(run_dir);
        match UnixStream::connect(&path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                Ok(Self {
                    reader: BufReader::new(stream),
                })
            }
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Err(CliError::NoAgent {
                    run_dir: run_dir.to_owned(),
                }),
                io::ErrorKind::PermissionDenied => Err(CliError::Failed {
                    message: format!("may not speak with the agent at {}", path.display()),
                    remedy: Some("run as root".to_owned()),
                }),
                _ => Err(CliError::Failed {
                    message: format!("cannot reach the agent at {}: {error}", path.display()),
                    remedy: None,
                }),
            },
        }
    }

    /// Waits for this long instead; None: for ever.
    ///
    /// # Errors
    /// As of `setsockopt`.
    pub fn patience(&mut self, patience: Option<Duration>) -> io::Result<()> {
        self.reader.get_ref().set_read_timeout(patience)
    }

    /// Asks, and gets the first line of the answer.
    ///
    /// # Errors
    /// The agent says why it cannot answer; it ended; it is another version.
    pub fn ask(&mut self, verb: Verb) -> Result<Response, CliError> {
        let mut line = serde_json::to_vec(&Request { version: VERSION, verb })?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line).map_err(gone)?;
        let Some(answer) = self.line()? else {
            return Err(CliError::failed("the agent ended the conversation without an answer"));
        };
        match serde_json::from_str(&answer) {
            Ok(Response::Error(error)) => Err(CliError::Failed {
                message: error.message,
                remedy: error.remedy,
            }),
            Ok(response) => Ok(response),
            Err(error) => Err(CliError::Failed {
                message: format!("cannot understand the agent's answer: {error}"),
                remedy: Some("use the weir binary that the agent runs from".to_owned()),
            }),
        }
    }

    /// The next line of a stream, without its newline; None at its end.
    ///
    /// # Errors
    /// Nothing came in time.
    pub fn line(&mut self) -> Result<Option<String>, CliError> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => Ok(None),
            Ok(_) => {
                line.truncate(line.trim_end_matches('\n').len());
                Ok(Some(line))
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(CliError::failed("the agent did not answer in time"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// True where lines have been received that nobody has read yet.
    #[must_use]
    pub fn has_more(&self) -> bool {
        self.reader.buffer().contains(&b'\n')
    }
}

/// A pipe that breaks here is the agent's, not the one that the output goes to.
fn gone(error: io::Error) -> CliError {
    CliError::failed(format!("the agent ended the conversation: {error}"))
}

/// An answer to another question.
#[must_use]
pub fn unexpected(response: &Response) -> CliError {
    CliError::failed(format!("the agent answered something else: {response:?}"))
}
