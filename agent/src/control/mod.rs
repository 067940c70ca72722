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
