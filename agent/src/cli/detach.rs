//! `weir detach`.
