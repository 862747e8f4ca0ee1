//! What ties a client to connections of its own: a transaction, a command that waits for data, a
//! login that a server has to judge, a large request on its way, subscriptions.
//!
//! A client whose session has a say is not [`Client::plain`]: each of its requests comes through
//! [`Core::in_session`]. Where a session begins or ends, the requests before it are answered first
//! ([`Hold::Answers`]): they go over other connections, and nothing may overtake.

use super::{
    ClientId, ConnId, Core, Engine,
    blocking::Blocked,
    client::{Client, Hold},
    dispatch::{Outcome, Request},
    error,
    login::Login,
    server::{Pending, Private, Role},
    subscription::Subscriptions,
    transaction::Transaction,
};
use protocol::commands::{Command, Session as Sort};

/// See the module.
#[derive(Default)]
pub(super) struct Session {
    pub transaction: Option<Transaction>,
    pub errand: Option<Errand>,
    pub subscriptions: Option<Subscriptions>,
}

/// What a client is away for; its requests wait until it is back.
pub(super) enum Errand {
    Blocked(Blocked),
    Login(Login),
    /// A request that is passed on as it comes.
    Stream(ConnId),
}

impl Errand {
    fn conn(&self) -> ConnId {
        match self {
            Self::Blocked(blocked) => blocked.conn,
            Self::Login(login) => login.conn,
            Self::Stream(conn) => *conn,
        }
    }
}

impl Session {
    fn is_empty(&self) -> bool {
        self.transaction.is_none() && self.errand.is_none() && self.subscriptions.is_none()
    }

    /// The slot of its transaction, or of what it waits for.
    pub fn lane(&self) -> Option<u16> {
        match &self.errand {
            Some(Errand::Blocked(blocked)) => blocked.lane,
            _ => self.transaction.as_ref()?.lane,
        }
    }

    /// Its connections.
    pub fn conns(&self) -> Vec<ConnId> {
        let transaction = self.transaction.iter().filter_map(|transaction| transaction.conn);
        let feeds = self.subscriptions.iter().flat_map(Subscriptions::conns);
        transaction.chain(self.errand.iter().map(Errand::conn)).chain(feeds).collect()
    }
}

impl Client {
    pub(super) fn session_mut(&mut self) -> &mut Session {
        self.session.get_or_insert_default()
    }

    /// After a change of what it is, or of its session.
    pub(super) fn settle(&mut self) {
        if self.session.as_deref().is_some_and(Session::is_empty) {
            self.session = None;
        }
        let free = self.session.as_deref().is_none_or(|session| {
            let subscribed = session.subscriptions.is_some() && self.protocol < 3;
            session.transaction.is_none() && session.errand.is_none() && !subscribed
        });
        self.plain = self.authenticated && free;
    }

    pub(super) fn transaction_mut(&mut self) -> Option<&mut Transaction> {
        self.session.as_deref_mut()?.transaction.as_mut()
    }

    pub(super) fn subscriptions_mut(&mut self) -> Option<&mut Subscriptions> {
        self.session.as_deref_mut()?.subscriptions.as_mut()
    }

    /// Is it in a command that waits for data?
    pub(super) fn waits_for_data(&self) -> bool {
        let errand = self.session.as_deref().and_then(|session| session.errand.as_ref());
        matches!(errand, Some(Errand::Blocked(_)))
    }

    /// A request can't be queued: what MULTI began won't be executed.
    pub(super) fn abort_transaction(&mut self) {
        if let Some(transaction) = self.transaction_mut() {
            transaction.aborted |= transaction.open;
        }
    }

    /// The next request has to wait until those before it are answered.
    pub(super) fn wait_for_quiet(&mut self) -> Outcome {
        self.hold = Hold::Answers;
        Outcome::Later
    }
}

impl Core {
    /// A request of a client with a session; None: the session has nothing against it.
    pub(super) fn in_session(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Option<Outcome> {
        let session = client.session.as_deref()?;
        if session.errand.is_some() {
            return Some(client.wait_for_quiet());
        }
        if let Some(transaction) = &session.transaction {
            if transaction.postponed.is_some() && command.name != "quit" {
                client.hold = Hold::Session;
                return Some(Outcome::Later);
            }
            if transaction.open && !matches!(command.name, "quit" | "reset") {
                return self.in_transaction(id, client, request, command);
            }
            if client.outstanding() > 0 {
                return Some(client.wait_for_quiet());
            }
        }
        self.while_subscribed(id, client, request, command)
    }

    /// Serves a command of [`protocol::commands::Route::Session`].
    pub(super) fn begin_session(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
        sort: Sort,
    ) -> Outcome {
        match sort {
            Sort::Transaction => self.transact(id, client, request, command),
            Sort::Blocking => self.block(id, client, request, command),
            Sort::Subscription => self.subscribe(id, client, request, command),
            Sort::Acknowledgement => {
                let name = command.name;
                let text = format!(
                    "-ERR '{name}' is not served: clients share the connections that writes go over\r\n"
                );
                self.reply(id, client, text.as_bytes());
                Outcome::Taken
            }
        }
    }

    /// Ends whatever a client has, as RESET does.
    pub(super) fn end_session(&mut self, client: &mut Client) {
        self.drop_transaction(client);
        let Some(session) = client.session.take() else { return };
        for conn in session.conns() {
            self.close_private(conn);
        }
        client.settle();
    }
}

/// What is said of a lost connection to whose it was.
fn said(error: &[u8]) -> &[u8] {
    if error == error::LOST { error::SESSION_LOST } else { error }
}

impl Engine {
    /// A whole reply on a private connection that is no feed. False: the connection is of no use.
    #[cold]
    pub(super) fn session_reply(
        &mut self,
        id: ConnId,
        pending: &Pending,
        role: Role,
        reply: &[u8],
        streamed: bool,
    ) -> bool {
        if self.core.limits.near.is_some() && matches!(role, Role::End | Role::Blocked) {
            self.near_session_passed(pending.client);
        }
        let keeps = match role {
            Role::Watch | Role::Step | Role::Queued => self.step_reply(id, pending, role, reply),
            Role::End => self.end_reply(id, pending, reply, streamed),
            Role::Opening => self.opening_reply(id, reply),
            Role::Blocked => self.blocked_reply(id, pending, reply, streamed),
            Role::Login => self.login_reply(id, pending, reply),
            // What a feed is asked is answered there; what is silent is OK or an array.
            Role::Subscribing | Role::Renewing => false,
            Role::Silent => streamed || !reply.starts_with(b"-"),
        };
        if streamed {
            self.long_reply_ended(pending.client);
        }
        if keeps {
            self.core.rest_if_done(id);
        }
        keeps
    }

    /// Gives a client its reply.
    pub(super) fn pass_on(&mut self, pending: &Pending, reply: &[u8]) {
        if let Some(client) = self.clients.get_mut(pending.client) {
            client.answer(pending.number, pending.part, reply, &mut self.core.splits);
            client.mark(pending.client, &mut self.core.turn);
        }
    }

    /// What was asked over a private connection won't be answered.
    #[cold]
    pub(super) fn fail_session(&mut self, pending: &Pending, role: Role, error: &[u8]) {
        let text = match role {
            Role::End if error != error::REFUSED => error::EXEC_LOST,
            Role::Watch | Role::Step | Role::End | Role::Blocked | Role::Login => said(error),
            Role::Queued | Role::Opening | Role::Subscribing | Role::Renewing | Role::Silent => {
                return;
            }
        };
        self.fail(pending, text);
    }

    /// A private connection is no more; what was asked over it was answered with errors.
    #[cold]
    pub(super) fn private_lost(&mut self, id: ConnId, private: Private, error: &[u8]) {
        if private.feed {
            self.feed_lost(id, private.owner, error);
            return;
        }
        let Some(client) = self.clients.get_mut(private.owner) else { return };
        let Some(session) = client.session.as_deref_mut() else { return };
        if session.errand.as_ref().is_some_and(|errand| errand.conn() == id) {
            session.errand = None;
        }
        if let Some(transaction) = &mut session.transaction
            && transaction.conn == Some(id)
        {
            transaction.conn = None;
            transaction.lost = Some(said(error).into());
            if transaction.ending {
                session.transaction = None;
            }
        }
        client.settle();
        if client.hold == Hold::Session {
            self.core.turn.woken.push(private.owner);
        }
    }
}
