//! A server's stream of commands from a point on, as it gives it to its replicas.
//!
//! We never ask for more than the server says it has: a full copy, for which it would fork, is not
//! what is wanted here. Every so often we say that we are still there, and acknowledge nothing: WAIT
//! doesn't count us. A server that wants to stop waits for its replicas; when it asks for
//! acknowledgements and falls silent, we leave, and come back later.
//! Source: `masterTryPartialResynchronization`, `replicationCron` and `isReadyToShutdown` of
//! `replication.c` and `server.c`.

use std::{net::SocketAddr, time::Duration};

use protocol::{Engine, Info};
use tokio::time::{Instant, sleep_until, timeout};

use super::replica::{CopyError, Point, Wire, full_copy};
use crate::admin_client::{ClientError, Connection, DEADLINE, Login};

/// What servers give up replicas after where they don't say.
const TIMEOUT_S: u64 = 60;

/// What asks replicas how far they are.
const QUESTION: &[u8] = b"*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n";

/// We are there, and vouch for nothing.
const PRESENT: &[u8] = b"*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$1\r\n0\r\n";

/// How long nothing may follow a question.
const QUIET: Duration = Duration::from_secs(1);

/// Why a server's stream can't be had from a point on.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// It may have it later.
    #[error("{address} lags behind")]
    Behind { address: SocketAddr },
    /// It will never have it.
    #[error("{address} has another history, or has forgotten what came at that point")]
    Gone { address: SocketAddr },
    /// To be asked again after a while.
    #[error("{address} waits for its replicas to stop")]
    Stopping { address: SocketAddr },
}

impl From<ClientError> for TailError {
    fn from(error: ClientError) -> Self {
        Self::Copy(error.into())
    }
}

/// What a server says of its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Where it is.
    pub now: Point,
    /// The stream that this one goes on from, and up to where.
    pub before: Option<Point>,
    /// From which offset on it can give it; None: it keeps nothing.
    first: Option<u64>,
}

impl History {
    /// From the section `replication` of INFO.
    pub fn of(info: &Info) -> Option<Self> {
        let number = |name| info.u64(name);
        let id = info.get("master_replid")?.to_owned();
        let offset = number("master_repl_offset")?;
        let before = number("second_repl_offset")
            .and_then(|next| next.checked_sub(1))
            .zip(info.get("master_replid2"))
            .map(|(offset, id)| Point { id: id.to_owned(), offset });
        let active = number("repl_backlog_active") == Some(1);
        let first = number("repl_backlog_first_byte_offset")?.saturating_sub(1);
        Some(Self { now: Point { id, offset }, before, first: Some(first).filter(|_| active) })
    }

    /// Is this what that stream went on as?
    pub fn follows(&self, id: &str) -> bool {
        self.now.id == id || self.before.as_ref().is_some_and(|before| before.id == id)
    }

    /// Can it be had from there on? None: not yet.
    fn holds(&self, from: &Point) -> Option<bool> {
        let Some(first) = self.first else { return Some(false) };
        let known = self.now.id == from.id
            || self
                .before
                .as_ref()
                .is_some_and(|before| before.id == from.id && from.offset <= before.offset);
        if !known || from.offset < first {
            return Some(false);
        }
        (from.offset <= self.now.offset).then_some(true)
    }
}

/// A stream that is being read.
#[derive(Debug)]
pub struct Tail {
    address: SocketAddr,
    wire: Wire,
    /// How often we say that we are there.
    every: Duration,
    said: Instant,
    /// The last bytes, as many as a question has.
    last: Vec<u8>,
    /// Where it is: the id that the stream has now, and the bytes before what is read next.
    pub point: Point,
}

impl Tail {
    /// Goes on at a point; None: where the server is now.
    pub async fn open(
        address: SocketAddr,
        login: Option<&Login>,
        engine: &Engine,
        from: Option<&Point>,
    ) -> Result<Self, TailError> {
        let mut link = Connection::open(address, login, DEADLINE).await?;
        let reply = link.call(["INFO", "replication"]).await?;
        let text = reply.as_str().unwrap_or_default();
        let history = History::of(&Info::parse(text)).ok_or(TailError::Gone { address })?;
        let configured = match link.call(["CONFIG", "GET", "repl-timeout"]).await {
            Ok(reply) => reply
                .as_array()
                .and_then(|pair| pair.get(1)?.as_str()?.parse().ok())
                .unwrap_or(TIMEOUT_S),
            Err(ClientError::Server { .. }) => TIMEOUT_S,
            Err(error) => return Err(error.into()),
        };
        let from = match from {
            Some(from) => match history.holds(from) {
                Some(true) => from.clone(),
                Some(false) => return Err(TailError::Gone { address }),
                None => return Err(TailError::Behind { address }),
            },
            None if history.first.is_some() => history.now,
            None => {
                // It begins to keep its stream once somebody has asked for a copy.
                let mut wire = Wire::open(address, login, engine, &[]).await?;
                let line = wire.psync(None).await?;
                full_copy(&line).ok_or_else(|| wire.refused(&line))?
            }
        };
        let mut wire = Wire::open(address, login, engine, &[]).await?;
        let line = wire.psync(Some(&from)).await?;
        let Some(id) = line.strip_prefix("+CONTINUE") else {
            return Err(if full_copy(&line).is_some() {
                TailError::Gone { address }
            } else {
                wire.refused(&line).into()
            });
        };
        let id = Some(id.trim()).filter(|id| !id.is_empty()).unwrap_or(&from.id);
        let point = Point { id: id.to_owned(), offset: from.offset };
        let every = Duration::from_secs(configured.max(4) * 3 / 4);
        let last = Vec::new();
        let mut tail = Self { address, wire, every, said: Instant::now(), last, point };
        tail.wire.send(PRESENT).await?;
        Ok(tail)
    }

    /// The next bytes, appended.
    pub async fn read(&mut self, into: &mut Vec<u8>) -> Result<(), TailError> {
        while self.wire.buffer.is_empty() {
            let asked = self.last == QUESTION;
            let until = if asked { Instant::now() + QUIET } else { self.said + self.every };
            tokio::select! {
                more = self.wire.more() => more?,
                () = sleep_until(until) => {
                    if asked {
                        return Err(TailError::Stopping { address: self.address });
                    }
                    self.said = Instant::now();
                    let said = timeout(DEADLINE, self.wire.send(PRESENT)).await;
                    let address = self.address;
                    said.map_err(|_| CopyError::Silent { address })??;
                }
            }
        }
        if self.said.elapsed() >= self.every {
            self.said = Instant::now();
            self.wire.send(PRESENT).await?;
        }
        let fresh = &mut self.wire.buffer;
        self.point.offset += fresh.len() as u64;
        let keep = QUESTION.len().saturating_sub(fresh.len()).min(self.last.len());
        self.last.drain(..self.last.len() - keep);
        let tail = fresh.len().saturating_sub(QUESTION.len());
        self.last.extend_from_slice(fresh.get(tail..).unwrap_or_default());
        into.append(fresh);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_can_give() {
        let text = "master_replid:new\r\nmaster_replid2:old\r\nmaster_repl_offset:100\r\n\
                    second_repl_offset:51\r\nrepl_backlog_active:1\r\n\
                    repl_backlog_first_byte_offset:11\r\n";
        let history = History::of(&Info::parse(text)).unwrap();
        let check = |id: &str, offset, expected| {
            let point = Point { id: id.to_owned(), offset };
            assert_eq!(history.holds(&point), expected, "{id} {offset}");
        };
        check("new", 100, Some(true));
        check("new", 10, Some(true));
        check("new", 9, Some(false));
        check("new", 101, None);
        check("old", 50, Some(true));
        check("old", 51, Some(false));
        check("other", 50, Some(false));
        assert!(history.follows("old") && history.follows("new") && !history.follows("other"));
        let text = text.replace("active:1", "active:0").replace("51", "-1");
        let history = History::of(&Info::parse(&text)).unwrap();
        assert_eq!((history.first, history.before), (None, None));
    }
}
