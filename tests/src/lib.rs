//! What the integration tests and the demo share: a lab of network namespaces, the driver of agents in it, and the
//! runner of conformance cases.

pub mod api_world;
pub mod binary;
pub mod chart;
pub mod churn;
pub mod cluster;
pub mod conformance;
pub mod connection;
pub mod e2e;
pub mod hooks;
pub mod kernel;
pub mod lab;
pub mod nanoseconds;
pub mod packet;
pub mod plan;
pub mod promql;
pub mod scrape;
pub mod soak;
pub mod testrun;
pub mod tiers;
pub mod traffic;
pub mod world;
