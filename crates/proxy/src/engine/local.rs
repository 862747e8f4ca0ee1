//! What the proxy answers itself: the handshakes of clients.

use protocol::commands::{Arguments as _, Command};

use super::{
    ClientId, Core,
    client::{Client, Ending, Mode},
    dispatch::Request,
    error,
    split::push_number,
};

impl Core {
    /// Answers a command of [`protocol::commands::Route::Local`].
    pub(super) fn answer_locally(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) {
        let word = |index| request.get(index).unwrap_or_default();
        match command.name {
            "ping" if request.words == 1 => self.reply(id, client, b"+PONG\r\n"),
            "ping" | "echo" => self.bulk(id, client, word(1)),
            "select" if word(1) == b"0" => self.reply(id, client, OK),
            "select" => self.reply(id, client, b"-ERR SELECT is not allowed: only database 0\r\n"),
            "quit" => {
                self.reply(id, client, OK);
                client.ending = Ending::Answering;
            }
            "reset" => {
                client.mode = Mode::Shared;
                self.log_out(client);
                client.name = None;
                client.protocol = 2;
                self.reply(id, client, b"+RESET\r\n");
            }
            "auth" => {
                let (user, password) = match request.words {
                    2 => (&b"default"[..], word(1)),
                    _ => (word(1), word(2)),
                };
                let answer = self.log_in(client, user, password);
                self.reply(id, client, answer);
            }
            "hello" => self.hello(id, client, request),
            "client|setname" => {
                client.name = Some(word(2).into());
                self.reply(id, client, OK);
            }
            "client|getname" => {
                let name = client.name.clone().unwrap_or_default();
                self.bulk(id, client, &name);
            }
            "client|id" => {
                let mut answer = b":".to_vec();
                push_number(&mut answer, client.number);
                answer.extend_from_slice(b"\r\n");
                self.reply(id, client, &answer);
            }
            "client|setinfo" | "readonly" | "readwrite" => self.reply(id, client, OK),
            name => {
                let text = format!("-ERR '{name}' is not served\r\n");
                self.reply(id, client, text.as_bytes());
            }
        }
    }

    fn bulk(&mut self, id: ClientId, client: &mut Client, text: &[u8]) {
        client.answer_now(&mut self.works, |out| push_bulk(out, text));
        client.mark(id, &mut self.turn);
    }

    /// The password that clients of the pool have to give.
    fn password(&self, client: &Client) -> Option<&str> {
        self.pools.get(usize::from(client.pool))?.client_password.as_deref()
    }

    fn log_out(&self, client: &mut Client) {
        client.authenticated = self.password(client).is_none();
    }

    fn log_in(&self, client: &mut Client, user: &[u8], password: &[u8]) -> &'static [u8] {
        let Some(wanted) = self.password(client) else {
            return b"-ERR Client sent AUTH, but no password is set\r\n";
        };
        if user == b"default" && same(wanted.as_bytes(), password) {
            client.authenticated = true;
            return OK;
        }
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
    }

    /// HELLO [protover [AUTH username password] [SETNAME clientname]].
    fn hello(&mut self, id: ClientId, client: &mut Client, request: &Request<'_>) {
        let word = |index| request.get(index).unwrap_or_default();
        if request.words > 1 && word(1) != b"2" {
            self.reply(id, client, b"-NOPROTO unsupported protocol version\r\n");
            return;
        }
        let mut index = 2;
        while index < request.words {
            let option = word(index).to_ascii_uppercase();
            match option.as_slice() {
                b"AUTH" if index + 2 < request.words => {
                    let answer = self.log_in(client, word(index + 1), word(index + 2));
                    if answer != OK {
                        self.reply(id, client, answer);
                        return;
                    }
                    index += 3;
                }
                b"SETNAME" if index + 1 < request.words => {
                    client.name = Some(word(index + 1).into());
                    index += 2;
                }
                _ => {
                    self.reply(id, client, b"-ERR Syntax error in HELLO option\r\n");
                    return;
                }
            }
        }
        if !client.authenticated {
            self.reply(id, client, error::NO_AUTH);
            return;
        }
        let number = client.number;
        client.answer_now(&mut self.works, |out| {
            out.extend_from_slice(b"*14\r\n");
            for (name, value) in [("server", "redis"), ("version", SERVED_VERSION)] {
                push_bulk(out, name.as_bytes());
                push_bulk(out, value.as_bytes());
            }
            for (name, value) in [("proto", 2), ("id", number)] {
                push_bulk(out, name.as_bytes());
                out.push(b':');
                push_number(out, value);
                out.extend_from_slice(b"\r\n");
            }
            for (name, value) in [("mode", "standalone"), ("role", "master")] {
                push_bulk(out, name.as_bytes());
                push_bulk(out, value.as_bytes());
            }
            push_bulk(out, b"modules");
            out.extend_from_slice(b"*0\r\n");
        });
        client.mark(id, &mut self.turn);
    }
}

const OK: &[u8] = b"+OK\r\n";
/// What clients take the server behind the proxy for.
pub(super) const SERVED_VERSION: &str = "7.0.0";

fn push_bulk(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'$');
    push_number(out, text.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// Equality whose time does not tell where the difference is.
fn same(left: &[u8], right: &[u8]) -> bool {
    left.len() == right.len()
        && left.iter().zip(right).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
