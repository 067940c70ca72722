//! The cluster's current objects, and what of them the compiler must be told.
