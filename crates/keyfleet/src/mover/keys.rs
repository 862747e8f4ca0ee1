//! Carrying the keys of slots from one node to another, with MIGRATE.
//!
//! A MIGRATE holds keys of one slot and blocks its node until the other end has taken them all, so
//! batches are sized by weight (bytes and a share for each key), and a burst of batches goes out in
//! one write, followed by the question what is left in the slot. The answer is the next round's
//! work: whatever failed half-way shows up in it, so nothing is remembered but what the node says.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use protocol::{Role, Slot, Value, resp::ServerError};
use tokio::time::{Instant, sleep};

use super::{
    ClientError, Commands, Connection, Login, REPLY_TIME_MAX, connect, pace::Pacer, slots::Fault,
};

/// What a key costs beside its bytes, in the time that this many bytes take.
const KEY_WEIGHT: u64 = 800;
/// One MIGRATE's weight, at the most, unless a single key is heavier.
const BATCH_WEIGHT_MAX: u64 = 512 << 10;
/// MIGRATEs in one burst, at the most: bounds how long a target that hangs can hold the source.
const BURST_BATCHES_MAX: usize = 8;
/// Keys asked for in a slot at once.
const LISTED_KEYS_MAX: usize = 1_000;
/// One key in so many is asked for its size.
const SAMPLE_EVERY: usize = 16;
/// MIGRATE's own time-out for an ordinary batch.
const MIGRATE_TIME_MS: u64 = 500;
/// What a time-out allows a heavy batch beside it.
const MIGRATE_BYTES_PER_MS: u64 = 20_000;
/// How long refusals that pass (the target loads, votes, runs a script) are waited out.
const PATIENCE: Duration = Duration::from_secs(30);
const PASSING_PAUSE: Duration = Duration::from_millis(100);
/// How many bursts in a row may time out, and the pause after one: the target may catch up.
const TIME_OUTS_MAX: u32 = 4;
const TIME_OUT_PAUSE: Duration = Duration::from_millis(500);

/// The keys that a node holds in a slot, at most [`LISTED_KEYS_MAX`] of them.
#[derive(Debug)]
pub(super) struct Listing {
    pub slot: Slot,
    pub keys: Vec<Vec<u8>>,
}

impl Listing {
    /// Appends the question to a pipeline.
    pub fn ask(slot: Slot, pipeline: &mut Commands) {
        let (slot, count) = (slot.to_string(), LISTED_KEYS_MAX.to_string());
        pipeline.push(["CLUSTER", "GETKEYSINSLOT", &slot, &count]);
    }

    /// Reads the answer.
    pub fn read(slot: Slot, reply: Value, from: &Connection) -> Result<Self, Fault> {
        let refused = |error| Fault::refused(from.address(), "CLUSTER GETKEYSINSLOT", error);
        let Value::Array(items) = reply.into_result().map_err(refused)? else {
            return Err(Fault::Strange { node: from.address(), command: "CLUSTER GETKEYSINSLOT" });
        };
        let key = |item| match item {
            Value::Bulk(key) => Some(key),
            _ => None,
        };
        Ok(Self { slot, keys: items.into_iter().filter_map(key).collect() })
    }
}

/// A part of a listing that goes in one MIGRATE.
struct Batch<'a> {
    slot: Slot,
    keys: &'a [Vec<u8>],
    bytes: u64,
    /// The slot's last: what is left is asked after it.
    last: bool,
}

impl Batch<'_> {
    fn weight(&self) -> u64 {
        self.bytes + KEY_WEIGHT * self.keys.len() as u64
    }
}

/// Takes keys out of one node into another.
pub(super) struct Carrier<'a> {
    pub from: Connection,
    pub to: SocketAddr,
    pub login: Option<&'a Login>,
    /// Overwrite what the other end has under the same name. Right only where `from` owns the slot
    /// and has it marked as migrating to `to`: then clients were served by `from` whenever it had
    /// the key, and a twin at `to` is what an earlier MIGRATE left that timed out: older or equal.
    pub replace: bool,
    /// `cluster-node-timeout`: a node that hangs in MIGRATE for longer is taken for dead.
    pub node_timeout: Duration,
    pub pacer: &'a Pacer,
    /// Told of keys and bytes that arrived.
    pub arrived: &'a (dyn Fn(u64, u64) + Send + Sync),
}

/// What came of sending every batch once.
#[derive(Default)]
struct Round {
    /// Slots that at least one batch left.
    carried: BTreeSet<Slot>,
    /// Slots in which the target has a key of the same name.
    busy: BTreeSet<Slot>,
    /// What the slots hold now.
    left: Vec<Listing>,
    /// A refusal that passes.
    passing: Option<ServerError>,
    /// The target's answer didn't come in time, to a MIGRATE of so many bytes.
    timed_out: Option<(Slot, u64)>,
    fatal: Option<Fault>,
}

impl<'a> Carrier<'a> {
    /// A carrier that overwrites.
    pub async fn connect(
        from: SocketAddr,
        to: SocketAddr,
        login: Option<&'a Login>,
        pacer: &'a Pacer,
        arrived: &'a (dyn Fn(u64, u64) + Send + Sync),
    ) -> Result<Self, Fault> {
        let mut from = connect(from, login).await?;
        let node_timeout = node_timeout(&mut from).await?;
        Ok(Self { from, to, login, replace: true, node_timeout, pacer, arrived })
    }

    /// Asks what is in the slots.
    pub async fn list(&mut self, slots: &[Slot]) -> Result<Vec<Listing>, Fault> {
        let mut commands = Commands::new();
        for slot in slots {
            Listing::ask(*slot, &mut commands);
        }
        commands.push(["ROLE"]);
        let mut replies = self.from.pipeline(&commands, REPLY_TIME_MAX).await?.into_iter();
        let mut reply = || replies.next().unwrap_or(Value::Null);
        let lists: Result<Vec<Listing>, Fault> =
            slots.iter().map(|slot| Listing::read(*slot, reply(), &self.from)).collect();
        let lists = lists?;
        expect_primary(reply(), self.from.address())?;
        Ok(lists)
    }

    /// Carries until every listed slot is empty. Where `replace` is off, slots in which only keys are
    /// left that the other end has too are returned.
    pub async fn carry(&mut self, mut lists: Vec<Listing>) -> Result<BTreeSet<Slot>, Fault> {
        let mut stuck = BTreeSet::new();
        // Slots that had trouble: one key a MIGRATE tells which key it is.
        let mut singly = BTreeSet::new();
        let mut waiting_since: Option<Instant> = None;
        let mut time_outs = 0;
        loop {
            lists.retain(|list| !list.keys.is_empty() && !stuck.contains(&list.slot));
            if lists.is_empty() {
                return Ok(stuck);
            }
            let sizes = self.sizes(&lists).await?;
            let weight_max = self.pacer.burst_weight().min(BATCH_WEIGHT_MAX);
            let batches = cut(&lists, &sizes, weight_max, &singly);
            let mut round = Round::default();
            let mut rest = batches.as_slice();
            while !rest.is_empty() && round.fatal.is_none() && round.timed_out.is_none() {
                // A target that didn't answer in time gets one at a time until it does.
                let weight = if time_outs == 0 { self.pacer.burst_weight() } else { 0 };
                let (burst, later) = rest.split_at(burst_length(rest, weight));
                rest = later;
                self.send(burst, &mut round).await?;
            }
            if let Some(fault) = round.fatal {
                return Err(fault);
            }
            if let Some((slot, bytes)) = round.timed_out {
                time_outs += 1;
                if time_outs == TIME_OUTS_MAX {
                    return Err(Fault::TimedOut { slot, to: self.to, bytes });
                }
                singly.insert(slot);
                sleep(TIME_OUT_PAUSE).await;
            }
            for slot in round.busy.difference(&round.carried) {
                if !singly.insert(*slot) {
                    stuck.insert(*slot);
                }
            }
            singly.extend(&round.busy);
            if !round.carried.is_empty() {
                waiting_since = None;
                if round.timed_out.is_none() {
                    time_outs = 0;
                }
            } else if let Some(error) = round.passing {
                if waiting_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                    return Err(Fault::refused(self.to, "MIGRATE", error));
                }
                sleep(PASSING_PAUSE).await;
            }
            // What was not sent, or not asked for after it, is listed again.
            let unsent: BTreeSet<Slot> = rest.iter().map(|batch| batch.slot).collect();
            let mut next = round.left;
            next.retain(|list| !unsent.contains(&list.slot));
            next.extend(self.list(&unsent.into_iter().collect::<Vec<Slot>>()).await?);
            lists = next;
        }
    }

    /// The sizes in memory of a sample of the keys, in bytes; None for the others.
    async fn sizes(&mut self, lists: &[Listing]) -> Result<Vec<Option<u64>>, Fault> {
        let keys: Vec<&Vec<u8>> = lists.iter().flat_map(|list| &list.keys).collect();
        let every = SAMPLE_EVERY.min(keys.len().div_ceil(32)).max(1);
        let mut pipeline = Commands::new();
        for key in keys.iter().step_by(every) {
            pipeline.push([b"MEMORY".as_slice(), b"USAGE", key]);
        }
        let replies = self.from.pipeline(&pipeline, PATIENCE).await?;
        let mut sizes = vec![None; keys.len()];
        for (size, reply) in sizes.iter_mut().step_by(every).zip(replies) {
            *size = reply.as_integer().and_then(|bytes| u64::try_from(bytes).ok());
        }
        Ok(sizes)
    }

    /// Sends one burst and notes what came of it.
    async fn send(&mut self, burst: &[Batch<'_>], round: &mut Round) -> Result<(), Fault> {
        let mut pipeline = Commands::new();
        let mut time_max = Duration::from_secs(10);
        for batch in burst {
            let batch_time = self.migrate_time(batch.bytes);
            time_max += batch_time * 2;
            self.push_migrate(batch, batch_time, &mut pipeline);
            if batch.last {
                Listing::ask(batch.slot, &mut pipeline);
            }
        }
        pipeline.push(["ROLE"]);
        let started = Instant::now();
        let replies = self.from.pipeline(&pipeline, time_max).await?;
        let took = started.elapsed();
        let mut replies = replies.into_iter();
        let mut reply = || replies.next().unwrap_or(Value::Null);
        for batch in burst {
            match reply().into_result() {
                Ok(answer) => {
                    if answer.as_str() == Some("OK") {
                        (self.arrived)(batch.keys.len() as u64, batch.bytes);
                    }
                    round.carried.insert(batch.slot);
                }
                Err(error) => self.sort(batch, error, round),
            }
            if batch.last {
                round.left.push(Listing::read(batch.slot, reply(), &self.from)?);
            }
        }
        expect_primary(reply(), self.from.address())?;
        self.pacer.after_burst(burst.iter().map(Batch::weight).sum(), took).await;
        Ok(())
    }

    fn push_migrate(&self, batch: &Batch<'_>, time: Duration, pipeline: &mut Commands) {
        let (host, port) = (self.to.ip().to_string(), self.to.port().to_string());
        let time_ms = time.as_millis().to_string();
        let mut args: Vec<&[u8]> = Vec::with_capacity(batch.keys.len() + 12);
        args.extend([b"MIGRATE", host.as_bytes(), port.as_bytes(), b"", b"0", time_ms.as_bytes()]);
        if self.replace {
            args.push(b"REPLACE");
        }
        if let Some(Login { user, password }) = self.login {
            args.extend([b"AUTH2", user.as_bytes(), password.expose().as_bytes()]);
        }
        args.push(b"KEYS");
        args.extend(batch.keys.iter().map(Vec::as_slice));
        pipeline.push(args);
    }

    fn migrate_time(&self, bytes: u64) -> Duration {
        let wanted = Duration::from_millis(MIGRATE_TIME_MS + bytes / MIGRATE_BYTES_PER_MS);
        wanted.min((self.node_timeout * 2 / 3).max(Duration::from_millis(MIGRATE_TIME_MS)))
    }

    /// Puts a refused MIGRATE where it belongs. The source's own refusals have their code first; the
    /// target's come as `ERR Target instance replied with error: CODE …`.
    fn sort(&self, batch: &Batch<'_>, error: ServerError, round: &mut Round) {
        let theirs = error.message.strip_prefix("Target instance replied with error: ");
        let Some(theirs) = theirs.map(ServerError::parse) else {
            match error.code.as_str() {
                "IOERR" => round.timed_out = Some((batch.slot, batch.bytes)),
                "LOADING" | "BUSY" => round.passing = Some(error),
                _ => {
                    let fault = Fault::refused(self.from.address(), "MIGRATE", error);
                    round.fatal.get_or_insert(fault);
                }
            }
            return;
        };
        match theirs.code.as_str() {
            "BUSYKEY" => {
                round.busy.insert(batch.slot);
            }
            "LOADING" | "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" | "NOREPLICAS" => {
                round.passing = Some(theirs);
            }
            _ => {
                round.fatal.get_or_insert(Fault::refused(self.to, "MIGRATE", theirs));
            }
        }
    }
}

/// A node's answer to ROLE says that it is a primary: what it said before it is of the shard's data
/// and not of a copy that may be behind.
fn expect_primary(reply: Value, node: SocketAddr) -> Result<(), Fault> {
    let reply = reply.into_result().map_err(|error| Fault::refused(node, "ROLE", error))?;
    match Role::from_reply(&reply) {
        Ok(Role::Primary { .. }) => Ok(()),
        Ok(_) => Err(Fault::Demoted { node }),
        Err(_) => Err(Fault::Strange { node, command: "ROLE" }),
    }
}

/// Is the node a primary, by its own word?
pub(super) async fn is_primary(link: &mut Connection) -> Result<bool, Fault> {
    let reply = link.call_within(REPLY_TIME_MAX, ["ROLE"]).await?;
    match expect_primary(reply, link.address()) {
        Ok(()) => Ok(true),
        Err(Fault::Demoted { .. }) => Ok(false),
        Err(fault) => Err(fault),
    }
}

/// `cluster-node-timeout`, or its default where the node doesn't tell.
async fn node_timeout(link: &mut Connection) -> Result<Duration, Fault> {
    let asked = link.call_within(REPLY_TIME_MAX, ["CONFIG", "GET", "cluster-node-timeout"]).await;
    let reply = match asked {
        Err(ClientError::Server { .. }) => Value::Null,
        result => result?,
    };
    let told = reply.pairs().and_then(|pairs| pairs.first()?.1.as_integer());
    Ok(Duration::from_millis(told.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(15_000)))
}

/// Cuts listings into batches. `sizes` are those of all the listed keys in order; slots in `singly`
/// get a batch for each key.
fn cut<'a>(
    lists: &'a [Listing],
    sizes: &[Option<u64>],
    weight_max: u64,
    singly: &BTreeSet<Slot>,
) -> Vec<Batch<'a>> {
    let known: Vec<u64> = sizes.iter().flatten().copied().collect();
    let mean = known.iter().sum::<u64>() / (known.len() as u64).max(1);
    let mut sizes = sizes.iter().map(|size| size.unwrap_or(mean));
    let mut batches = Vec::new();
    for list in lists {
        let weight_max = if singly.contains(&list.slot) { 1 } else { weight_max };
        let mut start = 0;
        let mut bytes = 0;
        for end in 1..=list.keys.len() {
            bytes += sizes.next().unwrap_or(mean);
            let weight = bytes + KEY_WEIGHT * (end - start) as u64;
            if weight >= weight_max || end == list.keys.len() {
                let keys = list.keys.get(start..end).unwrap_or_default();
                let last = end == list.keys.len();
                batches.push(Batch { slot: list.slot, keys, bytes, last });
                start = end;
                bytes = 0;
            }
        }
    }
    batches
}

/// How many of the batches go in one burst: at least one.
fn burst_length(batches: &[Batch<'_>], weight_max: u64) -> usize {
    let mut weight = 0;
    let fits = |batch: &&Batch<'_>| {
        weight += batch.weight();
        weight <= weight_max
    };
    batches.iter().take(BURST_BATCHES_MAX).take_while(fits).count().max(1).min(batches.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(slot: u16, keys: usize) -> Listing {
        Listing { slot: Slot::new(slot).unwrap(), keys: vec![b"k".to_vec(); keys] }
    }

    #[test]
    fn batches_by_weight() {
        let check = |sizes: &[Option<u64>], weight_max: u64, expected: &[(usize, u64)]| {
            let lists = [listing(1, sizes.len())];
            let batches = cut(&lists, sizes, weight_max, &BTreeSet::new());
            let found: Vec<(usize, u64)> =
                batches.iter().map(|batch| (batch.keys.len(), batch.bytes)).collect();
            assert_eq!(found, expected);
            assert_eq!(batches.iter().filter(|batch| batch.last).count(), 1);
        };
        check(&[Some(200), None, None], 10_000, &[(3, 600)]);
        check(&[Some(200), None, None], 2_000, &[(2, 400), (1, 200)]);
        check(&[Some(200), Some(9_000), Some(200)], 5_000, &[(2, 9_200), (1, 200)]);
        check(&[Some(200), None], 1, &[(1, 200), (1, 200)]);
    }

    #[test]
    fn slots_in_trouble_go_key_by_key() {
        let lists = [listing(1, 3), listing(2, 2)];
        let singly = [Slot::new(2).unwrap()].into();
        let batches = cut(&lists, &[Some(100); 5], 100_000, &singly);
        let keys: Vec<usize> = batches.iter().map(|batch| batch.keys.len()).collect();
        assert_eq!(keys, [3, 1, 1]);
        assert_eq!(burst_length(&batches, 1), 1);
        assert_eq!(burst_length(&batches, 2 * (3 * 900)), 3);
        assert_eq!(burst_length(&[], 1), 0);
    }
}
