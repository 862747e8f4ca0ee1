//! Sockets of both families.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileTypeExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use mio::{
    Interest, Registry, Token,
    event::Source as _,
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket as RawSocket, Type};

use super::{
    certificates::{Acceptor, Connector},
    crowd::{Crowd, Seat},
    tls::TlsSocket,
};
use crate::route::Address;

/// What a client is told for whom there is no place.
const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";

/// A connection.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsSocket>),
}

impl Socket {
    /// Begins to connect; `resolved` is what a name's address is.
    pub fn connect(
        address: &Address,
        resolved: Option<SocketAddr>,
        tls: Option<&Connector>,
    ) -> io::Result<Self> {
        let at = match address {
            Address::Tcp(address) => Some(*address),
            Address::Name { .. } => resolved,
            Address::Unix(path) => return Ok(Self::Unix(UnixStream::connect(path)?)),
        };
        let stream = TcpStream::connect(at.ok_or(io::ErrorKind::NotFound)?)?;
        stream.set_nodelay(true)?;
        match tls {
            None => Ok(Self::Tcp(stream)),
            Some(tls) => Ok(Self::Tls(Box::new(tls.connect(stream, address)?))),
        }
    }

    /// Is it connected, but not ready for anything to be written?
    pub fn opening(&self) -> bool {
        matches!(self, Self::Tls(socket) if socket.opening())
    }

    /// Who is at the other end; none for a path.
    pub fn peer_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok(),
            Self::Tls(socket) => socket.stream.peer_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// The address of ours that it is connected to; none for a path.
    pub fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Tls(socket) => socket.stream.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    pub fn register(
        &mut self,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.register(registry, token, interest),
            Self::Unix(stream) => stream.register(registry, token, interest),
            Self::Tls(socket) => socket.stream.register(registry, token, interest),
        }
    }

    /// No events any more.
    pub fn deregister(&mut self, registry: &Registry) {
        // Without it there would be events for whoever gets the token next; they do no harm.
        let _ = match self {
            Self::Tcp(stream) => stream.deregister(registry),
            Self::Unix(stream) => stream.deregister(registry),
            Self::Tls(socket) => socket.stream.deregister(registry),
        };
    }

    /// How many bytes came, 0 at the end, and whether they were all that there are for now.
    #[inline]
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        let count = match self {
            Self::Tcp(stream) => stream.read(buffer)?,
            Self::Unix(stream) => stream.read(buffer)?,
            Self::Tls(socket) => return socket.read(buffer),
        };
        Ok((count, count < buffer.len()))
    }

    #[inline]
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
            Self::Tls(socket) => socket.write(bytes),
        }
    }

    /// Was something taken that is not written yet?
    #[inline]
    pub fn holds(&self) -> bool {
        matches!(self, Self::Tls(socket) if socket.holds())
    }

    /// Writes what it can of that.
    pub fn flush(&mut self) -> io::Result<()> {
        if let Self::Tls(socket) = self {
            socket.flush()?;
        }
        Ok(())
    }

    /// Says that nothing more will come, after what it holds.
    pub fn finish(&mut self) {
        // Who is gone already need not be told.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Self::Unix(stream) => stream.shutdown(Shutdown::Write),
            Self::Tls(socket) => {
                socket.finish();
                Ok(())
            }
        };
    }

    /// Tells a client that there is no place for it, as far as that goes without waiting.
    pub fn refuse(&mut self) {
        let _ = match self {
            Self::Tcp(stream) => stream.write(TOO_MANY),
            Self::Unix(stream) => stream.write(TOO_MANY),
            Self::Tls(_) => Ok(0),
        };
    }

    /// Why the connection could not be made; fine when it could.
    pub fn failure(&self) -> io::Result<()> {
        let error = match self {
            Self::Tcp(stream) => stream.take_error()?,
            Self::Unix(stream) => stream.take_error()?,
            Self::Tls(socket) => socket.stream.take_error()?,
        };
        error.map_or(Ok(()), Err)
    }
}

/// Something that clients connect to.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    address: Address,
    terms: Terms,
}

/// Who may come in at a listener, and how.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Over TCP with TLS; a path is served without.
    pub tls: Option<Arc<Acceptor>>,
    pub crowd: Option<Arc<Crowd>>,
    /// Load balancers connect clients here, and say whose a connection is first (PROXY protocol).
    pub balanced: bool,
}

impl Terms {
    /// A client that may begin.
    pub(super) fn admit(&self, stream: TcpStream) -> io::Result<Socket> {
        match &self.tls {
            None => Ok(Socket::Tcp(stream)),
            Some(acceptor) => Ok(Socket::Tls(Box::new(acceptor.accept(stream)?))),
        }
    }
}

/// There are as many clients as may be.
pub(super) struct Full;

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A listening socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub struct ListenError {
    pub address: Address,
    pub source: io::Error,
}

impl Listener {
    /// Listeners at an address, one for each of so many threads. TCP's share the port, and the
    /// kernel deals the clients out; a path's share the socket. `mode` is the path's permissions.
    pub fn bind(
        address: &Address,
        threads: usize,
        backlog: i32,
        mode: Option<u32>,
    ) -> Result<Vec<Self>, ListenError> {
        let made = match address {
            Address::Unix(path) => unix(path, threads, backlog, mode),
            _ => tcp(address, threads, backlog),
        };
        made.map_err(|source| ListenError { address: address.clone(), source })
    }

    /// Whether the kernel sees to it that clients are still there (SO_KEEPALIVE). Clients that
    /// connect from now on have it from their listener.
    pub fn set_keepalive(&self, on: bool) -> io::Result<()> {
        match &self.kind {
            Kind::Tcp(listener) => SockRef::from(listener).set_keepalive(on),
            Kind::Unix(_) => Ok(()),
        }
    }

    /// The same listener for some clients only.
    #[must_use]
    pub fn with_terms(self, terms: Terms) -> Self {
        Self { terms, ..self }
    }

    /// A place for one more client; None: they are not counted.
    pub(super) fn seat(&self) -> Result<Option<Seat>, Full> {
        match &self.terms.crowd {
            None => Ok(None),
            Some(crowd) => crowd.enter().map(Some).ok_or(Full),
        }
    }

    /// Where it really listens: a port 0 was replaced.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Listeners for so many threads at least, from sockets that another process listened with.
    pub fn inherit(sockets: Vec<OwnedFd>, threads: usize) -> io::Result<Vec<Self>> {
        let mut listeners = Vec::new();
        for number in sockets.len()..threads {
            // There are none more; threads share them.
            let Some(socket) = sockets.get(number % sockets.len().max(1)) else { break };
            listeners.push(Self::of(socket.try_clone()?)?);
        }
        for socket in sockets {
            listeners.push(Self::of(socket)?);
        }
        Ok(listeners)
    }

    fn of(socket: OwnedFd) -> io::Result<Self> {
        let address = listening_address(&socket)?;
        let kind = match &address {
            Address::Unix(_) => Kind::Unix(UnixListener::from_std(socket.into())),
            _ => Kind::Tcp(TcpListener::from_std(socket.into())),
        };
        Ok(Self { kind, address, terms: Terms::default() })
    }

    /// Its socket once more, to be passed on.
    pub fn share(&self) -> io::Result<OwnedFd> {
        match &self.kind {
            Kind::Tcp(listener) => listener.as_fd().try_clone_to_owned(),
            Kind::Unix(listener) => listener.as_fd().try_clone_to_owned(),
        }
    }

    pub(super) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.kind {
            Kind::Tcp(listener) => listener.register(registry, token, Interest::READABLE),
            Kind::Unix(listener) => listener.register(registry, token, Interest::READABLE),
        }
    }

    pub(super) fn deregister(&mut self, registry: &Registry) {
        // It was registered, so it can be.
        let _ = match &mut self.kind {
            Kind::Tcp(listener) => listener.deregister(registry),
            Kind::Unix(listener) => listener.deregister(registry),
        };
    }

    /// A connection and where it comes from. Where [`Terms::balanced`], it has to be admitted yet.
    pub(super) fn accept(&self) -> io::Result<(Socket, Option<SocketAddr>)> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, from) = listener.accept()?;
                stream.set_nodelay(true)?;
                let socket = if self.terms.balanced {
                    Socket::Tcp(stream)
                } else {
                    self.terms.admit(stream)?
                };
                Ok((socket, Some(from)))
            }
            Kind::Unix(listener) => Ok((Socket::Unix(listener.accept()?.0), None)),
        }
    }

    pub(super) fn terms(&self) -> &Terms {
        &self.terms
    }
}

/// Where a socket listens.
pub fn listening_address(socket: &impl AsFd) -> io::Result<Address> {
    let address = SockRef::from(socket).local_addr()?;
    let path = || address.as_pathname().map(|path| Address::Unix(path.to_owned()));
    let address = address.as_socket().map(Address::Tcp).or_else(path);
    address.ok_or_else(|| io::ErrorKind::Unsupported.into())
}

fn tcp(address: &Address, threads: usize, backlog: i32) -> io::Result<Vec<Listener>> {
    let mut wanted = match address {
        Address::Tcp(address) => *address,
        Address::Name { host, port } => {
            let mut found = std::net::ToSocketAddrs::to_socket_addrs(&(host.as_str(), *port))?;
            found.next().ok_or(io::ErrorKind::AddrNotAvailable)?
        }
        Address::Unix(_) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut listeners = Vec::new();
    for number in 0..threads.max(1) {
        let socket =
            RawSocket::new(Domain::for_address(wanted), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if threads > 1 && number > 0 {
            socket.set_reuse_port(true)?;
        } else if threads > 1 {
            // The first one tells whether somebody else has the address already.
            let probe = RawSocket::new(Domain::for_address(wanted), Type::STREAM, None)?;
            probe.set_reuse_address(true)?;
            probe.bind(&SockAddr::from(wanted))?;
            drop(probe);
            socket.set_reuse_port(true)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&SockAddr::from(wanted))?;
        socket.listen(backlog)?;
        let listener = TcpListener::from_std(socket.into());
        wanted = listener.local_addr()?;
        listeners.push(Listener {
            kind: Kind::Tcp(listener),
            address: Address::Tcp(wanted),
            terms: Terms::default(),
        });
    }
    Ok(listeners)
}

fn unix(path: &Path, threads: usize, backlog: i32, mode: Option<u32>) -> io::Result<Vec<Listener>> {
    // What a process left behind that is no more.
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
        && std::os::unix::net::UnixStream::connect(path).is_err()
    {
        fs::remove_file(path)?;
    }
    let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    socket.set_nonblocking(true)?;
    socket.listen(backlog)?;
    let address = Address::Unix(PathBuf::from(path));
    let first: std::os::unix::net::UnixListener = std::os::fd::OwnedFd::from(socket).into();
    let mut listeners = Vec::new();
    for _ in 1..threads {
        let kind = Kind::Unix(UnixListener::from_std(first.try_clone()?));
        listeners.push(Listener { kind, address: address.clone(), terms: Terms::default() });
    }
    listeners.push(Listener {
        kind: Kind::Unix(UnixListener::from_std(first)),
        address,
        terms: Terms::default(),
    });
    Ok(listeners)
}
