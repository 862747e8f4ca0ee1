//! What the proxy answers itself.

use protocol::commands::{Arguments as _, Command};

use super::{
    ClientId, Core,
    client::{Client, Ending},
    dispatch::{Outcome, Request},
};

impl Core {
    /// Answers a command of [`protocol::commands::Route::Local`].
    pub(super) fn answer_locally(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) -> Outcome {
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
            "reset" => return self.reset(id, client),
            "auth" => return self.auth(id, client, request),
            "hello" => return self.hello(id, client, request),
            "readonly" | "readwrite" => self.reply(id, client, OK),
            name if name.starts_with("client|") || name == "acl|whoami" => {
                self.answer_about_client(id, client, request, command);
            }
            name => {
                let text = format!("-ERR '{name}' is not served\r\n");
                self.reply(id, client, text.as_bytes());
            }
        }
        Outcome::Taken
    }
}

const OK: &[u8] = b"+OK\r\n";
/// What clients take the server behind the proxy for.
pub(super) const SERVED_VERSION: &str = "7.0.0";
