//! One connection that takes many commands in one write and gives their replies in order.

use std::{io, net::SocketAddr, time::Duration};

use protocol::resp::{DecodeError, Decoder, ServerError, Value, encode_command};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::Auth;

/// How long a connection may take to be made and to authenticate.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// A node could not be talked to.
#[derive(Debug, thiserror::Error)]
#[error("{node}: {kind}")]
pub struct LinkError {
    pub node: SocketAddr,
    pub kind: LinkErrorKind,
}

/// See [`LinkError`].
#[derive(Debug, thiserror::Error)]
pub enum LinkErrorKind {
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),
    #[error("the connection broke: {0}")]
    Broken(#[source] io::Error),
    #[error("no answer within {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("not an answer: {0}")]
    Garbled(#[source] DecodeError),
    #[error("refused us: {0}")]
    Denied(#[source] ServerError),
}

/// Commands to send in one write.
#[derive(Debug, Default)]
pub struct Pipeline {
    bytes: Vec<u8>,
    count: usize,
}

impl Pipeline {
    pub fn push(&mut self, args: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        encode_command(args, &mut self.bytes);
        self.count += 1;
    }

    /// How many commands.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// A connection to one node.
#[derive(Debug)]
pub struct Link {
    node: SocketAddr,
    stream: TcpStream,
    decoder: Decoder,
    input: Vec<u8>,
}

impl Link {
    /// Connects and authenticates.
    pub async fn connect(node: SocketAddr, auth: Option<&Auth>) -> Result<Self, LinkError> {
        let fail = |kind| LinkError { node, kind };
        let stream = timeout(CONNECT_TIME_MAX, TcpStream::connect(node))
            .await
            .map_err(|_| fail(LinkErrorKind::Silent(CONNECT_TIME_MAX)))?
            .map_err(|error| fail(LinkErrorKind::Connect(error)))?;
        stream.set_nodelay(true).map_err(|error| fail(LinkErrorKind::Connect(error)))?;
        let mut link = Self { node, stream, decoder: Decoder::default(), input: vec![0; 64 << 10] };
        if let Some(Auth { user, password }) = auth {
            link.call(["AUTH", user, password], CONNECT_TIME_MAX)
                .await?
                .into_result()
                .map_err(|error| fail(LinkErrorKind::Denied(error)))?;
        }
        Ok(link)
    }

    /// Whom this talks to.
    pub fn node(&self) -> SocketAddr {
        self.node
    }

    /// Sends one command and waits for its reply, an error reply too.
    pub async fn call(
        &mut self,
        args: impl IntoIterator<Item = impl AsRef<[u8]>>,
        time_max: Duration,
    ) -> Result<Value, LinkError> {
        let mut pipeline = Pipeline::default();
        pipeline.push(args);
        let replies = self.pipeline(&pipeline, time_max).await?;
        Ok(replies.into_iter().next().unwrap_or(Value::Null))
    }

    /// Sends all the commands and waits for all their replies, which come in the same order.
    /// After an error the connection is of no more use: replies may be under way.
    pub async fn pipeline(
        &mut self,
        pipeline: &Pipeline,
        time_max: Duration,
    ) -> Result<Vec<Value>, LinkError> {
        let node = self.node;
        let exchange = async {
            self.send(pipeline).await?;
            let mut replies = Vec::with_capacity(pipeline.count);
            while replies.len() < pipeline.count {
                replies.push(self.receive().await?);
            }
            Ok(replies)
        };
        let silent = LinkError { node, kind: LinkErrorKind::Silent(time_max) };
        timeout(time_max, exchange).await.unwrap_or(Err(silent))
    }

    /// Sends the commands. The caller bounds the time.
    pub async fn send(&mut self, pipeline: &Pipeline) -> Result<(), LinkError> {
        let sent = self.stream.write_all(&pipeline.bytes).await;
        sent.map_err(|error| LinkError { node: self.node, kind: LinkErrorKind::Broken(error) })
    }

    /// Waits for so many replies that don't matter.
    pub async fn skip(&mut self, count: usize, time_max: Duration) -> Result<(), LinkError> {
        let silent = LinkError { node: self.node, kind: LinkErrorKind::Silent(time_max) };
        let all = async {
            for _ in 0..count {
                self.receive().await?;
            }
            Ok(())
        };
        timeout(time_max, all).await.unwrap_or(Err(silent))
    }

    /// Waits for one reply. The caller bounds the time.
    pub async fn receive(&mut self) -> Result<Value, LinkError> {
        let node = self.node;
        let broken = |error| LinkError { node, kind: LinkErrorKind::Broken(error) };
        loop {
            let garbled = |error| LinkError { node, kind: LinkErrorKind::Garbled(error) };
            if let Some(reply) = self.decoder.next().map_err(garbled)? {
                return Ok(reply);
            }
            let count = self.stream.read(&mut self.input).await.map_err(broken)?;
            if count == 0 {
                return Err(broken(io::ErrorKind::UnexpectedEof.into()));
            }
            self.decoder.feed(self.input.get(..count).unwrap_or_default());
        }
    }
}
