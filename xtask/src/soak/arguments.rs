//! What the verb can be told; shared by the verb and the program behind it.

#[derive(clap::Args)]
pub struct Arguments {
    /// How long to go on, in minutes; a round that has begun is finished
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    pub minutes: u64,
}
