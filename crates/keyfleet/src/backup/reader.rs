//! An object read like a file, by a thread that may block: some megabytes at a time, the next of them
//! asked for already.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::{runtime::Handle, task::JoinHandle};

use super::storage::{Storage, StorageError};
use crate::secrets::hex;

const READ_BYTES: u64 = 4 << 20;

/// An object that can be read from anywhere.
#[derive(Clone, Debug)]
pub struct Stored {
    pub storage: Storage,
    pub name: String,
    pub bytes: u64,
    /// In hexadecimal, where it is known: who reads all of it learns whether it is right.
    pub sha256: Option<String>,
}

impl Stored {
    /// Reads from `offset` on. To be called in a runtime.
    pub fn open(&self, offset: u64) -> impl Read + use<> {
        Reader {
            stored: self.clone(),
            runtime: Handle::current(),
            at: offset,
            chunk: Bytes::new(),
            ahead: None,
            sum: self.sha256.is_some().then(Sha256::new).filter(|_| offset == 0),
        }
    }
}

struct Reader {
    stored: Stored,
    runtime: Handle,
    /// Up to where was asked for.
    at: u64,
    chunk: Bytes,
    ahead: Option<JoinHandle<Result<Bytes, StorageError>>>,
    /// Of all that was read, where that is from the beginning.
    sum: Option<Sha256>,
}

impl Reader {
    /// Asks for the next bytes; None: there are no more.
    fn ask(&mut self) -> Option<JoinHandle<Result<Bytes, StorageError>>> {
        let range = self.at..self.stored.bytes.min(self.at.saturating_add(READ_BYTES));
        if range.is_empty() {
            return None;
        }
        self.at = range.end;
        let Stored { storage, name, .. } = self.stored.clone();
        Some(self.runtime.spawn(async move { storage.read_range(&name, range).await }))
    }

    /// Its last byte was read: was it the file that it should be?
    fn check(&mut self) -> io::Result<()> {
        let Some((sum, expected)) = self.sum.take().zip(self.stored.sha256.as_ref()) else {
            return Ok(());
        };
        if hex(&sum.finalize()) == *expected {
            return Ok(());
        }
        let why = "it is another file than the one that was written: its SHA-256 differs";
        Err(io::Error::new(io::ErrorKind::InvalidData, why))
    }
}

impl Read for Reader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.chunk.is_empty() {
            let asked = match self.ahead.take() {
                Some(asked) => Some(asked),
                None => self.ask(),
            };
            let Some(asked) = asked else {
                self.check()?;
                return Ok(0);
            };
            self.ahead = self.ask();
            let came = self.runtime.block_on(asked).map_err(io::Error::other)?;
            self.chunk = came.map_err(io::Error::other)?;
            if let Some(sum) = &mut self.sum {
                sum.update(&self.chunk);
            }
        }
        let count = self.chunk.len().min(into.len());
        if let Some(into) = into.get_mut(..count) {
            self.chunk.copy_to_slice(into);
        }
        Ok(count)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(ahead) = &self.ahead {
            ahead.abort();
        }
    }
}
