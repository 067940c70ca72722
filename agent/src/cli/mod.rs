//! The verbs of the `weir` binary, one file each.
