//! TLS to clients and to servers: what is said of it on the command line, and files that change.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ::proxy::{
    driver::{
        Acceptor, CertificateFiles, ClientAuthority, Connector, ServerTlsFiles, TlsError, TlsFiles,
    },
    route::Address,
};
use tokio::{
    signal::unix::Signal,
    task::block_in_place,
    time::{MissedTickBehavior, interval},
};

use super::address;
use crate::{
    errors::Failure,
    proxy::{
        self, certificates,
        users::{Admission, UsersFile},
    },
    twemproxy,
};

/// How often certificates are looked at.
const LOOK: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Clients with TLS")]
#[expect(clippy::struct_field_names, reason = "named as the flags are")]
pub struct ClientArgs {
    /// Where clients connect with TLS, several separated by commas; with pools: whose they are,
    /// POOL=ADDRESS. SIGHUP, or changing them, has the certificates read again
    #[arg(long, value_name = "ADDRESS", requires_all = ["tls_cert", "tls_key"],
        value_delimiter = ',', value_parser = place)]
    pub tls_listen: Vec<(Option<String>, Address)>,
    /// The proxy's certificate (PEM), those that lead to a root after it; several, each with a key,
    /// are chosen from by the name that a client asks for
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    tls_cert: Vec<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    tls_key: Vec<PathBuf>,
    /// Who vouches for clients (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    tls_client_ca: Option<PathBuf>,
    /// Serve clients without a certificate too
    #[arg(long, requires = "tls_client_ca")]
    tls_client_optional: bool,
}

impl ClientArgs {
    /// Where to listen, and with which certificates.
    pub fn read(&self) -> Result<Option<proxy::TlsListen>, Failure> {
        let Some(files) = self.files()? else { return Ok(None) };
        if let Some(pool) = self.tls_listen.iter().find_map(|(pool, _)| pool.as_ref()) {
            return Err(Failure::user(format!("a cluster has no pool {pool}"))
                .hint("give it an address: --tls-listen 0.0.0.0:6380"));
        }
        let addresses = self.tls_listen.iter().map(|(_, address)| address.clone());
        Ok(Some((addresses.collect(), files)))
    }

    /// Likewise, and for whose clients.
    pub fn of_pools(&self) -> Result<Option<twemproxy::TlsListen>, Failure> {
        let places = self.tls_listen.clone();
        Ok(self.files()?.map(|files| twemproxy::TlsListen { places, files }))
    }

    fn files(&self) -> Result<Option<TlsFiles>, Failure> {
        if self.tls_listen.is_empty() {
            return Ok(None);
        }
        if self.tls_cert.len() != self.tls_key.len() {
            let (certificates, keys) = (self.tls_cert.len(), self.tls_key.len());
            return Err(Failure::user(format!("{certificates} certificates and {keys} keys"))
                .hint("give each certificate its key: --tls-cert FILE --tls-key FILE"));
        }
        let pair = |(certificate, key): (&PathBuf, &PathBuf)| CertificateFiles {
            certificate: certificate.clone(),
            key: key.clone(),
        };
        let authority = |roots: &PathBuf| ClientAuthority {
            roots: roots.clone(),
            required: !self.tls_client_optional,
        };
        let own = self.tls_cert.iter().zip(&self.tls_key).map(pair).collect();
        let clients = self.tls_client_ca.as_ref().map(authority);
        Ok(Some(TlsFiles { own, clients }))
    }
}

/// `ADDRESS` or `POOL=ADDRESS`.
fn place(text: &str) -> Result<(Option<String>, Address), &'static str> {
    match text.split_once('=') {
        None => Ok((None, address(text)?)),
        Some((pool, text)) => Ok((Some(pool.to_owned()), address(text)?)),
    }
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Servers with TLS")]
pub struct ServerArgs {
    /// Speak TLS with servers; who vouches for them (PEM). Read again as the proxy's own are
    #[arg(long, value_name = "FILE")]
    server_tls_ca: Option<PathBuf>,
    /// The certificate to show to servers that ask for one (PEM)
    #[arg(long, value_name = "FILE", requires_all = ["server_tls_ca", "server_tls_key"])]
    server_tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "server_tls_cert")]
    server_tls_key: Option<PathBuf>,
    /// The name that all servers' certificates must be good for, instead of each one's own name or
    /// address
    #[arg(long, value_name = "NAME", requires = "server_tls_ca")]
    tls_server_name: Option<String>,
}

impl ServerArgs {
    pub fn load(&self) -> Result<Option<Arc<Connector>>, Failure> {
        let Some(roots) = self.server_tls_ca.clone() else { return Ok(None) };
        let own = self.server_tls_cert.clone().zip(self.server_tls_key.clone());
        let own = own.map(|(certificate, key)| CertificateFiles { certificate, key });
        let connector =
            Connector::load(ServerTlsFiles { roots, own }, self.tls_server_name.clone());
        let failed = |error| Failure::user("cannot speak TLS with servers").because(&error);
        Ok(Some(Arc::new(connector.map_err(failed)?)))
    }
}

/// What is read from files.
#[derive(Default)]
pub struct Files {
    pub acceptor: Option<Arc<Acceptor>>,
    pub connector: Option<Arc<Connector>>,
    pub users: Option<(UsersFile, Admission)>,
}

impl Files {
    fn reload(&self) -> Result<bool, TlsError> {
        let own = self.acceptor.as_ref().map_or(Ok(false), |acceptor| acceptor.reload());
        let servers = self.connector.as_ref().map_or(Ok(false), |connector| connector.reload());
        Ok(own? | servers?)
    }

    /// Reads them again when they change, or when somebody says so.
    pub async fn renew(mut self, mut hangup: Signal) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = String::new();
        loop {
            let asked = tokio::select! {
                _ = looks.tick() => false,
                _ = hangup.recv() => true,
            };
            if asked {
                last.clear();
            }
            certificates::note(block_in_place(|| self.reload()), &mut last);
            if let Some((users, admission)) = &mut self.users {
                block_in_place(|| users.follow(admission, asked));
            }
        }
    }
}
