//! Certificates, of the proxy and of who it speaks with.
//!
//! They are read again while they are in use: connections that are there stay, those made from then
//! on see the new ones.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use mio::net::TcpStream;
use rustls::{
    ClientConfig, ClientConnection, InconsistentKeys, RootCertStore, ServerConfig,
    ServerConnection, StreamOwned,
    client::verify_server_name,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{
        CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, pem::PemObject as _,
    },
    server::{
        ClientHello, ParsedCertificate, ResolvesServerCert, VerifierBuilderError,
        WebPkiClientVerifier,
    },
    sign::CertifiedKey,
};

use super::tls::TlsSocket;
use crate::route::Address;

/// A certificate and its key, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate itself first, then those that lead to a root.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl CertificateFiles {
    fn unusable(&self, error: rustls::Error) -> TlsError {
        match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                let Self { certificate, key } = self.clone();
                TlsError::Mismatch { certificate, key }
            }
            error => error.into(),
        }
    }
}

/// Where a listener's certificates are, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// A client is shown the first one that is good for the name it asks for (SNI), else the first.
    pub own: Vec<CertificateFiles>,
    /// Who vouches for clients; None: clients show no certificates.
    pub clients: Option<ClientAuthority>,
}

/// Which certificates of clients are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAuthority {
    pub roots: PathBuf,
    /// Clients without a certificate are refused.
    pub required: bool,
}

/// What it takes to speak TLS with servers, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTlsFiles {
    /// Who vouches for servers.
    pub roots: PathBuf,
    /// What is shown to servers that ask for it.
    pub own: Option<CertificateFiles>,
}

/// Certificates that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} holds no {what}", path.display())]
    Missing { path: PathBuf, what: &'static str },
    #[error("{} is no root certificate", path.display())]
    Root { path: PathBuf, source: rustls::Error },
    #[error("the certificates of clients cannot be checked")]
    Clients(#[from] VerifierBuilderError),
    #[error("{} is not the key of {}", key.display(), certificate.display())]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("certificate and key cannot be used")]
    Pair(#[from] rustls::Error),
    #[error("{name:?} is no server's name")]
    Name { name: String, source: InvalidDnsNameError },
}

/// What was made of files.
#[derive(Debug)]
struct Made<T> {
    made: Arc<T>,
    /// What the files held.
    seen: Vec<Vec<u8>>,
}

/// What is made of files, and again when they change.
#[derive(Debug)]
struct Renewed<T>(RwLock<Made<T>>);

type Make<'a, T> = &'a dyn Fn(&mut Contents) -> Result<T, TlsError>;

impl<T> Renewed<T> {
    fn load(files: &[&Path], make: Make<T>) -> Result<Self, TlsError> {
        let seen = read(files)?;
        let made = Arc::new(make(&mut Contents::new(files, &seen))?);
        Ok(Self(RwLock::new(Made { made, seen })))
    }

    fn reload(&self, files: &[&Path], make: Make<T>) -> Result<bool, TlsError> {
        let seen = read(files)?;
        if self.0.read().unwrap_or_else(PoisonError::into_inner).seen == seen {
            return Ok(false);
        }
        let made = Arc::new(make(&mut Contents::new(files, &seen))?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Made { made, seen };
        Ok(true)
    }

    fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).made)
    }
}

fn read(files: &[&Path]) -> Result<Vec<Vec<u8>>, TlsError> {
    let read = |path: &&Path| {
        fs::read(path).map_err(|source| TlsError::Read { path: path.to_path_buf(), source })
    };
    files.iter().map(read).collect()
}

/// Files' contents, one after the other.
struct Contents<'a>(Box<dyn Iterator<Item = (&'a Path, &'a [u8])> + 'a>);

impl<'a> Contents<'a> {
    fn new(files: &'a [&'a Path], seen: &'a [Vec<u8>]) -> Self {
        Self(Box::new(files.iter().copied().zip(seen.iter().map(Vec::as_slice))))
    }

    fn next(&mut self) -> (&'a Path, &'a [u8]) {
        self.0.next().unwrap_or((Path::new(""), b""))
    }

    fn certificates(&mut self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let (path, text) = self.next();
        let all = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
        let all = all.ok().filter(|all| !all.is_empty());
        all.ok_or_else(|| TlsError::Missing { path: path.to_owned(), what: "certificate" })
    }

    fn key(&mut self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let (path, text) = self.next();
        let sealed = memchr::memmem::find(text, b"ENCRYPTED").is_some();
        let what = if sealed { "key that is not encrypted" } else { "key" };
        PrivateKeyDer::from_pem_slice(text)
            .map_err(|_| TlsError::Missing { path: path.to_owned(), what })
    }

    fn roots(&mut self) -> Result<RootCertStore, TlsError> {
        let (path, text) = self.next();
        let mut roots = RootCertStore::empty();
        for root in Self(Box::new([(path, text)].into_iter())).certificates()? {
            let failed = |source| TlsError::Root { path: path.to_owned(), source };
            roots.add(root).map_err(failed)?;
        }
        Ok(roots)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Makes TLS sessions of clients' connections. Shared by listeners.
#[derive(Debug)]
pub struct Acceptor {
    files: TlsFiles,
    config: Renewed<ServerConfig>,
}

impl Acceptor {
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let config = Renewed::load(&files.paths(), &|contents| files.config(contents))?;
        Ok(Self { files, config })
    }

    /// What they are made with.
    pub fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// Reads the files again; were they changed? On an error all stays as it is.
    pub fn reload(&self) -> Result<bool, TlsError> {
        self.config.reload(&self.files.paths(), &|contents| self.files.config(contents))
    }

    pub(super) fn accept(&self, stream: TcpStream) -> io::Result<TlsSocket> {
        let session = ServerConnection::new(self.config.get()).map_err(io::Error::other)?;
        Ok(TlsSocket::new(stream, session.into()))
    }
}

impl TlsFiles {
    fn paths(&self) -> Vec<&Path> {
        let roots = self.clients.iter().map(|authority| authority.roots.as_path());
        let own = self.own.iter().flat_map(|own| [own.certificate.as_path(), &own.key]);
        own.chain(roots).collect()
    }

    fn config(&self, contents: &mut Contents) -> Result<ServerConfig, TlsError> {
        let provider = provider();
        let mut own = Vec::new();
        for files in &self.own {
            let (chain, key) = (contents.certificates()?, contents.key()?);
            let made = CertifiedKey::from_der(chain, key, &provider);
            own.push(Arc::new(made.map_err(|error| files.unusable(error))?));
        }
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match &self.clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let roots = Arc::new(contents.roots()?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                let verifier =
                    if authority.required { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName(own)));
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        config.send_tls13_tickets = 1;
        Ok(config)
    }
}

/// Certificates by the name that a client asks for.
#[derive(Debug)]
struct ByName(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let good = |key: &&Arc<CertifiedKey>| {
            let certificate = key.end_entity_cert().and_then(ParsedCertificate::try_from);
            let (Ok(certificate), Some(name)) = (certificate, &name) else { return false };
            verify_server_name(&certificate, name).is_ok()
        };
        let named = if self.0.len() > 1 { self.0.iter().find(good) } else { None };
        named.or(self.0.first()).cloned()
    }
}

/// Makes TLS sessions of connections to servers.
#[derive(Debug)]
pub struct Connector {
    files: ServerTlsFiles,
    /// What their certificates must be good for; None: for the name, or the address, they have.
    name: Option<ServerName<'static>>,
    config: Renewed<ClientConfig>,
}

impl Connector {
    /// With a `name`, it is what all servers' certificates must be good for.
    pub fn load(files: ServerTlsFiles, name: Option<String>) -> Result<Self, TlsError> {
        let name = name.map(|name| {
            let named = ServerName::try_from(name.clone());
            named.map_err(|source| TlsError::Name { name, source })
        });
        let config = Renewed::load(&files.paths(), &|contents| files.config(contents))?;
        Ok(Self { name: name.transpose()?, config, files })
    }

    /// Reads the files again; were they changed? On an error all stays as it is.
    pub fn reload(&self) -> Result<bool, TlsError> {
        self.config.reload(&self.files.paths(), &|contents| self.files.config(contents))
    }

    /// `address` is what the server is known by, whatever it was resolved to.
    fn session(&self, address: &Address) -> io::Result<ClientConnection> {
        let name = match (&self.name, address) {
            (Some(name), _) => name.clone(),
            (None, Address::Tcp(address)) => ServerName::IpAddress(address.ip().into()),
            (None, Address::Name { host, .. }) => {
                ServerName::try_from(host.clone()).map_err(io::Error::other)?
            }
            (None, Address::Unix(_)) => return Err(io::ErrorKind::Unsupported.into()),
        };
        ClientConnection::new(self.config.get(), name).map_err(io::Error::other)
    }

    pub(super) fn connect(&self, stream: TcpStream, address: &Address) -> io::Result<TlsSocket> {
        Ok(TlsSocket::new(stream, self.session(address)?.into()))
    }

    /// Likewise, for a socket that waits.
    pub(crate) fn connect_waiting(
        &self,
        stream: std::net::TcpStream,
        address: &Address,
    ) -> io::Result<StreamOwned<ClientConnection, std::net::TcpStream>> {
        Ok(StreamOwned::new(self.session(address)?, stream))
    }
}

impl ServerTlsFiles {
    fn paths(&self) -> Vec<&Path> {
        let own = self.own.iter().flat_map(|own| [own.certificate.as_path(), &own.key]);
        [self.roots.as_path()].into_iter().chain(own).collect()
    }

    fn config(&self, contents: &mut Contents) -> Result<ClientConfig, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(contents.roots()?);
        Ok(match &self.own {
            None => builder.with_no_client_auth(),
            Some(files) => builder
                .with_client_auth_cert(contents.certificates()?, contents.key()?)
                .map_err(|error| files.unusable(error))?,
        })
    }
}
