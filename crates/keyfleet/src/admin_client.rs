//! The control plane's own client: one connection, commands in pipelines, a deadline on every wait.
//!
//! Cancel-safe: a connection whose call was dropped half-way refuses to be used again, because the
//! next answer would not belong to the next question. [`Pool`] replaces such connections.
//!
//! Deliberately absent: redirects, pub/sub, retries of commands. Callers know what may be repeated.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use protocol::{
    Value,
    resp::{DecodeError, Decoder, Limits, ServerError, encode_command},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

use crate::secrets::{OWN_USER, Secret};

/// How long an answer may take where the caller doesn't say.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// Connections that wait for their next use, for each address.
const IDLE_MAX: usize = 4;

const READ_BYTES: usize = 64 << 10;

/// Whom to log in as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    pub password: Secret,
}

impl Login {
    /// keyfleet's own user.
    pub fn own(password: Secret) -> Self {
        Self { user: OWN_USER.to_owned(), password }
    }
}

/// A call that has no answer, or the answer no.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing listens there.
    #[error("{address} refuses connections")]
    Refused { address: SocketAddr },
    /// The deadline passed.
    #[error("{address} doesn't answer")]
    Silent { address: SocketAddr },
    #[error("the connection to {address} broke: {source}")]
    Broken { address: SocketAddr, source: io::Error },
    #[error("{address} answers with something that isn't the protocol: {source}")]
    Protocol { address: SocketAddr, source: DecodeError },
    /// An error reply.
    #[error("{address} answers: {source}")]
    Server { address: SocketAddr, source: ServerError },
    /// An answer whose shape isn't the one documented.
    #[error("{address} answers {command} with something else than expected: {problem}")]
    Shape { address: SocketAddr, command: &'static str, problem: String },
}

impl ClientError {
    /// The error reply's code, such as `NOAUTH`.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Server { source, .. } => Some(&source.code),
            _ => None,
        }
    }
}

/// Commands to be sent in one write.
#[derive(Clone, Default)]
pub struct Commands {
    bytes: Vec<u8>,
    count: usize,
}

impl Commands {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a command.
    pub fn push(&mut self, args: impl IntoIterator<Item = impl AsRef<[u8]>>) -> &mut Self {
        encode_command(args, &mut self.bytes);
        self.count += 1;
        self
    }

    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// One connection to one server.
#[derive(Debug)]
pub struct Connection {
    address: SocketAddr,
    stream: TcpStream,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// Answers are on their way that nobody waits for, or the stream is in pieces.
    unusable: bool,
    /// Answers to [`Connection::send`] that weren't received yet.
    awaited: usize,
}

impl Connection {
    /// Connects and logs in, within the deadline together.
    pub async fn open(
        address: SocketAddr,
        login: Option<&Login>,
        deadline: Duration,
    ) -> Result<Self, ClientError> {
        let until = Instant::now() + deadline;
        let stream = match timeout_at(until, TcpStream::connect(address)).await {
            Err(_) => return Err(ClientError::Silent { address }),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(ClientError::Refused { address });
            }
            Ok(result) => result,
        }
        .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
        .map_err(|source| ClientError::Broken { address, source })?;
        let mut connection = Self {
            address,
            stream,
            decoder: Decoder::new(Limits::default()),
            buffer: vec![0; READ_BYTES],
            unusable: false,
            awaited: 0,
        };
        if let Some(Login { user, password }) = login {
            let mut commands = Commands::new();
            commands.push(["AUTH", user, password.expose()]);
            commands.push(["CLIENT", "SETNAME", "keyfleet"]);
            let replies = connection.pipeline_until(&commands, until).await?;
            if let Some(Value::Error(text)) = replies.first() {
                let source = ServerError::parse(text);
                return Err(ClientError::Server { address, source });
            }
        }
        Ok(connection)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bare stream, for those who read its answers in their own way. Nothing may be under way.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// One command; an error reply is [`ClientError::Server`].
    pub async fn call(
        &mut self,
        args: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<Value, ClientError> {
        self.call_within(DEADLINE, args).await
    }

    /// [`Connection::call`] with a deadline of its own.
    pub async fn call_within(
        &mut self,
        deadline: Duration,
        args: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<Value, ClientError> {
        let mut commands = Commands::new();
        commands.push(args);
        let reply = self.pipeline(&commands, deadline).await?.pop().unwrap_or(Value::Null);
        let address = self.address;
        reply.into_result().map_err(|source| ClientError::Server { address, source })
    }

    /// Commands in one write; as many replies, in order. Error replies are values here.
    pub async fn pipeline(
        &mut self,
        commands: &Commands,
        deadline: Duration,
    ) -> Result<Vec<Value>, ClientError> {
        self.pipeline_until(commands, Instant::now() + deadline).await
    }

    async fn pipeline_until(
        &mut self,
        commands: &Commands,
        until: Instant,
    ) -> Result<Vec<Value>, ClientError> {
        let address = self.address;
        if self.unusable || self.awaited > 0 {
            let source = io::Error::from(io::ErrorKind::NotConnected);
            return Err(ClientError::Broken { address, source });
        }
        self.unusable = true;
        let replies = timeout_at(until, self.exchange(commands))
            .await
            .map_err(|_| ClientError::Silent { address })??;
        self.unusable = false;
        Ok(replies)
    }

    /// Sends commands and doesn't wait: [`Connection::receive`] gives their replies one by one. For
    /// a few commands to several servers at once, or where each reply counts by itself.
    pub async fn send(
        &mut self,
        commands: &Commands,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let address = self.address;
        if self.unusable {
            let source = io::Error::from(io::ErrorKind::NotConnected);
            return Err(ClientError::Broken { address, source });
        }
        self.unusable = true;
        timeout(deadline, self.stream.write_all(&commands.bytes))
            .await
            .map_err(|_| ClientError::Silent { address })?
            .map_err(|source| ClientError::Broken { address, source })?;
        self.unusable = false;
        self.awaited += commands.count;
        Ok(())
    }

    /// The next reply to what was sent; an error reply is a value here.
    pub async fn receive(&mut self, deadline: Duration) -> Result<Value, ClientError> {
        let address = self.address;
        let broken = |source| ClientError::Broken { address, source };
        let until = Instant::now() + deadline;
        loop {
            let next = self.decoder.next();
            if let Some(reply) = next.map_err(|source| ClientError::Protocol { address, source })? {
                self.awaited = self.awaited.saturating_sub(1);
                return Ok(reply);
            }
            let read = timeout_at(until, self.stream.read(&mut self.buffer)).await;
            let read = read.map_err(|_| ClientError::Silent { address })?.map_err(broken)?;
            if read == 0 {
                return Err(broken(io::ErrorKind::UnexpectedEof.into()));
            }
            self.decoder.feed(self.buffer.get(..read).unwrap_or_default());
        }
    }

    /// Reads while it writes, so that long pipelines can't fill both directions and stop.
    async fn exchange(&mut self, commands: &Commands) -> Result<Vec<Value>, ClientError> {
        let address = self.address;
        let broken = |source| ClientError::Broken { address, source };
        let (mut reader, mut writer) = self.stream.split();
        let mut unsent = commands.bytes.as_slice();
        let mut replies = Vec::with_capacity(commands.count);
        while replies.len() < commands.count {
            let read = tokio::select! {
                written = writer.write(unsent), if !unsent.is_empty() => {
                    unsent = unsent.get(written.map_err(broken)?..).unwrap_or_default();
                    continue;
                }
                read = reader.read(&mut self.buffer) => read.map_err(broken)?,
            };
            if read == 0 {
                return Err(broken(io::ErrorKind::UnexpectedEof.into()));
            }
            self.decoder.feed(self.buffer.get(..read).unwrap_or_default());
            while let Some(value) =
                self.decoder.next().map_err(|source| ClientError::Protocol { address, source })?
            {
                replies.push(value);
            }
        }
        Ok(replies)
    }

    /// Nothing is under way, and the server hasn't closed it.
    fn is_idle(&mut self) -> bool {
        // Anything but "nothing to read" is an end, or an answer to no question.
        !self.unusable
            && self.awaited == 0
            && self
                .stream
                .try_read(&mut self.buffer)
                .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Connections for reuse. Clones share them. All users of one pool log in the same way at one
/// address.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    idle: Arc<Mutex<BTreeMap<SocketAddr, Vec<Connection>>>>,
}

impl Pool {
    pub fn new() -> Self {
        Self::default()
    }

    /// One command; an error reply is [`ClientError::Server`].
    pub async fn call(
        &self,
        address: SocketAddr,
        login: Option<&Login>,
        deadline: Duration,
        args: impl IntoIterator<Item = impl AsRef<[u8]>>,
    ) -> Result<Value, ClientError> {
        let mut commands = Commands::new();
        commands.push(args);
        let mut replies = self.pipeline(address, login, deadline, &commands).await?;
        let reply = replies.pop().unwrap_or(Value::Null);
        reply.into_result().map_err(|source| ClientError::Server { address, source })
    }

    /// Commands in one write; as many replies, in order. Error replies are values here.
    pub async fn pipeline(
        &self,
        address: SocketAddr,
        login: Option<&Login>,
        deadline: Duration,
        commands: &Commands,
    ) -> Result<Vec<Value>, ClientError> {
        let until = Instant::now() + deadline;
        let mut connection = match self.take(address) {
            Some(connection) => connection,
            None => Connection::open(address, login, deadline).await?,
        };
        let replies = connection.pipeline_until(commands, until).await?;
        // Only here: where this future is dropped or fails before, the connection is dropped too.
        self.give_back(connection);
        Ok(replies)
    }

    /// [`Pool::pipeline`] for commands that may be done twice: sent again over a new connection
    /// where a reused one turns out to have ended.
    pub async fn ask(
        &self,
        address: SocketAddr,
        login: Option<&Login>,
        deadline: Duration,
        commands: &Commands,
    ) -> Result<Vec<Value>, ClientError> {
        match self.pipeline(address, login, deadline, commands).await {
            Err(ClientError::Broken { .. }) => {
                self.idle().remove(&address);
                self.pipeline(address, login, deadline, commands).await
            }
            result => result,
        }
    }

    fn idle(&self) -> MutexGuard<'_, BTreeMap<SocketAddr, Vec<Connection>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, address: SocketAddr) -> Option<Connection> {
        let mut idle = self.idle();
        let connections = idle.get_mut(&address)?;
        while let Some(mut connection) = connections.pop() {
            if connection.is_idle() {
                return Some(connection);
            }
        }
        None
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle();
        let connections = idle.entry(connection.address).or_default();
        if connections.len() < IDLE_MAX {
            connections.push(connection);
        }
    }
}
