//! One connection to one server, with many commands in flight.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, sync::atomic::Ordering};

use protocol::{
    Slot,
    resp::{Limits, Redirect, ServerError, decode},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::{Duration, Instant, sleep_until},
};

use super::{
    BATCH_BYTES, BATCH_COMMANDS, Mark, Shared, locked,
    mend::{Again, Stray},
};
use crate::{
    admin_client::{ClientError, Connection},
    mover::connect,
};

const READ_BYTES: usize = 64 << 10;

/// A connection on which no answer comes for so long is given up: the server may hang, or nothing
/// may get through to it, and another may have its slots by now. Sooner where the load is impatient,
/// which tries twice at least.
const SILENCE: Duration = Duration::from_secs(15);

/// What nearly all answers are.
const OK: &[u8] = b"+OK\r\n";

/// Commands in the order in which they are to be done.
#[derive(Debug)]
pub(super) struct Batch {
    pub bytes: Vec<u8>,
    pub commands: Vec<Sent>,
    /// For all its commands.
    pub mark: Mark,
}

/// One command of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// Where its bytes end.
    pub end: usize,
    pub slot: Slot,
    /// Where its source begins.
    pub offset: u64,
    /// An ASKING stands before it, which is answered too.
    pub asking: bool,
    /// Since when it could not be done.
    pub since: Option<Instant>,
}

impl Batch {
    pub fn new(mark: Mark) -> Self {
        let bytes = Vec::with_capacity(BATCH_BYTES + BATCH_BYTES / 8);
        Self { bytes, commands: Vec::with_capacity(BATCH_COMMANDS / 2), mark }
    }
}

/// A batch that is sent, or being sent.
struct Flight {
    batch: Batch,
    /// Commands that were answered.
    answered: usize,
    /// Its ASKING was answered.
    asked: bool,
}

/// Sends batches until no more can come.
pub(super) async fn run(
    shared: Arc<Shared>,
    address: SocketAddr,
    mut batches: mpsc::Receiver<Batch>,
) {
    while let Some(first) = batches.recv().await {
        let mut lane = Lane {
            shared: &shared,
            address,
            flights: VecDeque::new(),
            commands: 0,
            bytes: 0,
            untold: (0, 0),
        };
        lane.add(first);
        let silent_since = match open(&shared, address).await {
            Ok(link) => lane.serve(link.into_stream(), &mut batches).await,
            Err(_) => None,
        };
        lane.scatter(silent_since);
    }
}

/// A connection to the server, in the load's database.
pub(super) async fn open(shared: &Shared, address: SocketAddr) -> Result<Connection, ClientError> {
    let mut link = connect(address, shared.options.login.as_ref()).await?;
    if shared.options.db > 0 {
        link.call(["SELECT", &shared.options.db.to_string()]).await?;
    }
    Ok(link)
}

struct Lane<'a> {
    shared: &'a Arc<Shared>,
    address: SocketAddr,
    flights: VecDeque<Flight>,
    /// In flight.
    commands: usize,
    bytes: usize,
    /// Done, and not told yet: commands and their bytes.
    untold: (u64, u64),
}

impl Lane<'_> {
    fn add(&mut self, batch: Batch) {
        self.commands += batch.commands.len();
        self.bytes += batch.bytes.len();
        self.flights.push_back(Flight { batch, answered: 0, asked: false });
    }

    fn has_room(&self) -> bool {
        self.commands < self.shared.window.load(Ordering::Relaxed)
            && self.bytes < self.shared.flight_bytes()
    }

    /// Until the connection ends or nothing more is to be sent. Since when it was silent, where it
    /// ended for that.
    async fn serve(
        &mut self,
        mut stream: TcpStream,
        batches: &mut mpsc::Receiver<Batch>,
    ) -> Option<Instant> {
        let (mut reader, mut writer) = stream.split();
        let mut input = vec![0; READ_BYTES];
        // Bytes of an answer that isn't whole yet.
        let mut held: Vec<u8> = Vec::new();
        // The flight that is being sent, counted from the front, and how much of it is.
        let (mut sending, mut sent) = (0, 0);
        let silence = (self.shared.options.patience / 2).min(SILENCE);
        // When the last answer came, or the first that is waited for was asked.
        let mut heard = Instant::now();
        loop {
            let unsent =
                self.flights.get(sending).and_then(|flight| flight.batch.bytes.get(sent..));
            let more = unsent.is_none() && self.has_room();
            let read = tokio::select! {
                written = writer.write(unsent.unwrap_or_default()), if unsent.is_some() => {
                    let Ok(written) = written else { return None };
                    sent += written;
                    if self.flights.get(sending).is_some_and(|flight| sent >= flight.batch.bytes.len()) {
                        (sending, sent) = (sending + 1, 0);
                    }
                    continue;
                }
                read = reader.read(&mut input) => read,
                batch = batches.recv(), if more => {
                    match batch {
                        Some(batch) => {
                            if self.flights.is_empty() {
                                heard = Instant::now();
                            }
                            self.add(batch);
                        }
                        None if self.flights.is_empty() => return None,
                        None => {}
                    }
                    continue;
                }
                () = sleep_until(heard + silence), if !self.flights.is_empty() => {
                    return Some(heard);
                }
            };
            heard = Instant::now();
            let Ok(read @ 1..) = read else { return None };
            let before = self.flights.len();
            let fresh = input.get(..read).unwrap_or_default();
            if held.is_empty() {
                let used = self.answers(fresh)?;
                held.extend_from_slice(fresh.get(used..).unwrap_or_default());
            } else {
                held.extend_from_slice(fresh);
                let used = self.answers(&held)?;
                held.drain(..used);
            }
            let gone = before - self.flights.len();
            sending = sending.checked_sub(gone)?;
        }
    }

    /// Takes whole answers off the input: how many bytes they were. None: this is no answer to
    /// what was asked.
    fn answers(&mut self, input: &[u8]) -> Option<usize> {
        let mut at = 0;
        while let Some(rest) = input.get(at..).filter(|rest| !rest.is_empty()) {
            let length = match rest.first() {
                _ if rest.starts_with(OK) => Some(OK.len()),
                Some(b'+' | b':' | b'-') => {
                    rest.iter().position(|byte| *byte == b'\n').map(|end| end + 1)
                }
                _ => decode(rest, &Limits::default()).ok()?.map(|(_, length)| length),
            };
            let Some(length) = length else { break };
            self.answer(rest.get(..length).unwrap_or_default())?;
            at += length;
        }
        self.tell();
        Some(at)
    }

    /// Adds to the load's progress what was done.
    fn tell(&mut self) {
        let (commands, bytes) = std::mem::take(&mut self.untold);
        let progress = &self.shared.progress;
        progress.done.fetch_add(commands, Ordering::Relaxed);
        progress.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn answer(&mut self, reply: &[u8]) -> Option<()> {
        let flight = self.flights.front_mut()?;
        let sent = *flight.batch.commands.get(flight.answered)?;
        if sent.asking && !flight.asked {
            flight.asked = true;
            return Some(());
        }
        let start =
            flight.answered.checked_sub(1).and_then(|before| flight.batch.commands.get(before));
        let start = start.map_or(0, |before| before.end);
        flight.answered += 1;
        flight.asked = false;
        self.commands -= 1;
        let done = flight.answered == flight.batch.commands.len();
        let command = flight.batch.bytes.get(start..sent.end).unwrap_or_default();
        if reply.first() == Some(&b'-') {
            refused(self.shared, self.address, sent, command, reply);
        } else {
            self.untold.0 += 1;
            self.untold.1 += command.len() as u64;
        }
        if done {
            self.bytes -= flight.batch.bytes.len();
            // Who waits for the last answer then sees everything.
            self.tell();
            if let Some(flight) = self.flights.pop_front() {
                flight.batch.mark.release();
            }
        }
        Some(())
    }

    /// The connection is lost: what wasn't answered is to be sent again.
    fn scatter(&mut self, silent_since: Option<Instant>) {
        for flight in self.flights.drain(..) {
            let mut start = 0;
            for (at, sent) in flight.batch.commands.iter().enumerate() {
                let command = flight.batch.bytes.get(start..sent.end).unwrap_or_default();
                start = sent.end;
                if at >= flight.answered {
                    self.shared.progress.lost.fetch_add(1, Ordering::Relaxed);
                    let sent = Sent { since: sent.since.or(silent_since), ..*sent };
                    stray(self.shared, self.address, sent, command, Again::Lost);
                }
            }
            // Only now: the strays have their own marks.
            flight.batch.mark.release();
        }
        (self.commands, self.bytes) = (0, 0);
    }
}

fn refused(shared: &Arc<Shared>, address: SocketAddr, sent: Sent, command: &[u8], reply: &[u8]) {
    let text = String::from_utf8_lossy(reply.get(1..).unwrap_or_default());
    let error = ServerError::parse(text.trim_end());
    let again = match (error.redirect(), error.code.as_str()) {
        (Some(Redirect::Moved { host, port, .. }), _) => Again::Moved(peer(&host, port, address)),
        (Some(Redirect::Ask { host, port, .. }), _) => Again::Ask(peer(&host, port, address)),
        (None, "BUSYKEY") => {
            shared.progress.busy.fetch_add(1, Ordering::Relaxed);
            locked(&shared.progress.busy_keys).add(key_of(command, sent.asking));
            return;
        }
        (None, code) if passes(code) => Again::Later(error),
        _ => {
            shared.progress.refuse(key_of(command, sent.asking), error);
            return;
        }
    };
    stray(shared, address, sent, command, again);
}

/// Errors that go away by themselves, or when somebody makes room.
pub fn passes(code: &str) -> bool {
    matches!(
        code,
        "TRYAGAIN"
            | "CLUSTERDOWN"
            | "LOADING"
            | "MASTERDOWN"
            | "READONLY"
            | "OOM"
            | "MISCONF"
            | "NOREPLICAS"
            | "BUSY"
            | "UNKILLABLE"
    )
}

fn stray(shared: &Arc<Shared>, from: SocketAddr, sent: Sent, command: &[u8], again: Again) {
    let asking = if sent.asking { super::mend::ASKING.len() } else { 0 };
    let stray = Stray {
        command: command.get(asking..).unwrap_or_default().to_vec(),
        slot: sent.slot,
        offset: sent.offset,
        from,
        again,
        since: sent.since,
        mark: Mark::new(shared, sent.offset),
    };
    shared.progress.repeat(sent.slot);
    shared.stray_bytes.fetch_add(stray.command.len(), Ordering::Relaxed);
    // Where nobody mends any more, the load has stopped.
    let _ = shared.strays.send(stray);
}

/// The redirect's address; the host that was asked where it says none.
pub(super) fn peer(host: &str, port: u16, asked: SocketAddr) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap_or(asked.ip()), port)
}

/// A command's second word.
fn key_of(command: &[u8], asking: bool) -> &[u8] {
    let skip = if asking { super::mend::ASKING.len() } else { 0 };
    let mut rest = command.get(skip..).unwrap_or_default();
    let mut line = || {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let (head, tail) = rest.split_at_checked(end)?;
        rest = tail.get(2..)?;
        Some(head)
    };
    let _count = line();
    let _length = line();
    let _name = line();
    let length = line().and_then(|head| std::str::from_utf8(head.get(1..)?).ok()?.parse().ok());
    length.and_then(|length: usize| rest.get(..length)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_command() {
        let check = |command: &[u8], asking, key: &[u8]| assert_eq!(key_of(command, asking), key);
        check(b"*2\r\n$3\r\nGET\r\n$2\r\nab\r\n", false, b"ab");
        check(b"*1\r\n$6\r\nASKING\r\n*2\r\n$3\r\nGET\r\n$2\r\n\r\n\r\n", true, b"\r\n");
        check(b"*1\r\n$4\r\nPING\r\n", false, b"");
    }
}
