//! `keyfleet proxy --twemproxy`: a ring of servers as twemproxy has it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::ValueEnum;
use proxy::{driver::Connector, route::EjectionMode};

use super::context::{Context, problem};
use crate::{
    errors::{Exit, Failure},
    twemproxy::{self, ControlError, Options, ServiceError},
};

// As a group it would have the name of the command's own arguments.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Serve the pools of a twemproxy's configuration file instead; SIGHUP, or changing it, has it
    /// read again
    #[arg(long, value_name = "NUTCRACKER.YML", conflicts_with = "listen")]
    pub twemproxy: Option<PathBuf>,
    /// Where twemproxy's stats are given away
    #[arg(long, value_name = "HOST:PORT", requires = "twemproxy")]
    stats: Option<String>,
    /// Who serves the keys of a server that is ejected
    #[arg(long, value_name = "HOW", default_value = "rering", requires = "twemproxy")]
    ejected: Ejected,
}

/// See [`EjectionMode`].
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Ejected {
    /// The others, as in twemproxy
    Rering,
    /// Nobody: an error at once
    Error,
}

/// Serves the pools of a file until it is to end.
pub async fn serve(
    context: &Context,
    file: &Path,
    (threads, memory_max): (usize, usize),
    tls: Option<Arc<Connector>>,
    args: &Args,
) -> Result<Exit, Failure> {
    let ejected = match args.ejected {
        Ejected::Rering => EjectionMode::Rering,
        Ejected::Error => EjectionMode::Refuse,
    };
    let stats = args.stats.as_deref().map(|text| {
        let split = text.rsplit_once(':');
        let place = split.and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
        place.ok_or_else(|| {
            Failure::user(format!("no address: {text:?}")).hint("such as 127.0.0.1:22222")
        })
    });
    let setup = twemproxy::Setup {
        file: file.to_owned(),
        options: Options { threads, ejected, memory_max, tls },
        stats: stats.transpose()?,
    };
    let started = |service: &twemproxy::Service| {
        for (name, address) in service.listens() {
            context.printer.note(&format!("Serving {name} at {address}."));
        }
    };
    twemproxy::run(setup, started, |_| {}).await?;
    Ok(Exit::Done)
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Spec { text, errors } => {
                Self::user_all(errors.0.iter().map(|error| problem(error, &text)).collect())
            }
            ControlError::Read { path, source } => Self::file("read", &path, &source),
            ControlError::Service(ServiceError::Listen { .. }) | ControlError::Stats { .. } => {
                Self::of(&error).hint("somebody else may listen there: ss -ltnp")
            }
            error => Self::of(&error),
        }
    }
}
