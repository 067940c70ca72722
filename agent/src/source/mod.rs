//! Where objects come from: the Kubernetes API, or a directory of manifests.
