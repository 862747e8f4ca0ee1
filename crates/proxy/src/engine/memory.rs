//! What all buffers may hold together, and who goes when they hold more.
//!
//! Each client, and each connection to a server, has limits of its own ([`super::Limits`]), where it
//! is not read from until there is room; clients that stay within theirs can still be too many. Then
//! those that hold most are closed, as engines do it for `maxmemory-clients`, until there is room.
//!
//! Nothing is counted as it comes and goes: everything is looked over, and not again before so much
//! was read from sockets that it could matter.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{
    Action, ClientId, Ending, Engine,
    client::{Awaited, Client, Work},
    split::Split,
};

/// What the buffers of all engines that serve the same may hold, and do, in bytes.
#[derive(Debug)]
pub struct Memory {
    bytes_max: usize,
    engines: usize,
    /// What each engine told last, together.
    held: AtomicUsize,
}

impl Memory {
    /// For so many engines together.
    pub const fn new(bytes_max: usize, engines: usize) -> Self {
        let engines = if engines == 0 { 1 } else { engines };
        Self { bytes_max, engines, held: AtomicUsize::new(0) }
    }

    /// What they may hold.
    pub const fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    /// However little room there is, so much comes between two looks.
    const fn step(&self) -> usize {
        self.bytes_max / self.engines / 64
    }
}

impl Default for Memory {
    /// Without bound.
    fn default() -> Self {
        Self::new(usize::MAX, 1)
    }
}

/// What an engine knows of it.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// So much may come from sockets before the next look.
    left: usize,
    /// What it held at the last one.
    held: usize,
}

impl Meter {
    /// Bytes came. True: it is time for a look.
    #[inline]
    pub fn comes(&mut self, count: usize) -> bool {
        self.left = self.left.saturating_sub(count);
        self.left == 0
    }
}

impl Engine {
    /// Bytes of buffers: what clients and servers sent that is not passed on yet, and what is kept
    /// for reuse. Walks over everything.
    pub fn buffer_bytes(&self) -> usize {
        let works = self.clients.iter().filter_map(|(_, client)| client.work.as_deref());
        let clients: usize = works.map(Work::buffer_bytes).sum();
        let conns: usize = self.core.conns.iter().map(|(_, conn)| conn.buffer_bytes()).sum();
        let splits: usize = self.core.splits.iter().map(|(_, split)| split.bytes_held()).sum();
        let reused = self.core.works.buffer_bytes() + self.core.scratch.buffer_bytes();
        clients + conns + splits + reused + self.core.limbo.bytes()
    }

    /// Looks over everything, and closes the clients that hold most where that is too much.
    #[cold]
    pub(super) fn look_over(&mut self) {
        let held = self.buffer_bytes();
        let before = std::mem::replace(&mut self.core.meter.held, held);
        let memory = &self.core.limits.memory;
        let all = memory.held.fetch_add(held.wrapping_sub(before), Relaxed);
        let all = all.wrapping_add(held.wrapping_sub(before));
        let (most, share) = (memory.bytes_max, memory.bytes_max / memory.engines);
        // What comes may stand in two buffers for a moment, and a buffer has room ahead.
        let room = most.saturating_sub(all) / memory.engines / 4;
        self.core.meter.left = room.max(memory.step()).max(1);
        // Where others hold more than their share it is they who have to give.
        if all > most && held > share {
            self.evict((all - most + memory.step()).min(held));
        }
    }

    /// Much is held: it is looked over as time passes too, so that the others know when it is less.
    pub(super) fn holds_much(&self) -> bool {
        self.core.meter.held / 4 > self.core.limits.memory.step()
    }

    /// Closes the clients that hold most, until so much is free. They keep half of what all may hold
    /// in any case: where there is too much nevertheless, it is not they who hold it.
    fn evict(&mut self, excess: usize) {
        let splits = &self.core.splits;
        let held = |work: &Work| {
            let splits = work.ring.iter().filter_map(|awaited| match awaited {
                Awaited::Split(split) => splits.get(*split),
                _ => None,
            });
            work.buffer_bytes() + splits.map(Split::bytes_held).sum::<usize>()
        };
        let works = |(id, client): (ClientId, &Client)| Some((held(client.work.as_deref()?), id));
        let mut clients: Vec<(usize, ClientId)> = self.clients.iter().filter_map(works).collect();
        clients.sort_unstable_by_key(|(bytes, _)| *bytes);
        let memory = &self.core.limits.memory;
        let kept = memory.bytes_max / memory.engines / 2;
        let mut left: usize = clients.iter().map(|(bytes, _)| *bytes).sum();
        let enough = left.saturating_sub(excess).max(kept);
        while left > enough
            && let Some((bytes, id)) = clients.pop()
        {
            left -= bytes;
            self.evict_client(id, bytes);
        }
    }

    fn evict_client(&mut self, id: ClientId, bytes: usize) {
        let Some(client) = self.clients.get_mut(id).filter(|it| it.ending != Ending::Closed) else {
            return;
        };
        // Now, not when its socket is closed.
        self.core.drop_work(client);
        if let Some(pool) = self.core.pools.get(usize::from(client.pool)) {
            pool.counters.clients_evicted.add(1);
        }
        self.core.meter.held = self.core.meter.held.saturating_sub(bytes);
        self.core.limits.memory.held.fetch_sub(bytes, Relaxed);
        self.core.turn.actions.push_back(Action::Evicted { client: id, bytes });
        self.close_client(id);
    }
}

impl super::Core {
    /// What a client asked and was to be told is forgotten.
    pub(super) fn drop_work(&mut self, client: &mut Client) {
        for awaited in client.work.take().iter().flat_map(|work| &work.ring) {
            if let Awaited::Split(split) = awaited {
                self.splits.remove(*split);
            }
        }
    }
}
