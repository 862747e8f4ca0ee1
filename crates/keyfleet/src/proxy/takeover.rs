//! One proxy after the other at the same addresses, with nobody refused between them: the new one
//! is given the listening sockets of the old one, which ends once the new one serves.
//!
//! The old one waits at a path. Who connects there is sent the sockets at once, and says when it
//! serves; if it never does, all stays as it was.

use std::{
    fs,
    future::pending,
    io::{self, ErrorKind, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::{self, MaybeUninit},
    net::ToSocketAddrs as _,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use proxy::{driver::listening_address, route::Address};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::{net::TcpListener, sync::oneshot};

/// The kernel passes no more at once.
const SOCKETS_MAX: usize = 253;
/// How long a new proxy may take until it serves.
const START: Duration = Duration::from_secs(30);
/// What the new one says then.
const SERVES: u8 = b'S';

/// Sockets of the proxy that is to end.
pub struct Taken {
    former: UnixStream,
    sockets: Sockets,
}

/// Asks the proxy that waits at `path` for its sockets; None: there is none.
pub fn take(path: &Path) -> io::Result<Option<Taken>> {
    let former = match UnixStream::connect(path) {
        Ok(former) => former,
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    former.set_read_timeout(Some(START))?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut count = [0];
    let received = recvmsg(
        &former,
        &mut [IoSliceMut::new(&mut count)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut sockets = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            for socket in passed {
                sockets.push((listening_address(&socket)?, socket));
            }
        }
    }
    if received.bytes == 0 || sockets.len() != usize::from(count[0]) {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(Taken { former, sockets: Sockets(sockets) }))
}

/// Sockets that the proxy before listened with, by where.
#[derive(Debug, Default)]
pub struct Sockets(Vec<(Address, OwnedFd)>);

impl Sockets {
    /// Takes those at an address; none: nobody listened there.
    pub fn at(&mut self, address: &Address) -> Vec<OwnedFd> {
        let resolved: Vec<Address> = match address {
            Address::Name { host, port } => {
                let found = (host.as_str(), *port).to_socket_addrs();
                found.into_iter().flatten().map(Address::Tcp).collect()
            }
            address => vec![address.clone()],
        };
        let at = |(place, _): &mut (Address, OwnedFd)| resolved.contains(place);
        self.0.extract_if(.., at).map(|(_, socket)| socket).collect()
    }
}

impl Taken {
    /// All that were not asked for yet, for a proxy to listen with.
    pub fn rest(&mut self) -> Sockets {
        mem::take(&mut self.sockets)
    }

    /// Has the old proxy end: all that it listened for is served here.
    pub fn serves(mut self) -> io::Result<()> {
        self.former.write_all(&[SERVES])
    }
}

/// Listens there for anything but clients: with the socket of the proxy before, where it had one.
pub async fn listener(address: &Address, taken: Option<&mut Taken>) -> io::Result<TcpListener> {
    let inherited = taken.and_then(|taken| taken.sockets.at(address).pop());
    match (inherited, address) {
        (Some(socket), _) => TcpListener::from_std(socket.into()),
        (None, Address::Tcp(address)) => TcpListener::bind(address).await,
        (None, Address::Name { host, port }) => TcpListener::bind((host.as_str(), *port)).await,
        (None, Address::Unix(_)) => Err(ErrorKind::Unsupported.into()),
    }
}

/// What the next proxy is given: what there is when it asks.
pub type Offered = Arc<Mutex<Vec<OwnedFd>>>;

/// Waits at `path`, in the place of whoever did before, for a proxy that takes `sockets`. The answer
/// comes once it serves.
pub fn offer(path: &Path, sockets: Offered) -> io::Result<oneshot::Receiver<()>> {
    // Moved there, so that there is never nobody.
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", process::id()));
    let own = PathBuf::from(name);
    let _ = fs::remove_file(&own);
    let listener = UnixListener::bind(&own)?;
    fs::set_permissions(&own, fs::Permissions::from_mode(0o600))?;
    fs::rename(&own, path)?;
    let (taken, answer) = oneshot::channel();
    let wait = move || {
        for stream in listener.incoming() {
            match stream.and_then(|stream| give(&stream, &sockets)) {
                Ok(()) => {
                    let _ = taken.send(());
                    return;
                }
                Err(error) => tracing::warn!(%error, "a new proxy did not take over"),
            }
        }
    };
    thread::Builder::new().name("takeover".to_owned()).spawn(wait)?;
    Ok(answer)
}

/// Once the next proxy serves; never where none is waited for.
pub async fn taken_over(next: Option<oneshot::Receiver<()>>) {
    let taken = match next {
        Some(next) => next.await.is_ok(),
        None => false,
    };
    if !taken {
        pending::<()>().await;
    }
}

/// Passes sockets on and waits until they are served.
fn give(mut stream: &UnixStream, sockets: &Offered) -> io::Result<()> {
    let sockets: Vec<OwnedFd> = {
        let sockets = sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>()?
    };
    if sockets.len() > SOCKETS_MAX {
        return Err(io::Error::other("more sockets than can be passed on"));
    }
    stream.set_read_timeout(Some(START))?;
    let passed: Vec<BorrowedFd> = sockets.iter().map(|socket| socket.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&passed));
    let count = [u8::try_from(sockets.len()).map_err(io::Error::other)?];
    sendmsg(stream, &[IoSlice::new(&count)], &mut control, SendFlags::NOSIGNAL)?;
    let mut answer = [0];
    stream.read_exact(&mut answer)?;
    if answer == [SERVES] { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}
