//! What is left to do when all commands are done: ends are set right, and the notes deleted.

use std::net::SocketAddr;

use protocol::{SLOT_COUNT, Slot, Value};
use tokio::time::{Instant, sleep};

use super::{LATER_MS, PAUSE, ReplayError, Replayer, unit::is_marker};
use crate::{
    admin_client::{ClientError, Commands},
    mover::load::Target,
    observe::now_ms,
};

/// Keys that are looked at together.
const KEYS: &str = "1000";

/// Hashes of which some fields are looked at together.
const HASHES: usize = 32;

impl Replayer<'_> {
    /// `ends`: some keys' may have been put off; `field_ends`: some fields'.
    pub(super) async fn finish(&mut self, ends: bool, field_ends: bool) -> Result<(), ReplayError> {
        if ends || field_ends {
            self.set_ends_right(field_ends).await?;
        }
        let noted: Vec<Slot> = if self.unsure {
            let all = if matches!(self.job.target, Target::Server(_)) { 1 } else { SLOT_COUNT };
            (0..all).filter_map(Slot::new).collect()
        } else {
            self.done.keys().copied().collect()
        };
        for slot in noted {
            let key = self.marker(slot).key.to_owned();
            self.direct.call(slot, &[b"DEL", key.as_bytes()]).await?;
        }
        Ok(())
    }

    /// Looks through all keys until none is left whose end was put off.
    async fn set_ends_right(&mut self, fields: bool) -> Result<(), ReplayError> {
        let mut give_up = Instant::now() + self.job.patience;
        loop {
            let mut left = None;
            for address in self.direct.primaries().await? {
                match self.set_ends_right_at(address, fields).await {
                    Ok(None) => {}
                    Ok(Some((key, count))) => {
                        left = Some(key);
                        if count > 0 {
                            give_up = Instant::now() + self.job.patience;
                        }
                    }
                    Err(error) if Instant::now() > give_up => return Err(error.into()),
                    Err(error) => {
                        self.watch.wait_for(Some(error.to_string()));
                        left = Some(Vec::new());
                        sleep(PAUSE).await;
                    }
                }
            }
            let Some(key) = left else { return Ok(()) };
            if Instant::now() > give_up {
                let key = key.escape_ascii().to_string();
                return Err(ReplayError::Ends { key });
            }
        }
    }

    /// A key whose end was put off, and how many were set right; None: there was none.
    async fn set_ends_right_at(
        &mut self,
        address: SocketAddr,
        fields: bool,
    ) -> Result<Option<(Vec<u8>, usize)>, ClientError> {
        let databases = match self.job.target {
            Target::Cluster(_) => vec![0],
            Target::Server(_) => self.databases(address).await?,
        };
        let mut found = None;
        let mut right = 0;
        for db in databases {
            let mut cursor = b"0".to_vec();
            loop {
                let mut commands = Commands::new();
                commands.push([b"SELECT".as_slice(), db.to_string().as_bytes()]);
                commands.push([b"SCAN".as_slice(), &cursor, b"COUNT", KEYS.as_bytes()]);
                let replies = self.direct.pipeline(address, &commands).await?;
                let Some([next, keys]) = replies.get(1).and_then(Value::as_array) else { break };
                cursor = next.as_bytes().unwrap_or(b"0").to_vec();
                let keys: Vec<&[u8]> = keys
                    .as_array()
                    .unwrap_or_default()
                    .iter()
                    .filter_map(Value::as_bytes)
                    .filter(|key| !is_marker(key))
                    .collect();
                if !keys.is_empty() {
                    right += self.set_right(address, &keys, &mut found).await?;
                    if fields {
                        right += self.set_fields_right(address, &keys, &mut found).await?;
                    }
                }
                if cursor == b"0" {
                    break;
                }
            }
        }
        let mut commands = Commands::new();
        commands.push(["SELECT", "0"]);
        self.direct.pipeline(address, &commands).await?;
        Ok(found.map(|key| (key, right)))
    }

    async fn set_right(
        &mut self,
        address: SocketAddr,
        keys: &[&[u8]],
        found: &mut Option<Vec<u8>>,
    ) -> Result<usize, ClientError> {
        let mut commands = Commands::new();
        for key in keys {
            commands.push([b"PEXPIRETIME".as_slice(), key]);
        }
        let mut ends = self.direct.pipeline(address, &commands).await?;
        let mut base_ms = 0;
        if ends.iter().any(|end| matches!(end, Value::Error(_))) {
            // One that only knows how long is left.
            let mut commands = Commands::new();
            for key in keys {
                commands.push([b"PTTL".as_slice(), key]);
            }
            base_ms = now_ms();
            ends = self.direct.pipeline(address, &commands).await?;
        }
        let mut commands = Commands::new();
        for (key, end) in keys.iter().zip(&ends) {
            let Some(end) = end.as_integer().and_then(|end| u64::try_from(end).ok()) else {
                continue;
            };
            if let Some(end) = (end + base_ms).checked_sub(LATER_MS) {
                found.get_or_insert_with(|| key.to_vec());
                commands.push([b"PEXPIREAT".as_slice(), key, end.to_string().as_bytes()]);
            }
        }
        if commands.is_empty() {
            return Ok(0);
        }
        let replies = self.direct.pipeline(address, &commands).await?;
        Ok(replies.iter().filter(|reply| reply.as_integer() == Some(1)).count())
    }

    /// Likewise for the fields of those that are hashes.
    async fn set_fields_right(
        &mut self,
        address: SocketAddr,
        keys: &[&[u8]],
        found: &mut Option<Vec<u8>>,
    ) -> Result<usize, ClientError> {
        let mut right = 0;
        let mut pages: Vec<(&[u8], Vec<u8>)> =
            keys.iter().map(|key| (*key, b"0".to_vec())).collect();
        while !pages.is_empty() {
            let some = pages.split_off(pages.len().saturating_sub(HASHES));
            let mut commands = Commands::new();
            for (key, cursor) in &some {
                commands.push([b"HSCAN".as_slice(), key, cursor, b"COUNT", KEYS.as_bytes()]);
            }
            let scanned = self.direct.pipeline(address, &commands).await?;
            let mut commands = Commands::new();
            let mut asked: Vec<(&[u8], Vec<&[u8]>)> = Vec::new();
            for ((key, _), page) in some.iter().zip(&scanned) {
                // Of other types there is an error.
                let Some([next, pairs]) = page.as_array() else { continue };
                let pairs = pairs.as_array().unwrap_or_default();
                let fields: Vec<&[u8]> =
                    pairs.iter().step_by(2).filter_map(Value::as_bytes).collect();
                if let Some(next) = next.as_bytes().filter(|next| *next != b"0") {
                    pages.push((*key, next.to_vec()));
                }
                if !fields.is_empty() {
                    let count = fields.len().to_string();
                    let head = [b"HPEXPIRETIME".as_slice(), key, b"FIELDS", count.as_bytes()];
                    let words: Vec<&[u8]> = head.into_iter().chain(fields.clone()).collect();
                    commands.push(&words);
                    asked.push((key, fields));
                }
            }
            let ends = self.direct.pipeline(address, &commands).await?;
            let mut commands = Commands::new();
            for ((key, fields), ends) in asked.iter().zip(&ends) {
                // A server that knows nothing of fields' ends has none.
                let ends = ends.as_array().unwrap_or_default();
                for (field, end) in fields.iter().zip(ends) {
                    let end = end.as_integer().and_then(|end| u64::try_from(end).ok());
                    if let Some(end) = end.and_then(|end| end.checked_sub(LATER_MS)) {
                        found.get_or_insert_with(|| key.to_vec());
                        let end = end.to_string();
                        let at = end.as_bytes();
                        commands.push([b"HPEXPIREAT".as_slice(), key, at, b"FIELDS", b"1", field]);
                    }
                }
            }
            let replies = self.direct.pipeline(address, &commands).await?;
            // 1: set; 2: its time is over, and it is gone.
            let is_right = |reply: &&Value| match reply.as_array() {
                Some([result]) => matches!(result.as_integer(), Some(1 | 2)),
                _ => false,
            };
            right += replies.iter().filter(is_right).count();
        }
        Ok(right)
    }

    /// A server's databases that hold keys.
    async fn databases(&mut self, address: SocketAddr) -> Result<Vec<u64>, ClientError> {
        let mut commands = Commands::new();
        commands.push(["INFO", "keyspace"]);
        let replies = self.direct.pipeline(address, &commands).await?;
        let text = replies.first().and_then(Value::as_str).unwrap_or_default();
        let numbers = text.lines().filter_map(|line| line.strip_prefix("db")?.split_once(':'));
        Ok(numbers.filter_map(|(number, _)| number.parse().ok()).collect())
    }
}
