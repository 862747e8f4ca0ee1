//! Commands that wait for data, each over a connection that the client has for itself meanwhile.
//!
//! The client's later requests wait for it. The command's own time counts, not the pool's. When
//! the client goes, so does the connection: what would come is for nobody.

use super::{
    ClientId, ConnId, Core, Engine, Micros,
    client::Client,
    dispatch::{Outcome, Request},
    error,
    private::{Again, DELAY},
    server::{Pending, Role},
    session::Errand,
    transaction::MOVES_MAX,
};
use protocol::commands::Command;

/// A command on its way.
pub(super) struct Blocked {
    pub conn: ConnId,
    /// As it came, for sending it elsewhere when its slot moves.
    request: Box<[u8]>,
    pub lane: Option<u16>,
    /// It waits for its slot to settle, until then.
    postponed: Option<(Micros, Pending)>,
}

impl Core {
    pub(super) fn block(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Outcome {
        if !command.blocks(request) {
            return self.dispatch_one_slot(id, client, request, command);
        }
        if client.outstanding() > 0 {
            return client.wait_for_quiet();
        }
        let target = match self.only_place(client, request, command) {
            Ok(place) => place.map(|(_, target)| target),
            Err(error) => {
                self.reply(id, client, error);
                return Outcome::Taken;
            }
        };
        let place = target.map_or(Some(0), |target| target.server);
        let Some(conn) = self.take_private_at(id, client, place) else { return Outcome::Taken };
        self.set_patient(conn);
        let lane = target.map(|target| target.lane);
        let blocked = Blocked { conn, request: request.bytes.into(), lane, postponed: None };
        client.session_mut().errand = Some(Errand::Blocked(blocked));
        client.settle();
        self.send_private(conn, id, client, request.bytes, Role::Blocked);
        Outcome::Taken
    }

    fn block_again(
        &mut self,
        conn: ConnId,
        blocked: &mut Blocked,
        pending: &Pending,
        asking: bool,
    ) {
        blocked.conn = conn;
        self.set_patient(conn);
        if asking {
            self.send_silent(conn, &[b"ASKING"], Role::Silent);
        }
        self.put_again(conn, pending, &blocked.request, pending.tries.saturating_add(1));
    }

    fn set_patient(&mut self, conn: ConnId) {
        if let Some(private) = self.conns.get_mut(conn).and_then(|conn| conn.private.as_mut()) {
            private.patient = true;
        }
    }
}

impl Engine {
    pub(super) fn blocked_reply(
        &mut self,
        id: ConnId,
        pending: &Pending,
        reply: &[u8],
        streamed: bool,
    ) -> bool {
        let moved = if streamed { None } else { self.core.elsewhere(id, reply) };
        // Whatever the answer was: the command is over, and leaves nothing behind.
        self.core.leave_private(id);
        let Some(client) = self.clients.get_mut(pending.client) else { return true };
        let Some(session) = client.session.as_deref_mut() else { return true };
        if let Some(elsewhere) = moved
            && let Some(Errand::Blocked(blocked)) = &mut session.errand
        {
            let mut pending = *pending;
            // It may have waited for long until it was told so.
            if pending.tries <= 1 {
                pending.at = self.core.now;
            }
            if !self.core.time_is_up(client.pool, &pending) {
                let (owner, profile) = (pending.client, client.profile);
                if pending.tries <= MOVES_MAX
                    && let Ok(conn) = self.core.take_private(elsewhere.server, profile, owner)
                {
                    self.core.block_again(conn, blocked, &pending, elsewhere.asking);
                } else {
                    blocked.postponed = Some((self.core.now + DELAY, pending));
                    self.core.postponed.push(owner);
                }
                return true;
            }
        }
        session.errand = None;
        client.settle();
        self.pass_on(pending, reply);
        true
    }

    /// Goes on with a command that waited for its slot to settle.
    pub(super) fn continue_blocked(&mut self, owner: ClientId) {
        let Some(client) = self.clients.get_mut(owner) else { return };
        let (profile, pool) = (client.profile, client.pool);
        let Some(session) = client.session.as_deref_mut() else { return };
        let Some(Errand::Blocked(blocked)) = &mut session.errand else { return };
        let Some((due, pending)) = blocked.postponed.take() else { return };
        match self.core.again(owner, (pool, profile), blocked.lane, Some(&pending), due) {
            Again::At(due) => blocked.postponed = Some((due, pending)),
            Again::Over(conn) => self.core.block_again(conn, blocked, &pending, false),
            Again::Never => {
                session.errand = None;
                client.settle();
                self.fail(&pending, error::SESSION_LOST);
            }
        }
    }
}
