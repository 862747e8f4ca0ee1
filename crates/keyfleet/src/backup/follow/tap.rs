//! One shard's stream, from whoever gives it: servers come and go, and no byte is missing.

use std::sync::{Arc, Mutex};

use tokio::time::sleep;

use super::{PAUSE, TICK};
use crate::{
    admin_client::Login,
    backup::{
        layout::Source,
        replica::Point,
        tail::{Tail, TailError},
    },
    errors::with_causes,
    sync::locked,
};

/// One shard's stream as it comes.
#[derive(Debug)]
pub struct Tap {
    pub sources: Mutex<Vec<Source>>,
    pub held: Mutex<Held>,
    /// Above so many bytes nothing is read.
    pub held_bytes_max: usize,
}

#[derive(Debug)]
pub struct Held {
    pub bytes: Vec<u8>,
    /// Where the bytes end.
    pub point: Point,
    /// Why nothing comes.
    pub away: Option<String>,
    /// Nobody can go on with it.
    pub gone: Option<String>,
}

/// Why nobody gives a stream.
pub enum Lost {
    /// Nobody has it any more.
    Gone(String),
    Away(String),
}

/// The stream from the first server that gives it.
pub async fn open_any(
    sources: &[Source],
    login: Option<&Login>,
    from: Option<&Point>,
) -> Result<Tail, Lost> {
    let mut gone = true;
    let mut why = "no server is known".to_owned();
    for source in sources {
        match Tail::open(source.address, login, &source.engine, from).await {
            Ok(tail) => return Ok(tail),
            Err(error) => {
                gone &= matches!(error, TailError::Gone { .. });
                why = with_causes(&error);
            }
        }
    }
    // Only the primary knows that there is no more.
    Err(if gone && !sources.is_empty() { Lost::Gone(why) } else { Lost::Away(why) })
}

impl Tap {
    pub fn held_bytes(&self) -> usize {
        locked(&self.held).bytes.len()
    }

    /// What came since, and where it ends.
    pub fn take(&self) -> (Vec<u8>, Point) {
        let mut held = locked(&self.held);
        (std::mem::take(&mut held.bytes), held.point.clone())
    }

    /// Reads for ever, from whoever has the stream.
    pub async fn run(self: Arc<Self>, tail: Tail, login: Option<Login>) {
        let mut tail = Some(tail);
        let mut chunk = Vec::new();
        loop {
            let mut reading = match tail.take() {
                Some(tail) => tail,
                None => match self.again(login.as_ref()).await {
                    Some(tail) => tail,
                    None => return,
                },
            };
            let error = loop {
                while self.held_bytes() > self.held_bytes_max {
                    sleep(PAUSE).await;
                }
                chunk.clear();
                if let Err(error) = reading.read(&mut chunk).await {
                    break error;
                }
                let mut held = locked(&self.held);
                held.bytes.extend_from_slice(&chunk);
                held.point.clone_from(&reading.point);
                held.away = None;
            };
            drop(reading);
            tracing::debug!("a stream ended: {error}");
            locked(&self.held).away = Some(with_causes(&error));
            if matches!(error, TailError::Stopping { .. }) {
                sleep(2 * TICK).await;
            }
        }
    }

    /// The stream from where it was left; None: nobody has it any more.
    async fn again(&self, login: Option<&Login>) -> Option<Tail> {
        let mut pause = PAUSE / 5;
        loop {
            let sources = locked(&self.sources).clone();
            let point = locked(&self.held).point.clone();
            match open_any(&sources, login, Some(&point)).await {
                Ok(tail) => {
                    // It may go by a new id from here on.
                    locked(&self.held).point.clone_from(&tail.point);
                    return Some(tail);
                }
                Err(Lost::Gone(why)) => {
                    locked(&self.held).gone = Some(why);
                    return None;
                }
                Err(Lost::Away(why)) => locked(&self.held).away = Some(why),
            }
            sleep(pause).await;
            pause = (pause * 2).min(TICK);
        }
    }
}
