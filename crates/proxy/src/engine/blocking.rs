//! Commands that wait for data, each over a connection that the client has for itself meanwhile.
//!
//! The client's later requests wait for it. The command's own time counts, not the pool's. When
//! the client goes, so does the connection: what would come is for nobody.

use super::{
    ClientId, ConnId, Core, Engine,
    client::Client,
    dispatch::{Outcome, Request},
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
        let blocked = Blocked { conn, request: request.bytes.into() };
        client.session_mut().errand = Some(Errand::Blocked(blocked));
        client.settle();
        self.send_private(conn, id, client, request.bytes, Role::Blocked);
        Outcome::Taken
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
            && pending.tries < MOVES_MAX
            && let Some(Errand::Blocked(blocked)) = &mut session.errand
            && let Ok(conn) =
                self.core.take_private(elsewhere.server, client.profile, pending.client)
        {
            blocked.conn = conn;
            self.core.set_patient(conn);
            if elsewhere.asking {
                self.core.send_silent(conn, &[b"ASKING"], Role::Silent);
            }
            self.core.put_again(conn, pending, &blocked.request, pending.tries + 1);
            return true;
        }
        session.errand = None;
        client.settle();
        self.pass_on(pending, reply);
        true
    }
}
