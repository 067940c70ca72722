//! What the agent logs, and how. To standard error: standard output may be the flow log.
//!
//! Never a line per packet or flow: those are events and counters.

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, util::SubscriberInitExt};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    Off,
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Off => Self::OFF,
            LogLevel::Error => Self::ERROR,
            LogLevel::Warn => Self::WARN,
            LogLevel::Info => Self::INFO,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Trace => Self::TRACE,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Sets up logging for the process. `RUST_LOG`, where it is set, refines the level by module.
///
/// # Errors
/// `RUST_LOG` cannot be understood; called twice.
pub fn init(level: LogLevel, format: LogFormat) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::from(level).into())
        .from_env()?;
    // Of the HTTP client's steps only what goes wrong, unless RUST_LOG asks for them.
    let filter = if std::env::var_os(EnvFilter::DEFAULT_ENV).is_none() && level != LogLevel::Trace {
        ["hyper_util", "kube_client", "tower", "rustls"]
            .iter()
            .filter(|_| LevelFilter::from(level) > LevelFilter::WARN)
            .filter_map(|crate_name| format!("{crate_name}=warn").parse().ok())
            // What it says of requests that fail names neither server nor remedy, once for each attempt of each watch; the
            // source says it itself, once.
            .chain("kube_client::client::builder=off".parse().ok())
            .fold(filter, EnvFilter::add_directive)
    } else {
        filter
    };
    let stderr = fmt::layer().with_writer(std::io::stderr);
    let layer: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => stderr
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_target(false)
            .boxed(),
        LogFormat::Json => stderr.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()?;
    Ok(())
}
