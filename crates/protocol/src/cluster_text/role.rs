//! ROLE.

use crate::Value;

use super::BadReply;

/// What a server is in replication. Source: the ROLE documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    Primary {
        /// In bytes of the replication stream.
        offset: u64,
        /// Those that are online.
        replicas: Vec<RoleReplica>,
    },
    Replica {
        primary_host: String,
        primary_port: u16,
        link: LinkState,
        /// How much of the stream it has; -1 before its first copy.
        offset: i64,
    },
    Sentinel,
}

/// A replica as its primary names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleReplica {
    pub host: String,
    pub port: u16,
    /// What it last acknowledged.
    pub offset: u64,
}

/// How far a replica's link to its primary has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// No primary is set.
    None,
    /// To be connected.
    Connect,
    Connecting,
    Handshake,
    /// The first copy is on its way.
    Sync,
    Connected,
    /// A word that is not known.
    Unknown,
}

impl Role {
    /// From the reply, in the shape of RESP2 or of RESP3. KeyDB's active replication has a shape
    /// of its own and is an error.
    pub fn from_reply(reply: &Value) -> Result<Self, BadReply> {
        let items = reply.as_array().ok_or_else(|| bad("not an array"))?;
        let (name, rest) = items.split_first().ok_or_else(|| bad("an empty array"))?;
        match (name.as_str(), rest) {
            (Some("master"), [offset, replicas, ..]) => Ok(Self::Primary {
                offset: number(offset, "offset")?,
                replicas: replicas
                    .as_array()
                    .ok_or_else(|| bad("replicas that are no array"))?
                    .iter()
                    .map(replica)
                    .collect::<Result<_, _>>()?,
            }),
            (Some("slave"), [host, port, link, offset, ..]) => Ok(Self::Replica {
                primary_host: text(host, "host")?,
                primary_port: number(port, "port")?,
                link: LinkState::parse(&text(link, "link state")?),
                offset: number(offset, "offset")?,
            }),
            (Some("sentinel"), _) => Ok(Self::Sentinel),
            (name, rest) => {
                Err(bad(format!("{} with {} fields", name.unwrap_or("no name"), rest.len())))
            }
        }
    }
}

impl LinkState {
    fn parse(word: &str) -> Self {
        match word {
            "none" => Self::None,
            "connect" => Self::Connect,
            "connecting" => Self::Connecting,
            "handshake" => Self::Handshake,
            "sync" => Self::Sync,
            "connected" => Self::Connected,
            _ => Self::Unknown,
        }
    }
}

fn bad(problem: impl Into<String>) -> BadReply {
    BadReply { command: "ROLE", problem: problem.into() }
}

fn text(value: &Value, what: &str) -> Result<String, BadReply> {
    value.as_str().map(str::to_owned).ok_or_else(|| bad(format!("{what} that is no text")))
}

fn number<T: TryFrom<i64>>(value: &Value, what: &str) -> Result<T, BadReply> {
    let number = value.as_integer().and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| bad(format!("{what} out of range")))
}

fn replica(value: &Value) -> Result<RoleReplica, BadReply> {
    let Some([host, port, offset, ..]) = value.as_array() else {
        return Err(bad("a replica that is no array of three"));
    };
    Ok(RoleReplica {
        host: text(host, "host")?,
        port: number(port, "port")?,
        offset: number(offset, "offset")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::{Limits, decode};

    fn role(wire: &str) -> Result<Role, String> {
        let wire = wire.replace(' ', "\r\n") + "\r\n";
        let (value, _) = decode(wire.as_bytes(), &Limits::default()).unwrap().unwrap();
        Role::from_reply(&value).map_err(|error| error.problem)
    }

    #[test]
    fn roles() {
        assert_eq!(
            role("*3 $6 master :311 *1 *3 $9 127.0.0.1 $4 9001 $3 310"),
            Ok(Role::Primary {
                offset: 311,
                replicas: vec![RoleReplica { host: "127.0.0.1".into(), port: 9001, offset: 310 }],
            })
        );
        let check = |word: &str, link: LinkState, offset: i64| {
            assert_eq!(
                role(&format!("*5 +slave $3 ::1 :9000 +{word} :{offset}")),
                Ok(Role::Replica { primary_host: "::1".into(), primary_port: 9000, link, offset })
            );
        };
        check("none", LinkState::None, -1);
        check("connect", LinkState::Connect, -1);
        check("connecting", LinkState::Connecting, -1);
        check("handshake", LinkState::Handshake, -1);
        check("sync", LinkState::Sync, -1);
        check("connected", LinkState::Connected, 311);
        check("unknown", LinkState::Unknown, 0);
        assert_eq!(role("*2 +sentinel *0"), Ok(Role::Sentinel));
    }

    #[test]
    fn replies_that_cannot_be_read() {
        let check = |wire: &str, problem: &str| {
            assert_eq!(role(wire), Err(problem.into()), "{wire}");
        };
        check("+OK", "not an array");
        check("*0", "an empty array");
        check("*1 +master", "master with 0 fields");
        check("*2 +active-replica *0", "active-replica with 1 fields");
        check("*3 +master :-1 *0", "offset out of range");
        check("*3 +master :1 :1", "replicas that are no array");
        check("*3 +master :1 *1 *0", "a replica that is no array of three");
        check("*5 +slave $1 h :70000 +sync :0", "port out of range");
    }
}
