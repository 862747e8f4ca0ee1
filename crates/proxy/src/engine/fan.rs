//! Requests that concern all servers, or any of them.

use protocol::commands::{Arguments as _, Command, Merge, Repeat};

use super::{
    ClientId, Core, Route,
    client::{Awaited, Client, Hold},
    dispatch::{Nature, Outcome, Request},
    gather::{Gather, How},
    server::{Kind, Pending},
    split::Split,
};

/// Where a request goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct To {
    /// Among [`Core::servers`].
    pub server: u16,
    /// A slot of its: whoever has that slot is asked when the server is lost.
    pub lane: u16,
}

/// What is asked, and what becomes of the replies.
pub(super) struct Ask<'a> {
    pub bytes: &'a [u8],
    pub repeatable: bool,
    pub how: How,
    /// Whose reply is taken where one of several is.
    pub preferred: usize,
}

/// No other server can be asked instead.
pub(super) const NO_LANE: u16 = u16::MAX;

/// All servers of a pool that have keys.
pub(super) struct Everyone {
    /// By lowest slot; of a ring in its order.
    pub servers: Vec<To>,
    /// Has every key a place?
    pub whole: bool,
    /// Tells how the slots are shared out.
    pub print: u32,
}

impl Core {
    /// None where there is nobody.
    pub(super) fn everyone(&self, pool: u16) -> Option<Everyone> {
        let pool = self.pools.get(usize::from(pool))?;
        let mut servers: Vec<To> = Vec::new();
        let (whole, print) = match &pool.route {
            Route::Ring(_) => {
                for (lane, server) in (0..).zip(&pool.servers) {
                    if servers.iter().all(|to| to.server != *server) {
                        servers.push(To { server: *server, lane });
                    }
                }
                (true, servers.len() as u32)
            }
            Route::Slots(slots) => {
                let partition = slots.partition();
                for share in &partition.shares {
                    let server = *pool.servers.get(usize::from(share.server))?;
                    servers.push(To { server, lane: share.first });
                }
                (partition.whole, partition.print)
            }
        };
        (!servers.is_empty()).then_some(Everyone { servers, whole, print })
    }

    /// Sends a request to all servers; see [`protocol::commands::Route::AllPrimaries`].
    pub(super) fn ask_all(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
        merge: Merge,
    ) -> Outcome {
        // An answer about data without the data of some slots would be wrong.
        let concerns_data = command.is_read() || command.is_write();
        let everyone = self.everyone(client.pool).filter(|all| all.whole || !concerns_data);
        let Some(everyone) = everyone else {
            self.nobody(id, client);
            return Outcome::Taken;
        };
        // Who has more slots has more keys, so that its one key should be taken more often.
        let owner = self.random_owner(client.pool);
        let preferred = everyone.servers.iter().position(|to| Some(to.server) == owner);
        let ask = Ask {
            bytes: request.bytes,
            repeatable: command.repeat == Repeat::Always,
            how: How::Merge(merge),
            preferred: preferred.unwrap_or(0),
        };
        let outcome = self.send_each(id, client, &everyone.servers, ask);
        if outcome == Outcome::Taken {
            match command.name {
                "script|load" => self.remember_script(client.pool, request.bytes),
                "script|flush" => self.forget_scripts(client.pool),
                _ => {}
            }
        }
        outcome
    }

    /// Sends a request to one server: of one client always to the same, so that what it publishes
    /// stays in order.
    pub(super) fn ask_any(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Outcome {
        // Servers of a ring don't know of each other: a channel has its place as a key has.
        if command.name == "publish" && self.is_ring(client.pool) {
            let channel = request.get(1).unwrap_or_default();
            let nature = Nature::of(command, request);
            return self.forward(id, client, request.bytes, channel, nature);
        }
        let Some(mut everyone) = self.everyone(client.pool) else {
            self.nobody(id, client);
            return Outcome::Taken;
        };
        let first = id.index() % everyone.servers.len();
        everyone.servers.rotate_left(first);
        let reached = |to: &&To| self.conn_for(to.server, client.profile, id).is_ok();
        let to = everyone.servers.iter().find(reached).or(everyone.servers.first()).copied();
        let ask = Ask {
            bytes: request.bytes,
            repeatable: command.repeat == Repeat::Always,
            how: How::Merge(Merge::Same),
            preferred: 0,
        };
        self.send_each(id, client, to.as_slice(), ask)
    }

    /// Sends the same request to each of several servers.
    pub(super) fn send_each(
        &mut self,
        id: ClientId,
        client: &mut Client,
        to: &[To],
        ask: Ask<'_>,
    ) -> Outcome {
        let Ask { bytes, repeatable, how, preferred } = ask;
        // What the client asked before is to be done before: it may wait for a slot's new owner.
        if client.outstanding() > 0 && self.waits_for_any_flux(client.pool, id) {
            client.hold = Hold::Server;
            return Outcome::Later;
        }
        let mut conns = Vec::with_capacity(to.len());
        for to in to {
            let found = self.conn_for(to.server, client.profile, id);
            if let Ok(conn) = found
                && let Some(conn) = self.conns.get_mut(conn)
                && conn.is_full(&self.limits)
            {
                conn.waiting.push(id);
                client.hold = Hold::Server;
                return Outcome::Later;
            }
            conns.push(found);
        }
        if let Some(pool) = self.pools.get(usize::from(client.pool)) {
            pool.counters.requests.add(1);
            pool.counters.request_bytes.add(bytes.len() as u64);
            pool.counters.fragments.add(to.len() as u64);
        }
        let addresses = to.iter().filter_map(|to| {
            self.servers.get(usize::from(to.server)).map(|server| server.address.clone())
        });
        let gather =
            Gather::new(how, addresses.collect(), preferred, self.limits.gathered_bytes_max);
        let split = self.splits.insert(Split::gathering(gather, to.len()));
        let work = client.work.get_or_insert_with(|| self.works.take());
        let number = client.head.wrapping_add(work.ring.len() as u32);
        work.ring.push_back(Awaited::Split(split));
        for (part, (to, conn)) in to.iter().zip(conns).enumerate() {
            let pending = Pending {
                client: id,
                number,
                part: part as u16,
                // Nothing that changes data may come after what the client asks next.
                lane: if repeatable { to.lane } else { NO_LANE },
                length: bytes.len(),
                at: self.now,
                kind: Kind::Request,
                repeatable,
                writes: !repeatable,
                tries: 1,
                waited_ms: 0,
                in_flux: false,
            };
            match conn {
                Ok(conn_id) => {
                    let Some(conn) = self.conns.get_mut(conn_id) else { continue };
                    conn.output.bytes().extend_from_slice(bytes);
                    conn.pending.push_back(pending);
                    conn.mark(conn_id, &mut self.turn);
                    if let Some(server) = self.servers.get(usize::from(to.server)) {
                        server.counters.requests.add(1);
                        server.counters.request_bytes.add(bytes.len() as u64);
                    }
                }
                Err(error) => self.unreachable_part(client, pending, bytes.into(), error),
            }
        }
        Outcome::Taken
    }

    /// The server that owns a slot drawn at random.
    fn random_owner(&mut self, pool: u16) -> Option<u16> {
        // Splitmix64 over a count: as good as random, and the same in each run.
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let drawn = mixed(self.draws);
        let pool = self.pools.get(usize::from(pool))?;
        let index = match &pool.route {
            Route::Ring(_) => drawn as usize % pool.servers.len().max(1),
            Route::Slots(slots) => usize::from(slots.owner(drawn as u16 % protocol::SLOT_COUNT)?),
        };
        pool.servers.get(index).copied()
    }
}

/// Spreads what little differs over all bits.
pub(super) fn mixed(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
