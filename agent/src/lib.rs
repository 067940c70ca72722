//! Weir: network policy for one Kubernetes node, enforced with eBPF.

pub mod object;
