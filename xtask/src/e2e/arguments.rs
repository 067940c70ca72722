//! What the verb can be told; shared by the verb and the program behind it.

use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Arguments {
    /// Use the cluster of this kubeconfig, whose nodes run on this machine and have the images already
    #[arg(long, value_name = "FILE", group = "where")]
    pub kubeconfig: Option<PathBuf>,

    /// Use the cluster that `cargo xtask cluster up` has made; images are loaded into it
    #[arg(long, value_name = "NAME", group = "where")]
    pub cluster: Option<String>,

    /// Use a new cluster of kind (takes kind and Docker)
    #[arg(long, group = "where")]
    pub kind: bool,

    /// Use a new cluster of minikube (takes minikube and Docker)
    #[arg(long, group = "where")]
    pub minikube: bool,

    /// Run everything, with every CNI, instead of what continuous integration runs
    #[arg(long)]
    pub all: bool,

    /// Run Kubernetes' own NetworkPolicy suite instead
    #[arg(long, conflicts_with_all = ["all", "filters"])]
    pub upstream: bool,

    /// Run these cases only; a wrong name shows all
    #[arg(value_name = "CASE")]
    pub filters: Vec<String>,
}
