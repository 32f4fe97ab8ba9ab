//! The log on stderr.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use super::one_line::{Escape, OneLine};
use crate::config::{Config, LogFormat};
use crate::reload::SetLogLevel;
use crate::server::LibraryLines;

/// Begins to log, as `config` says. What is returned sets the level anew.
///
/// # Errors
/// One line for the operator.
pub fn init(config: &Config) -> Result<SetLogLevel, String> {
    let filter = EnvFilter::try_new(&config.log_level)
        .map_err(|error| format!("log-level {:?}: {error}", config.log_level))?;
    let (filter, handle) = tracing_subscriber::reload::Layer::new(filter);
    let colours = std::io::stderr().is_terminal();
    let escape = match config.log_format {
        LogFormat::Json => Escape::Json,
        LogFormat::Text if colours => Escape::Coloured,
        LogFormat::Text => Escape::Text,
    };
    let writer = move || OneLine::new(std::io::stderr(), escape);
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    let layer = match config.log_format {
        LogFormat::Text => layer.with_ansi(colours).boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .boxed(),
    };
    tracing_subscriber::registry()
        .with(filter)
        .with(layer.with_filter(LibraryLines::default()))
        .init();
    Ok(Box::new(move |level| {
        let filter = EnvFilter::try_new(level);
        let filter = filter.map_err(|error| format!("log-level {level:?}: {error}"))?;
        handle.reload(filter).map_err(|error| error.to_string())?;
        spdk::log_level_has_changed();
        Ok(())
    }))
}
