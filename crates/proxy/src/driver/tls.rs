//! TLS between a socket and the engine, which sees plain bytes only.
//!
//! Certificates are read again while clients are connected: who is there stays, who comes from then
//! on sees the new ones.

use std::{
    cell::RefCell,
    fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::Shutdown,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use mio::net::TcpStream;
use rustls::{
    RootCertStore, ServerConfig, ServerConnection,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{VerifierBuilderError, WebPkiClientVerifier},
};

/// Sealed bytes that one read may bring.
const SEALED_BYTES: usize = 64 << 10;
/// A record's plain bytes: what one that began before may add to what is read now.
const RECORD_BYTES_MAX: usize = 16 << 10;

thread_local! {
    /// Sealed bytes between the socket and the session, of whichever client is read just now.
    static SEALED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SEALED_BYTES].into_boxed_slice());
}

/// Where a listener's certificates are, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate first, then those that lead to a root.
    pub certificate: PathBuf,
    pub key: PathBuf,
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
    #[error("certificate and key cannot be used")]
    Pair(#[from] rustls::Error),
}

/// Makes TLS sessions of clients' connections. Shared by listeners.
#[derive(Debug)]
pub struct Acceptor {
    files: TlsFiles,
    current: RwLock<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    /// What the files held.
    seen: Vec<Vec<u8>>,
}

impl Acceptor {
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let current = RwLock::new(Current::load(&files)?);
        Ok(Self { files, current })
    }

    /// Reads the files again; were they changed? On an error all stays as it is.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let seen = contents(&self.files)?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).seen == seen {
            return Ok(false);
        }
        let loaded = Current::load(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = loaded;
        Ok(true)
    }

    pub(super) fn accept(&self, stream: TcpStream) -> io::Result<TlsSocket> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let config = Arc::clone(&current.config);
        drop(current);
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        Ok(TlsSocket { stream, session, ended: false })
    }
}

impl Current {
    fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let seen = contents(files)?;
        let mut texts = seen.iter();
        let mut next = || texts.next().map(Vec::as_slice).unwrap_or_default();
        let chain = certificates(&files.certificate, next())?;
        let key = PrivateKeyDer::from_pem_slice(next())
            .map_err(|_| TlsError::Missing { path: files.key.clone(), what: "key" })?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match &files.clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(&authority.roots, next())? {
                    let path = || authority.roots.clone();
                    roots.add(root).map_err(|source| TlsError::Root { path: path(), source })?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier =
                    if authority.required { verifier } else { verifier.allow_unauthenticated() };
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let mut config = builder.with_single_cert(chain, key)?;
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        config.send_tls13_tickets = 1;
        Ok(Self { config: Arc::new(config), seen })
    }
}

/// Certificate, key, roots.
fn contents(files: &TlsFiles) -> Result<Vec<Vec<u8>>, TlsError> {
    let roots = files.clients.iter().map(|authority| &authority.roots);
    let paths = [&files.certificate, &files.key].into_iter().chain(roots);
    let read = |path: &PathBuf| {
        fs::read(path).map_err(|source| TlsError::Read { path: path.clone(), source })
    };
    paths.map(read).collect()
}

fn certificates(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let all = all.ok().filter(|all| !all.is_empty());
    all.ok_or_else(|| TlsError::Missing { path: path.to_owned(), what: "certificate" })
}

/// A client's connection with its TLS session.
pub(super) struct TlsSocket {
    pub stream: TcpStream,
    session: ServerConnection,
    /// The client said that it won't send more.
    ended: bool,
}

impl TlsSocket {
    /// Plain bytes, and whether the socket was emptied. 0: the client sends no more.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        SEALED.with_borrow_mut(|sealed| {
            let mut filled = 0;
            loop {
                let room = buffer.len().saturating_sub(filled + RECORD_BYTES_MAX);
                let room = room.min(sealed.len());
                if room == 0 || self.ended {
                    return Ok((filled, false));
                }
                let place = sealed.get_mut(..room).unwrap_or_default();
                match self.stream.read(place) {
                    Ok(0) => return Ok((filled, false)),
                    Ok(count) => {
                        let came = place.get(..count).unwrap_or_default();
                        filled += self.open(came, buffer.get_mut(filled..).unwrap_or_default())?;
                        if filled > 0 && count < room {
                            return Ok((filled, true));
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if filled == 0 => return Err(error),
                    Err(error) => return Ok((filled, error.kind() == ErrorKind::WouldBlock)),
                }
            }
        })
    }

    /// Takes what came from the socket; how many plain bytes that gave. They find room, as a record
    /// is longer than what it holds.
    fn open(&mut self, mut sealed: &[u8], buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while !sealed.is_empty() && !self.ended {
            self.session.read_tls(&mut sealed)?;
            let state = match self.session.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    // The client is told what was wrong.
                    let _ = self.flush();
                    return Err(io::Error::new(ErrorKind::InvalidData, error));
                }
            };
            let mut reader = self.session.reader();
            while let Some(room) = buffer.get_mut(filled..)
                && let Ok(count @ 1..) = reader.read(room)
            {
                filled += count;
            }
            self.ended = state.peer_has_closed();
        }
        self.flush()?;
        Ok(filled)
    }

    /// Seals plain bytes and writes them; how many were taken. What was taken and could not be
    /// written is kept: see [`TlsSocket::holds`].
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while self.flush()? {
            let rest = bytes.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                return Ok(taken);
            }
            taken += self.session.writer().write(rest)?;
        }
        if taken == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Is there something that the socket did not take yet?
    pub fn holds(&self) -> bool {
        self.session.wants_write()
    }

    /// Writes what there is; was that all?
    pub fn flush(&mut self) -> io::Result<bool> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Says that nothing more will come.
    pub fn finish(&mut self) {
        self.session.send_close_notify();
        if matches!(self.flush(), Ok(true)) {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }
}
