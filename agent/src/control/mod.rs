//! The loop that wires the rooms: objects in, plans executed, questions answered.
//!
//! | file | what |
//! |---|---|
//! | `explain` | what a flow would meet, and why |
//! | `options` | what `weir agent` was told |
//! | `query` | the questions that the loop answers, and the shapes of the answers |

pub mod explain;
pub mod options;
pub mod query;

/// Runs the agent until it is told to end.
///
/// # Errors
/// What keeps it from starting, or ends it.
pub async fn run(options: options::AgentOptions) -> anyhow::Result<()> {
    anyhow::bail!("node {}: this build has no control loop yet", options.node)
}
