//! Who a client is: AUTH, HELLO and RESET.
//!
//! The proxy's own users are known here, with what their requests' connections begin with. Others
//! are tried at a server where the pool wants that: AUTH goes over a connection that says nothing
//! else, and only who passed gets connections of his own, for which the server's rules hold.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::{
    ClientId, ConnId, Core, Engine, Pool, Profile,
    client::Client,
    dispatch::{Outcome, Request},
    identity::push_bulk,
    local::SERVED_VERSION,
    quota::{Part, Quota},
    server::{Pending, Role},
    session::Errand,
    split::push_number,
};
use protocol::commands::Arguments as _;

/// Who may be a client of a pool, beside those that know its one password.
#[derive(Debug, Clone, Default)]
pub struct Users {
    /// The proxy's own.
    pub own: Vec<User>,
    /// Whom the proxy doesn't know is tried at a server, and served over connections of his own.
    pub passed_on: bool,
}

impl Users {
    /// Whom the servers know.
    pub fn of_the_servers() -> Self {
        Self { own: Vec::new(), passed_on: true }
    }
}

/// One user of the proxy.
#[derive(Clone)]
pub struct User {
    pub name: String,
    pub password: Password,
    /// What the connections begin with that carry his requests.
    pub profile: Profile,
    pub quota: Option<Arc<Quota>>,
}

impl User {
    /// Would who logged in as the one be let in as the other, and be the same at the servers?
    fn is_still(&self, other: &Self) -> bool {
        (&self.name, &self.password, &self.profile)
            == (&other.name, &other.password, &other.profile)
    }
}

/// The SHA-256 of a user's password.
#[derive(Clone, PartialEq, Eq)]
pub struct Password([u8; 32]);

impl Password {
    pub fn new(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    pub fn hashed(hash: [u8; 32]) -> Self {
        Self(hash)
    }

    fn is(&self, text: &[u8]) -> bool {
        same(&self.0, &Sha256::digest(text))
    }
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).finish_non_exhaustive()
    }
}

/// [`Users`] as a pool keeps them.
#[derive(Default)]
pub(super) struct Logins {
    /// With their profiles.
    own: Vec<(User, u16)>,
    passed_on: bool,
}

impl Logins {
    /// Which of the proxy's own users a client logged in as.
    pub(super) fn of(&self, client: &Client) -> Option<&User> {
        let is = |user: &&User| {
            let entered = match (&user.quota, &client.part) {
                (Some(quota), Some(part)) => part.is_of(quota),
                (quota, part) => quota.is_none() && part.is_none(),
            };
            entered && client.user.as_deref().unwrap_or(b"default") == user.name.as_bytes()
        };
        self.own.iter().map(|(user, _)| user).find(is)
    }

    /// Is he one of them?
    pub(super) fn holds(&self, user: &User) -> bool {
        self.own.iter().any(|(own, _)| own.is_still(user))
    }
}

/// A user who is tried at a server.
pub(super) struct Login {
    pub conn: ConnId,
    user: Option<String>,
    password: String,
    /// Said with HELLO.
    hello: Option<Hello>,
}

/// What HELLO changes.
struct Hello {
    protocol: u8,
    name: Option<Box<[u8]>>,
}

/// What is known of a user at once.
enum Verdict {
    /// He is served with this profile, within this quota.
    Welcome(u16, Option<Arc<Quota>>),
    Refused(&'static [u8]),
    /// A server knows.
    Ask,
}

const OK: &[u8] = b"+OK\r\n";
const TOO_MANY: &[u8] = b"-ERR max number of clients of this user reached\r\n";
const WRONG: &[u8] = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n";
/// More different users and passwords are not told apart.
const PROFILES_MAX: usize = 60_000;

impl Core {
    pub(super) fn logins(&mut self, users: Users) -> Logins {
        let own = users.own.into_iter();
        let own = own.map(|user| {
            let profile = self.profile(user.profile.clone());
            (user, profile)
        });
        let own = own.collect();
        Logins { own, passed_on: users.passed_on }
    }

    /// The same with other users of the proxy's own.
    pub(super) fn renew_logins(&mut self, pool: usize, own: Vec<User>) -> Logins {
        let passed_on = self.pools.get(pool).is_some_and(|pool| pool.users.passed_on);
        self.logins(Users { own, passed_on })
    }

    /// Are clients of a pool served that say nothing of who they are? Where a server judges users,
    /// it judges those too, unless the proxy has a password of its own that would let them in.
    pub(super) fn is_open(&self, pool: &Pool) -> bool {
        let profile = self.profiles.get(usize::from(pool.profile));
        let lends = pool.users.passed_on && profile.is_some_and(|own| own.password.is_some());
        pool.client_password.is_none() && pool.users.own.is_empty() && !lends
    }

    /// RESET.
    pub(super) fn reset(&mut self, id: ClientId, client: &mut Client) -> Outcome {
        if client.outstanding() > 0 {
            return client.wait_for_quiet();
        }
        self.end_session(client);
        self.leave(client);
        (client.name, client.protocol) = (None, 2);
        client.settle();
        self.reply(id, client, b"+RESET\r\n");
        Outcome::Taken
    }

    /// Makes a client nobody.
    fn leave(&mut self, client: &mut Client) {
        if let Some(pool) = self.pools.get(usize::from(client.pool)) {
            client.profile = pool.profile;
            client.authenticated = self.is_open(pool);
        }
        client.user = None;
        self.set_part(client, None);
        client.settle();
    }

    /// AUTH [username] password.
    pub(super) fn auth(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
    ) -> Outcome {
        let word = |index| request.get(index).unwrap_or_default();
        let (user, password) = match request.words {
            2 => (None, word(1)),
            3 => (Some(word(1)), word(2)),
            _ => {
                self.reply(id, client, b"-ERR syntax error\r\n");
                return Outcome::Taken;
            }
        };
        self.log_in(id, client, user, password, None)
    }

    /// HELLO [protover [AUTH username password] [SETNAME clientname]].
    pub(super) fn hello(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
    ) -> Outcome {
        let word = |index| request.get(index).unwrap_or_default();
        let protocol = match word(1) {
            b"" if request.words < 2 => client.protocol,
            b"2" => 2,
            b"3" => 3,
            other => {
                let is_number = other.iter().all(u8::is_ascii_digit) && !other.is_empty();
                let text: &[u8] = if is_number {
                    b"-NOPROTO unsupported protocol version\r\n"
                } else {
                    b"-ERR Protocol version is not an integer or out of range\r\n"
                };
                self.reply(id, client, text);
                return Outcome::Taken;
            }
        };
        let mut hello = Hello { protocol, name: None };
        let mut user = None;
        let mut index = 2;
        while index < request.words {
            let option = word(index).to_ascii_uppercase();
            match option.as_slice() {
                b"AUTH" if index + 2 < request.words => {
                    user = Some((word(index + 1), word(index + 2)));
                    index += 3;
                }
                b"SETNAME" if index + 1 < request.words => {
                    hello.name = Some(word(index + 1).into());
                    index += 2;
                }
                _ => {
                    let shown = String::from_utf8_lossy(word(index)).replace(['\r', '\n'], " ");
                    let text = format!("-ERR Syntax error in HELLO option '{shown}'\r\n");
                    self.reply(id, client, text.as_bytes());
                    return Outcome::Taken;
                }
            }
        }
        if client.subscriptions_mut().is_some() && protocol != client.protocol {
            let text = b"-ERR the protocol can't be changed while subscribed\r\n";
            self.reply(id, client, text);
            return Outcome::Taken;
        }
        match user {
            Some((user, password)) => self.log_in(id, client, Some(user), password, Some(hello)),
            None if !client.authenticated => {
                let text = b"-NOAUTH HELLO must be called with the client already authenticated, \
                    otherwise the HELLO <proto> AUTH <user> <pass> option can be used to \
                    authenticate the client and select the RESP protocol version at the same time\
                    \r\n";
                self.reply(id, client, text);
                Outcome::Taken
            }
            None => {
                if protocol != client.protocol && client.outstanding() > 0 {
                    return client.wait_for_quiet();
                }
                let answer = self.welcome(client, client.profile, Some(hello));
                self.reply(id, client, &answer);
                Outcome::Taken
            }
        }
    }

    fn log_in(
        &mut self,
        id: ClientId,
        client: &mut Client,
        user: Option<&[u8]>,
        password: &[u8],
        hello: Option<Hello>,
    ) -> Outcome {
        if client.outstanding() > 0 {
            return client.wait_for_quiet();
        }
        let answer = match self.judge(client, user, password) {
            Verdict::Refused(answer) => answer.to_vec(),
            Verdict::Welcome(profile, quota) => {
                // Whoever it was before leaves first: he may be the same.
                client.part = None;
                let part = quota.as_ref().map(Part::enter);
                if let Some(None) = part {
                    self.leave(client);
                    TOO_MANY.to_vec()
                } else {
                    self.set_part(client, part.flatten());
                    client.user = user.map(Into::into);
                    self.welcome(client, profile, hello)
                }
            }
            Verdict::Ask => return self.ask(id, client, user, password, hello),
        };
        self.reply(id, client, &answer);
        Outcome::Taken
    }

    fn judge(&self, client: &Client, user: Option<&[u8]>, password: &[u8]) -> Verdict {
        let Some(pool) = self.pools.get(usize::from(client.pool)) else {
            return Verdict::Refused(WRONG);
        };
        let name = user.unwrap_or(b"default");
        if let Some(wanted) = &pool.client_password
            && name == b"default"
            && same(wanted.as_bytes(), password)
        {
            return Verdict::Welcome(pool.profile, None);
        }
        let mut own = pool.users.own.iter();
        match own.find(|(own, _)| own.name.as_bytes() == name) {
            Some((own, profile)) if own.password.is(password) => {
                Verdict::Welcome(*profile, own.quota.clone())
            }
            None if pool.users.passed_on => Verdict::Ask,
            None if pool.client_password.is_none() && pool.users.own.is_empty() => {
                Verdict::Refused(b"-ERR Client sent AUTH, but no password is set\r\n")
            }
            _ => Verdict::Refused(WRONG),
        }
    }

    /// Makes a client somebody; what it is told.
    fn welcome(&mut self, client: &mut Client, profile: u16, hello: Option<Hello>) -> Vec<u8> {
        client.authenticated = true;
        let answer = match hello {
            None => OK.to_vec(),
            Some(hello) => {
                client.protocol = hello.protocol;
                if hello.name.is_some() {
                    client.name = hello.name;
                }
                greeting(client)
            }
        };
        client.profile = self.with_protocol(profile, client.protocol);
        client.settle();
        answer
    }

    /// The same but for the protocol.
    pub(super) fn with_protocol(&mut self, profile: u16, protocol: u8) -> u16 {
        match self.profiles.get(usize::from(profile)) {
            Some(found) if found.resp3 != (protocol == 3) => {
                let wanted = Profile { resp3: protocol == 3, ..found.clone() };
                self.profile(wanted)
            }
            _ => profile,
        }
    }

    /// Has a server judge a user.
    fn ask(
        &mut self,
        id: ClientId,
        client: &mut Client,
        user: Option<&[u8]>,
        password: &[u8],
        hello: Option<Hello>,
    ) -> Outcome {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
        let (Some(said), Some(name)) =
            (text(password), user.map_or(Some(None), |user| text(user).map(Some)))
        else {
            self.reply(id, client, WRONG);
            return Outcome::Taken;
        };
        let servers =
            self.pools.get(usize::from(client.pool)).map_or(&[][..], |pool| &pool.servers);
        let Some(server) = servers.get(client.number as usize % servers.len().max(1)).copied()
        else {
            self.nobody(id, client);
            return Outcome::Taken;
        };
        // Nothing may be said before on this connection: the default user may be off.
        let bare = self.profile(Profile::default());
        let conn = match self.take_private(server, bare, id) {
            Ok(conn) => conn,
            Err(error) => {
                self.fail_now(id, client, error);
                return Outcome::Taken;
            }
        };
        let mut words = vec![b"AUTH".as_slice()];
        words.extend(user);
        words.push(password);
        let mut request = Vec::new();
        protocol::resp::encode_command(&words, &mut request);
        let login = Login { conn, user: name, password: said, hello };
        client.session_mut().errand = Some(Errand::Login(login));
        client.settle();
        self.send_private(conn, id, client, &request, Role::Login);
        Outcome::Taken
    }
}

impl Engine {
    pub(super) fn login_reply(&mut self, id: ConnId, pending: &Pending, reply: &[u8]) -> bool {
        // It is somebody's now, but not of a profile that connections are made with.
        self.core.close_private(id);
        let Some(client) = self.clients.get_mut(pending.client) else { return true };
        let errand = client.session.as_deref_mut().and_then(|session| session.errand.take());
        let Some(Errand::Login(login)) = errand else {
            client.settle();
            return true;
        };
        let answer = if reply == OK {
            let database =
                self.core.pools.get(usize::from(client.pool)).and_then(|pool| {
                    Some(self.core.profiles.get(usize::from(pool.profile))?.database)
                });
            let profile = Profile {
                user: login.user.clone(),
                password: Some(login.password),
                database: database.unwrap_or_default(),
                resp3: false,
                read_only: false,
                tracks: false,
            };
            if self.core.profiles.len() < PROFILES_MAX || self.core.profiles.contains(&profile) {
                let profile = self.core.profile(profile);
                client.user = login.user.map(|user| user.into_bytes().into());
                self.core.set_part(client, None);
                self.core.welcome(client, profile, login.hello)
            } else {
                b"-ERR too many different users\r\n".to_vec()
            }
        } else {
            reply.to_vec()
        };
        client.settle();
        self.pass_on(pending, &answer);
        true
    }
}

/// The answer to HELLO.
fn greeting(client: &Client) -> Vec<u8> {
    let resp3 = client.protocol == 3;
    let mut out = if resp3 { b"%7\r\n".to_vec() } else { b"*14\r\n".to_vec() };
    for (name, value) in [("server", "redis"), ("version", SERVED_VERSION)] {
        push_bulk(&mut out, name.as_bytes());
        push_bulk(&mut out, value.as_bytes());
    }
    for (name, value) in [("proto", u64::from(client.protocol)), ("id", client.number)] {
        push_bulk(&mut out, name.as_bytes());
        out.push(b':');
        push_number(&mut out, value);
        out.extend_from_slice(b"\r\n");
    }
    for (name, value) in [("mode", "standalone"), ("role", "master")] {
        push_bulk(&mut out, name.as_bytes());
        push_bulk(&mut out, value.as_bytes());
    }
    push_bulk(&mut out, b"modules");
    out.extend_from_slice(b"*0\r\n");
    out
}

/// Equality whose time does not tell where the difference is.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
