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

impl Replayer<'_> {
    /// `ends`: some keys' may have been put off.
    pub(super) async fn finish(&mut self, ends: bool) -> Result<(), ReplayError> {
        if ends {
            self.set_ends_right().await?;
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
    async fn set_ends_right(&mut self) -> Result<(), ReplayError> {
        let mut give_up = Instant::now() + self.job.patience;
        loop {
            let mut left = None;
            for address in self.direct.primaries().await? {
                match self.set_ends_right_at(address).await {
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
