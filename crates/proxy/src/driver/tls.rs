//! TLS between a socket and the engine, which sees plain bytes only.

use std::{
    cell::RefCell,
    io::{self, ErrorKind, Read as _, Write as _},
    net::Shutdown,
};

use mio::net::TcpStream;
use rustls::Connection;

/// Sealed bytes that one read may bring.
const SEALED_BYTES: usize = 64 << 10;
/// A record's plain bytes: what one that began before may add to what is read now.
const RECORD_BYTES_MAX: usize = 16 << 10;

thread_local! {
    /// Sealed bytes between the socket and the session, of whichever socket is read just now.
    static SEALED: RefCell<Box<[u8]>> = RefCell::new(vec![0; SEALED_BYTES].into_boxed_slice());
}

/// A connection with its TLS session, of a client or to a server.
pub(super) struct TlsSocket {
    pub stream: TcpStream,
    session: Connection,
    /// The other end said that it won't send more.
    ended: bool,
}

impl TlsSocket {
    pub fn new(stream: TcpStream, session: Connection) -> Self {
        Self { stream, session, ended: false }
    }

    /// Is it still to be agreed on how to speak? Nothing can be written before.
    pub fn opening(&self) -> bool {
        self.session.is_handshaking()
    }

    /// Plain bytes, and whether the socket was emptied. 0: the other end sends no more.
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
                    // The other end is told what was wrong.
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
        while self.flush()? && !self.opening() {
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
