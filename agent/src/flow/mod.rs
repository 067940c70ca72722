//! Kernel events -> records with names -> sinks.
