//! Kubernetes, Calico and ClusterNetworkPolicy objects -> the policy model. Parsing and validation end here.
