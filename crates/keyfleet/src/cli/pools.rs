//! `keyfleet proxy --twemproxy`: a ring of servers as twemproxy has it.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use clap::ValueEnum;
use proxy::{
    driver::Connector,
    route::{Address, EjectionMode},
};
use tokio::task::spawn_blocking;

use super::{
    context::{Context, problem},
    proxy::{FIGURES, SERVERS, address, ended, tls::Files},
    signals,
};
use crate::{
    errors::{Exit, Failure},
    proxy::{Service, users::UsersFile},
    twemproxy::{self, ControlError, End, Options, ServiceError, Setup, TlsListen},
};

// As a group it would have the name of the command's own arguments.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Serve the pools of a twemproxy's configuration file instead; SIGHUP, or changing it, has it
    /// read again
    #[arg(help_heading = SERVERS, long, value_name = "NUTCRACKER.YML", conflicts_with = "listen")]
    pub twemproxy: Option<PathBuf>,
    /// Where twemproxy's stats are given away
    #[arg(help_heading = FIGURES, long, value_name = "HOST:PORT", requires = "twemproxy", value_parser = address)]
    stats: Option<Address>,
    /// Who serves the keys of a server that is ejected
    #[arg(help_heading = SERVERS, long, value_name = "HOW", default_value = "rering", requires = "twemproxy")]
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

/// What holds for pools as for a cluster.
pub struct Common {
    pub threads: usize,
    pub tls: Option<Arc<Connector>>,
    pub tls_listen: Option<TlsListen>,
    pub service: Service,
    /// Of whom `service` was told already.
    pub users: Option<UsersFile>,
    pub metrics: Option<Address>,
    pub takeover: Option<PathBuf>,
    pub drain: Duration,
}

/// Serves the pools of a file until it is to end.
pub async fn serve(
    context: &Context,
    file: PathBuf,
    args: Args,
    common: Common,
) -> Result<Exit, Failure> {
    let ejected = match args.ejected {
        Ejected::Rering => EjectionMode::Rering,
        Ejected::Error => EjectionMode::Refuse,
    };
    let Common { threads, tls, tls_listen, service, users, metrics, takeover, drain } = common;
    let (connector, hangup) = (tls.clone(), signals::hangup()?);
    let options = Options { threads, ejected, tls, tls_listen, service };
    let setup = Setup { file, options, stats: args.stats, metrics, takeover };
    let started = |service: &twemproxy::Service| {
        for (name, address, tls) in service.listens() {
            let with = if tls { " with TLS" } else { "" };
            context.printer.note(&format!("Serving {name}{with} at {address}."));
        }
        let acceptor = service.acceptor().cloned();
        let users = users.map(|users| (users, service.admission()));
        if acceptor.is_some() || connector.is_some() || users.is_some() {
            tokio::spawn(Files { acceptor, connector, users }.renew(hangup));
        }
    };
    let (end, service) = twemproxy::run(setup, started, |_| {}).await?;
    let ending = move || -> io::Result<()> {
        match end {
            End::HandedOver => {
                tracing::info!("another proxy took over");
                service.hand_over(drain, drain)
            }
            End::Interrupt | End::Terminate => service.drain(drain),
        }
    };
    ended(spawn_blocking(ending)).await
}

impl From<ControlError> for Failure {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Spec { text, errors } => {
                Self::user_all(errors.0.iter().map(|error| problem(error, &text)).collect())
            }
            ControlError::Read { path, source } => Self::file("read", &path, &source),
            ControlError::Service(ServiceError::Listen { .. }) | ControlError::Figures { .. } => {
                Self::of(&error).hint("somebody else may listen there: ss -ltnp")
            }
            ControlError::Service(
                error @ (ServiceError::WhichPool { .. } | ServiceError::NoPool { .. }),
            ) => Self::user(error.to_string()).hint("such as --tls-listen POOL=0.0.0.0:6380"),
            error => Self::of(&error),
        }
    }
}
