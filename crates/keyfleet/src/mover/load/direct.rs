//! One command at a time to where its slot is, with its answer.
//!
//! For the few commands whose answers matter, and for asking what the servers hold. Shares the
//! load's table of owners.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use protocol::{
    Engine, Info, SLOT_COUNT, Slot, Value,
    engine::UnknownEngine,
    resp::{Redirect, ServerError},
};
use tokio::time::{Instant, sleep};

use super::{
    LoadError, Shared,
    lane::{open, passes, peer},
};
use crate::admin_client::{ClientError, Commands, Connection};

/// How long one answer may take: of a large value, or of many small ones.
const REPLY_TIME_MAX: Duration = Duration::from_secs(60);
/// Redirections that are followed without a pause.
const HOPS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Debug)]
pub struct Direct {
    shared: Arc<Shared>,
    links: BTreeMap<SocketAddr, Connection>,
}

impl Direct {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, links: BTreeMap::new() }
    }

    /// The answer of the slot's owner. Redirections are followed, and what passes is waited for as
    /// long as the load's patience lasts. An error that doesn't is a value. The command may have
    /// been done twice where a connection broke.
    pub async fn call(&mut self, slot: Slot, words: &[&[u8]]) -> Result<Value, LoadError> {
        let give_up = Instant::now() + self.shared.options.patience;
        let (mut asking, mut hops) = (None, 0);
        loop {
            let (address, ask) = match asking.take() {
                Some(address) => (address, true),
                None => (self.owner(slot)?, false),
            };
            hops += 1;
            let error = match self.once(address, ask, words).await {
                Ok(Value::Error(text)) => {
                    let error = ServerError::parse(&text);
                    match error.redirect() {
                        Some(Redirect::Moved { host, port, .. }) if hops % HOPS != 0 => {
                            self.shared.table.moved(slot, peer(&host, port, address));
                            continue;
                        }
                        Some(Redirect::Ask { host, port, .. }) if hops % HOPS != 0 => {
                            asking = Some(peer(&host, port, address));
                            continue;
                        }
                        Some(_) => Some(error),
                        None if passes(&error.code) => Some(error),
                        None => return Ok(Value::Error(text)),
                    }
                }
                Ok(answer) => return Ok(answer),
                Err(_) => None,
            };
            if Instant::now() > give_up {
                let seconds = self.shared.options.patience.as_secs();
                return Err(match error {
                    Some(source) => LoadError::Refused { address, seconds, source },
                    None => LoadError::Away { address, seconds },
                });
            }
            sleep(PAUSE).await;
            let _ = self.shared.table.refresh().await;
        }
    }

    async fn once(
        &mut self,
        address: SocketAddr,
        asking: bool,
        words: &[&[u8]],
    ) -> Result<Value, ClientError> {
        let mut commands = Commands::new();
        if asking {
            commands.push(["ASKING"]);
        }
        commands.push(words);
        let mut answers = self.pipeline(address, &commands).await?;
        Ok(answers.pop().unwrap_or(Value::Null))
    }

    /// Commands to one server, in one write.
    pub async fn pipeline(
        &mut self,
        address: SocketAddr,
        commands: &Commands,
    ) -> Result<Vec<Value>, ClientError> {
        let mut link = match self.links.remove(&address) {
            Some(link) => link,
            None => open(&self.shared, address).await?,
        };
        let answers = link.pipeline(commands, REPLY_TIME_MAX).await?;
        self.links.insert(address, link);
        Ok(answers)
    }

    /// The address of the slot's owner, as far as it was heard of.
    pub fn owner(&self, slot: Slot) -> Result<SocketAddr, LoadError> {
        Ok(self.shared.table.address(self.shared.table.lane_of(slot)?))
    }

    /// Every primary that owns slots, asked for anew.
    pub async fn primaries(&mut self) -> Result<Vec<SocketAddr>, LoadError> {
        self.shared.table.refresh().await?;
        let mut owners: Vec<SocketAddr> =
            (0..SLOT_COUNT).filter_map(Slot::new).flat_map(|slot| self.owner(slot)).collect();
        owners.sort_unstable();
        owners.dedup();
        Ok(owners)
    }

    /// The oldest engine among the primaries.
    pub async fn engine(&mut self) -> Result<Engine, ClientError> {
        let owners = self.primaries().await.unwrap_or_default();
        let mut oldest: Option<Engine> = None;
        for address in owners {
            let mut commands = Commands::new();
            commands.push(["INFO"]);
            let answers = self.pipeline(address, &commands).await?;
            let text = answers.first().and_then(Value::as_str).unwrap_or_default();
            let found = Engine::from_info(&Info::parse(text)).map_err(|error: UnknownEngine| {
                ClientError::Shape { address, command: "INFO", problem: error.to_string() }
            })?;
            oldest = Some(oldest.map_or(found, |oldest| oldest.min(found)));
        }
        let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
        oldest.ok_or(ClientError::Refused { address: nobody })
    }
}
