//! What the demo can be told; shared by the verb and the program behind it.

#[derive(clap::Args)]
pub struct Arguments {
    /// Wait for Enter after each step
    #[arg(long)]
    pub pause: bool,

    /// Play it in a real Kubernetes cluster, with pods that kubelets run (takes Go; the first time, some minutes more)
    #[arg(long)]
    pub cluster: bool,
}
