//! A directory of manifests as a source.
//!
//! | file | what |
//! |---|---|
//! | `walk` | the manifest files below a directory |

mod walk;

pub use walk::files_below;
