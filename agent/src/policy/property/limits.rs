//! The known worst cases, with their limits (docs/limits.md).
