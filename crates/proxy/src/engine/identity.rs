//! CLIENT and its subcommands, and ACL WHOAMI: what a client is told of itself, and may say.

use std::net::SocketAddr;

use super::{
    ClientId, Core, client::Client, dispatch::Request, split::push_number,
    subscription::Subscriptions,
};
use protocol::commands::{Arguments as _, Command};

const OK: &[u8] = b"+OK\r\n";

impl Core {
    /// Answers what concerns the client alone.
    pub(super) fn answer_about_client(
        &mut self,
        id: ClientId,
        client: &mut Client,
        request: &Request<'_>,
        command: &'static Command,
    ) {
        let word = |index| request.get(index).unwrap_or_default();
        match command.name {
            "client|setname" => {
                let name = word(2);
                if name.iter().any(|byte| !(b'!'..=b'~').contains(byte)) {
                    let text = b"-ERR Client names cannot contain spaces, newlines or special \
                        characters.\r\n";
                    self.reply(id, client, text);
                    return;
                }
                client.name = if name.is_empty() { None } else { Some(name.into()) };
                self.reply(id, client, OK);
            }
            "client|getname" => match client.name.clone() {
                Some(name) => self.bulk(id, client, &name),
                None => self.reply(id, client, null(client)),
            },
            "client|id" => {
                let answer = format!(":{}\r\n", client.number);
                self.reply(id, client, answer.as_bytes());
            }
            "client|info" | "client|list" => {
                let mut line = describe(client);
                line.push('\n');
                self.bulk(id, client, line.as_bytes());
            }
            "client|getredir" => self.reply(id, client, b":-1\r\n"),
            "client|trackinginfo" => {
                let start = if client.protocol == 3 { "%3" } else { "*6" };
                let flags = if client.protocol == 3 { "~1" } else { "*1" };
                let text = format!(
                    "{start}\r\n$5\r\nflags\r\n{flags}\r\n$3\r\noff\r\n$8\r\nredirect\r\n:-1\r\n\
                    $8\r\nprefixes\r\n*0\r\n"
                );
                self.reply(id, client, text.as_bytes());
            }
            "acl|whoami" => {
                let user = client.user.clone();
                self.bulk(id, client, user.as_deref().unwrap_or(b"default"));
            }
            // SETINFO, NO-EVICT, CAPA: taken note of by nobody.
            _ => self.reply(id, client, OK),
        }
    }

    pub(super) fn bulk(&mut self, id: ClientId, client: &mut Client, text: &[u8]) {
        client.answer_now(&mut self.works, |out| push_bulk(out, text));
        client.mark(id, &mut self.turn);
    }
}

/// Nothing, in the client's protocol.
fn null(client: &Client) -> &'static [u8] {
    if client.protocol == 3 { b"_\r\n" } else { b"$-1\r\n" }
}

/// A line of CLIENT LIST; others' lines are nobody's business.
/// Source: CLIENT LIST in the engines' documentation.
fn describe(client: &Client) -> String {
    let name = client.name.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
    let user = client.user.as_deref().unwrap_or(b"default");
    let session = client.session.as_deref();
    let counts = session.and_then(|session| session.subscriptions.as_ref());
    let [channels, patterns, shards] = counts.map(Subscriptions::counts).unwrap_or_default();
    let address = |address: Option<SocketAddr>| address.map(|it| it.to_string());
    format!(
        "id={} addr={} laddr={} name={name} db=0 sub={channels} psub={patterns} ssub={shards} \
        multi=-1 watch=0 cmd=client user={} resp={}",
        client.number,
        address(client.peer).unwrap_or_default(),
        address(client.local).unwrap_or_default(),
        String::from_utf8_lossy(user),
        client.protocol
    )
}

pub(super) fn push_bulk(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'$');
    push_number(out, text.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}
