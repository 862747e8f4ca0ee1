//! A server's whole data, as it gives it to a replica: an RDB file over the connection.
//!
//! We say that we want the file alone (`rdb-only`): then no commands pile up for us at the server
//! while the file is on its way. We acknowledge nothing, so that nobody who counts replicas (WAIT,
//! min-replicas-to-write) counts us. What is written after the file is read by a
//! [`Tail`](super::tail::Tail).
//! Source: `syncCommand` and `replconfCommand` in `replication.c`.

use std::{io, net::SocketAddr, time::Duration};

use protocol::{Engine, EngineKind, resp::ServerError};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::admin_client::{ClientError, Connection, DEADLINE, Login};

/// How long nothing may come. A server that works on the file says so every ten seconds.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// What ends a file whose length isn't known before: 40 bytes that were announced.
const MARK_BYTES: usize = 40;

/// The longest line that a server answers with.
const LINE_BYTES_MAX: usize = 1024;

/// A copy that wasn't had.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{address} gives no copy of its data: {source}")]
    Refused { address: SocketAddr, source: ServerError },
    #[error("{address} sent nothing for {} s", IDLE_MAX.as_secs())]
    Silent { address: SocketAddr },
    #[error("the connection to {address} broke")]
    Broken { address: SocketAddr, source: io::Error },
    #[error("{address} answers PSYNC with {line:?}")]
    Strange { address: SocketAddr, line: String },
    #[error("{address} sent {what}")]
    Cut { address: SocketAddr, what: &'static str },
}

/// A position in a stream of replication.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Point {
    /// The stream's id.
    pub id: String,
    /// Bytes of it that the file holds the effect of.
    pub offset: u64,
}

/// How the file's end is found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// So many bytes.
    Length(u64),
    /// These follow it.
    Mark([u8; MARK_BYTES]),
}

/// A connection on which a server takes us for a replica.
#[derive(Debug)]
pub(super) struct Wire {
    address: SocketAddr,
    stream: TcpStream,
    /// What came and was not handed out.
    pub buffer: Vec<u8>,
}

/// A copy that is on its way.
#[derive(Debug)]
pub struct Copy {
    wire: Wire,
    pub point: Point,
    end: Option<End>,
}

impl Wire {
    /// Connects, logs in and says what we can do. `wishes`: what we want besides; one that the server
    /// doesn't know is no error.
    pub async fn open(
        address: SocketAddr,
        login: Option<&Login>,
        engine: &Engine,
        wishes: &[[&str; 2]],
    ) -> Result<Self, CopyError> {
        let mut link = Connection::open(address, login, DEADLINE).await?;
        let version = engine.version.to_string();
        let mut all = vec![["capa", "eof"], ["capa", "psync2"]];
        all.extend(wishes);
        if engine.kind == EngineKind::Valkey {
            // Else it takes us for an old one, and may write an old format.
            all.push(["version", &version]);
        }
        for [what, value] in all {
            match link.call(["REPLCONF", what, value]).await {
                // One that doesn't know the wish.
                Ok(_) | Err(ClientError::Server { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self { address, stream: link.into_stream(), buffer: Vec::new() })
    }

    /// Asks to go on at a point, or for a copy; the answer's line.
    pub async fn psync(&mut self, from: Option<&Point>) -> Result<String, CopyError> {
        let asked = match from {
            Some(Point { id, offset }) => format!("PSYNC {id} {}\r\n", offset + 1),
            None => "PSYNC ? -1\r\n".to_owned(),
        };
        self.send(asked.as_bytes()).await?;
        self.line().await
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), CopyError> {
        let address = self.address;
        let sent = self.stream.write_all(bytes).await;
        sent.map_err(|source| CopyError::Broken { address, source })
    }

    pub fn refused(&self, line: &str) -> CopyError {
        let address = self.address;
        match line.strip_prefix('-') {
            Some(text) => CopyError::Refused { address, source: ServerError::parse(text) },
            None => CopyError::Strange { address, line: line.to_owned() },
        }
    }

    /// A line without its end. Empty ones only say that the server is still there.
    pub async fn line(&mut self) -> Result<String, CopyError> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(at + 1);
                let line = std::mem::replace(&mut self.buffer, rest);
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if line.is_empty() {
                    continue;
                }
                return Ok(line);
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                let line = String::from_utf8_lossy(&self.buffer).into_owned();
                return Err(CopyError::Strange { address: self.address, line });
            }
            self.more().await?;
        }
    }

    /// Waits for more bytes, which go behind those in the buffer.
    pub async fn more(&mut self) -> Result<(), CopyError> {
        let address = self.address;
        self.buffer.reserve(256 << 10);
        let read = timeout(IDLE_MAX, self.stream.read_buf(&mut self.buffer)).await;
        let read = read.map_err(|_| CopyError::Silent { address })?;
        match read {
            Ok(0) => {
                let source = io::ErrorKind::UnexpectedEof.into();
                Err(CopyError::Broken { address, source })
            }
            Ok(_) => Ok(()),
            Err(source) => Err(CopyError::Broken { address, source }),
        }
    }
}

impl Copy {
    /// Asks for a copy; returns when the server has begun to make it.
    pub async fn ask(
        address: SocketAddr,
        login: Option<&Login>,
        engine: &Engine,
    ) -> Result<Self, CopyError> {
        let mut wire = Wire::open(address, login, engine, &[["rdb-only", "1"]]).await?;
        let line = wire.psync(None).await?;
        let point = full_copy(&line).ok_or_else(|| wire.refused(&line))?;
        Ok(Self { wire, point, end: None })
    }

    /// The next bytes, appended. They may hold more than the file: who reads it knows where it ends,
    /// and says so to [`Copy::check_end`].
    pub async fn read(&mut self, into: &mut Vec<u8>) -> Result<(), CopyError> {
        if self.end.is_none() {
            let line = self.wire.line().await?;
            self.end = Some(end(&line).ok_or_else(|| self.wire.refused(&line))?);
        }
        if self.wire.buffer.is_empty() {
            self.wire.more().await?;
        }
        into.append(&mut self.wire.buffer);
        Ok(())
    }

    /// The file had so many bytes, and these came after it: is that what the server announced?
    pub async fn check_end(&mut self, bytes: u64, mut after: Vec<u8>) -> Result<(), CopyError> {
        let address = self.wire.address;
        match self.end.clone() {
            Some(End::Length(length)) if length == bytes => Ok(()),
            Some(End::Mark(mark)) => {
                while after.len() < MARK_BYTES {
                    self.wire.more().await?;
                    after.append(&mut self.wire.buffer);
                }
                let what = "something else than the end that it announced";
                if after.starts_with(&mark) {
                    Ok(())
                } else {
                    Err(CopyError::Cut { address, what })
                }
            }
            _ => Err(CopyError::Cut { address, what: "a file of another length than announced" }),
        }
    }
}

/// `+FULLRESYNC id offset`
pub(super) fn full_copy(line: &str) -> Option<Point> {
    let mut words = line.strip_prefix("+FULLRESYNC ")?.split(' ');
    Some(Point { id: words.next()?.to_owned(), offset: words.next()?.parse().ok()? })
}

/// `$length` or `$EOF:mark`
fn end(line: &str) -> Option<End> {
    let rest = line.strip_prefix('$')?;
    match rest.strip_prefix("EOF:") {
        Some(mark) => Some(End::Mark(mark.as_bytes().try_into().ok()?)),
        None => Some(End::Length(rest.parse().ok()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let check = |line: &str, expected| assert_eq!(end(line), expected, "{line}");
        check("$123", Some(End::Length(123)));
        let mark = "0123456789".repeat(4);
        let bytes: [u8; MARK_BYTES] = mark.as_bytes().try_into().unwrap();
        check(&format!("$EOF:{mark}"), Some(End::Mark(bytes)));
        check("$EOF:short", None);
        check("$-1", None);
        check("-ERR no", None);
        let check = |line: &str, expected: Option<(&str, u64)>| {
            let expected = expected.map(|(id, offset)| Point { id: id.to_owned(), offset });
            assert_eq!(full_copy(line), expected, "{line}");
        };
        check("+FULLRESYNC abc 17", Some(("abc", 17)));
        check("+FULLRESYNC abc", None);
        check("+CONTINUE abc", None);
    }
}
