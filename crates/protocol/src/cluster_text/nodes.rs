//! The table of nodes: CLUSTER NODES and the nodes.conf file.

use std::{fmt, str::FromStr};

use crate::{NodeId, Slot, SlotSet};

/// One node's view of the cluster. Source: the CLUSTER NODES documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterNodes {
    /// Every node this one knows, itself too, in the order told.
    pub rows: Vec<NodeRow>,
    /// Whose view it is.
    pub myself: NodeId,
    /// The slots that are being moved, as far as this node takes part: a node does not tell of
    /// the others'.
    pub open: Vec<OpenSlot>,
}

/// What one node says of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    pub id: NodeId,
    /// Empty where it is not known.
    pub ip: String,
    /// The port that clients use: TCP, or TLS where that is what the asking client uses.
    pub port: u16,
    pub bus_port: u16,
    /// What `cluster-announce-hostname` says.
    pub hostname: Option<String>,
    pub flags: Flags,
    /// For a replica, the node it copies.
    pub primary: Option<NodeId>,
    /// When the ping that is not answered yet was sent, in Unix time; 0 where there is none.
    pub ping_sent_ms: u64,
    /// When the last answer came, in Unix time; 0 where none has.
    pub pong_received_ms: u64,
    pub config_epoch: u64,
    /// Does the bus link to the node stand?
    pub link_up: bool,
    /// What the node owns; nothing for a replica.
    pub slots: SlotSet,
}

/// A node's flags; those an engine adds are not an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub myself: bool,
    pub primary: bool,
    pub replica: bool,
    /// The teller cannot reach it (`fail?`).
    pub pfail: bool,
    /// A majority could not reach it.
    pub fail: bool,
    /// Not met yet; the id is made up.
    pub handshake: bool,
    pub noaddr: bool,
    /// The replica never runs for primary.
    pub nofailover: bool,
}

/// Where an open slot is going, seen from the node that tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpenDirection {
    /// To the peer.
    Migrating,
    /// From the peer.
    Importing,
}

/// A slot in migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpenSlot {
    pub slot: Slot,
    pub direction: OpenDirection,
    pub peer: NodeId,
}

/// What a node remembers over restarts: the file that `cluster-config-file` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodesConf {
    pub nodes: ClusterNodes,
    pub current_epoch: u64,
    pub last_vote_epoch: u64,
}

/// What is wrong with one row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    #[error("it ends before its {0}")]
    Missing(&'static str),
    #[error("its {field} cannot be read: {text:?}")]
    Bad {
        field: &'static str,
        /// At most 64 characters of it.
        text: String,
    },
}

/// The text is not a table of nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodesError {
    #[error("line {line} of the table of nodes: {problem}")]
    Row {
        /// From 1.
        line: usize,
        problem: RowError,
    },
    #[error("no line of the table of nodes has the flag `myself`")]
    NoMyself,
    #[error("two lines of the table of nodes have the flag `myself`")]
    TwoMyself,
    #[error("nodes.conf has no line `vars currentEpoch … lastVoteEpoch …`: it was cut short")]
    NoVars,
}

impl FromStr for ClusterNodes {
    type Err = NodesError;

    /// Reads the reply of CLUSTER NODES. A `vars` line is skipped.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut rows = Vec::new();
        let mut myself = None;
        let mut open = Vec::new();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || is_vars(line) {
                continue;
            }
            let (row, row_open) = NodeRow::parse(line)
                .map_err(|problem| NodesError::Row { line: index + 1, problem })?;
            if row.flags.myself {
                if myself.replace(row.id).is_some() {
                    return Err(NodesError::TwoMyself);
                }
                open = row_open;
            }
            rows.push(row);
        }
        Ok(Self { rows, myself: myself.ok_or(NodesError::NoMyself)?, open })
    }
}

impl ClusterNodes {
    /// The row of a node.
    pub fn row(&self, id: NodeId) -> Option<&NodeRow> {
        self.rows.iter().find(|row| row.id == id)
    }

    /// The row of the node whose view this is.
    pub fn my_row(&self) -> Option<&NodeRow> {
        self.row(self.myself)
    }
}

impl FromStr for NodesConf {
    type Err = NodesError;

    /// Reads the whole file. The engines write its `vars` line last, so a file without it was
    /// cut short, and the engines refuse to start on it too.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let nodes = text.parse()?;
        let vars = text.lines().find(|line| is_vars(line)).ok_or(NodesError::NoVars)?;
        let value = |name: &str| {
            let mut words = vars.split_ascii_whitespace().skip_while(|word| *word != name);
            words.nth(1)?.parse::<u64>().ok()
        };
        Ok(Self {
            nodes,
            current_epoch: value("currentEpoch").ok_or(NodesError::NoVars)?,
            last_vote_epoch: value("lastVoteEpoch").ok_or(NodesError::NoVars)?,
        })
    }
}

impl fmt::Display for NodesConf {
    /// The whole file, as every engine reads it: without what only later versions say of a node.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.nodes.rows {
            write!(f, "{row}")?;
            for open in self.nodes.open.iter().filter(|_| row.flags.myself) {
                let arrow = match open.direction {
                    OpenDirection::Migrating => '>',
                    OpenDirection::Importing => '<',
                };
                write!(f, " [{}-{arrow}-{}]", open.slot, open.peer)?;
            }
            f.write_str("\n")?;
        }
        let (current, vote) = (self.current_epoch, self.last_vote_epoch);
        writeln!(f, "vars currentEpoch {current} lastVoteEpoch {vote}")
    }
}

impl fmt::Display for NodeRow {
    /// The line without its open slots.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, ip, port, bus_port, flags, ping_sent_ms, pong_received_ms, .. } = self;
        write!(f, "{id} {ip}:{port}@{bus_port}")?;
        if let Some(hostname) = &self.hostname {
            write!(f, ",{hostname}")?;
        }
        write!(f, " {flags} ")?;
        match self.primary {
            Some(primary) => write!(f, "{primary}")?,
            None => f.write_str("-")?,
        }
        let link = if self.link_up { "connected" } else { "disconnected" };
        write!(f, " {ping_sent_ms} {pong_received_ms} {} {link}", self.config_epoch)?;
        for (first, last) in self.slots.ranges() {
            write!(f, " {first}-{last}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.myself, "myself"),
            (self.primary, "master"),
            (self.replica, "slave"),
            (self.pfail, "fail?"),
            (self.fail, "fail"),
            (self.handshake, "handshake"),
            (self.noaddr, "noaddr"),
            (self.nofailover, "nofailover"),
        ];
        let set: Vec<&str> =
            all.into_iter().filter_map(|(set, name)| set.then_some(name)).collect();
        f.write_str(&if set.is_empty() { "noflags".to_owned() } else { set.join(",") })
    }
}

fn is_vars(line: &str) -> bool {
    line.split_ascii_whitespace().next() == Some("vars")
}

fn bad(field: &'static str, text: &str) -> RowError {
    RowError::Bad { field, text: text.chars().take(64).collect() }
}

impl NodeRow {
    /// One line of the table, and the open slots it tells of (on the `myself` row only).
    pub fn parse(line: &str) -> Result<(Self, Vec<OpenSlot>), RowError> {
        let mut words = line.split_ascii_whitespace();
        let mut word = |field: &'static str| words.next().ok_or(RowError::Missing(field));
        let number = |field: &'static str, text: &str| -> Result<u64, RowError> {
            text.parse().map_err(|_| bad(field, text))
        };
        let node_id = |field: &'static str, text: &str| -> Result<NodeId, RowError> {
            text.parse().map_err(|_| bad(field, text))
        };

        let id = node_id("id", word("id")?)?;
        let (ip, port, bus_port, hostname) = parse_address(word("address")?)?;
        let flags = Flags::parse(word("flags")?);
        let primary = match word("primary")? {
            "-" => None,
            text => Some(node_id("primary", text)?),
        };
        let ping_sent_ms = number("ping time", word("ping time")?)?;
        let pong_received_ms = number("pong time", word("pong time")?)?;
        let config_epoch = number("config epoch", word("config epoch")?)?;
        let link_up = match word("link state")? {
            "connected" => true,
            "disconnected" => false,
            text => return Err(bad("link state", text)),
        };
        let mut slots = SlotSet::new();
        let mut open = Vec::new();
        for text in words {
            if text.starts_with('[') {
                open.push(parse_open(text).ok_or_else(|| bad("open slot", text))?);
            } else {
                slots = slots.union(&parse_slots(text).ok_or_else(|| bad("slots", text))?);
            }
        }
        let row = Self {
            id,
            ip,
            port,
            bus_port,
            hostname,
            flags,
            primary,
            ping_sent_ms,
            pong_received_ms,
            config_epoch,
            link_up,
            slots,
        };
        Ok((row, open))
    }
}

/// `ip:port@bus-port`, and from Redis 7.0 on `,hostname`, and in nodes.conf from 7.2 on
/// `,name=value` any number of times. An unknown address is `:0@0`; IPv6 has no brackets; before
/// Redis 4.0 there was no `@bus-port`, it was the port plus 10,000.
fn parse_address(text: &str) -> Result<(String, u16, u16, Option<String>), RowError> {
    let error = || bad("address", text);
    let (address, extras) = text.split_once(',').unwrap_or((text, ""));
    let (client, bus) =
        address.split_once('@').map_or((address, None), |(client, bus)| (client, Some(bus)));
    let (ip, port) = client.rsplit_once(':').ok_or_else(error)?;
    let port: u16 = port.parse().map_err(|_| error())?;
    let bus_port = match bus {
        Some(bus) => bus.parse().map_err(|_| error())?,
        None => port.checked_add(10_000).ok_or_else(error)?,
    };
    let hostname = extras.split(',').next().filter(|name| !name.is_empty() && !name.contains('='));
    Ok((ip.to_owned(), port, bus_port, hostname.map(str::to_owned)))
}

impl Flags {
    fn parse(text: &str) -> Self {
        let mut flags = Self::default();
        for flag in text.split(',') {
            match flag {
                "myself" => flags.myself = true,
                "master" => flags.primary = true,
                "slave" => flags.replica = true,
                "fail?" => flags.pfail = true,
                "fail" => flags.fail = true,
                "handshake" => flags.handshake = true,
                "noaddr" => flags.noaddr = true,
                "nofailover" => flags.nofailover = true,
                _ => {}
            }
        }
        flags
    }
}

/// `5` or `5-7`.
fn parse_slots(text: &str) -> Option<SlotSet> {
    let slot = |text: &str| Some(Slot::new(text.parse().ok()?)?.number());
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (slot(first)?, slot(last)?);
    (first <= last).then(|| SlotSet::range(first, last))
}

/// `[5->-id]` to a node, `[5-<-id]` from one.
fn parse_open(text: &str) -> Option<OpenSlot> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let (slot, rest) = inner.split_once('-')?;
    let (direction, peer) = match rest.split_once('-')? {
        (">", peer) => (OpenDirection::Migrating, peer),
        ("<", peer) => (OpenDirection::Importing, peer),
        _ => return None,
    };
    Some(OpenSlot { slot: Slot::new(slot.parse().ok()?)?, direction, peer: peer.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "07c37dfeb235213a872192d90877d0cd55635b91";
    const B: &str = "67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1";

    fn row(line: &str) -> Result<(NodeRow, Vec<OpenSlot>), RowError> {
        NodeRow::parse(&line.replace("$A", A).replace("$B", B))
    }

    #[test]
    fn addresses() {
        let check = |text: &str, ip: &str, port: u16, bus: u16, hostname: Option<&str>| {
            let (row, _) = row(&format!("$A {text} master - 0 1 2 connected")).unwrap();
            let got = (row.ip.as_str(), row.port, row.bus_port, row.hostname.as_deref());
            assert_eq!(got, (ip, port, bus, hostname), "{text}");
        };
        check("127.0.0.1:7000@17000", "127.0.0.1", 7000, 17000, None);
        check("127.0.0.1:7000", "127.0.0.1", 7000, 17000, None);
        check(":0@0", "", 0, 0, None);
        check(":7000@17000", "", 7000, 17000, None);
        check("2001:db8::1:7000@17000", "2001:db8::1", 7000, 17000, None);
        check("10.0.0.1:7000@17000,", "10.0.0.1", 7000, 17000, None);
        check("10.0.0.1:7000@17000,a.example", "10.0.0.1", 7000, 17000, Some("a.example"));
        check("10.0.0.1:7000@17000,,tls-port=0,shard-id=69bc", "10.0.0.1", 7000, 17000, None);
        check("10.0.0.1:7000@17000,a,shard-id=69bc", "10.0.0.1", 7000, 17000, Some("a"));
    }

    #[test]
    fn flags() {
        let check =
            |text: &str, expected: Flags| assert_eq!(Flags::parse(text), expected, "{text}");
        check("noflags", Flags::default());
        check("myself,master", Flags { myself: true, primary: true, ..Flags::default() });
        check("slave,fail?", Flags { replica: true, pfail: true, ..Flags::default() });
        check("master,fail", Flags { primary: true, fail: true, ..Flags::default() });
        check("handshake,noaddr,nofailover,something-new", {
            Flags { handshake: true, noaddr: true, nofailover: true, ..Flags::default() }
        });
    }

    #[test]
    fn slots_and_open_slots() {
        let (row, open) = row(
            "$A 127.0.0.1:1@2 myself,master - 10 20 3 disconnected 0-5 7 9-10 [5->-$B] [93-<-$B]",
        )
        .unwrap();
        assert_eq!(row.slots.to_string(), "0-5,7,9-10");
        assert_eq!((row.ping_sent_ms, row.pong_received_ms, row.config_epoch), (10, 20, 3));
        assert!(!row.link_up);
        assert_eq!(row.primary, None);
        let peer = B.parse().unwrap();
        let slot = |number| Slot::new(number).unwrap();
        assert_eq!(
            open,
            [
                OpenSlot { slot: slot(5), direction: OpenDirection::Migrating, peer },
                OpenSlot { slot: slot(93), direction: OpenDirection::Importing, peer },
            ]
        );
    }

    #[test]
    fn rows_that_cannot_be_read() {
        let check = |line: &str, field: &str| {
            let problem = match row(line).unwrap_err() {
                RowError::Missing(name) => name,
                RowError::Bad { field, .. } => field,
            };
            assert_eq!(problem, field, "{line}");
        };
        check("", "id");
        check("abc :0@0 master", "id");
        check("$A", "address");
        check("$A localhost master - 0 0 0 connected", "address");
        check("$A h:1@x master - 0 0 0 connected", "address");
        check("$A h:60000 master - 0 0 0 connected", "address");
        check("$A :0@0 slave x 0 0 0 connected", "primary");
        check("$A :0@0 slave $B x 0 0 connected", "ping time");
        check("$A :0@0 slave $B 0 0 connected", "config epoch");
        check("$A :0@0 slave $B 0 0 0", "link state");
        check("$A :0@0 slave $B 0 0 0 up", "link state");
        for slots in ["x", "7-5", "16384", "1-16384", "-1", "1-2-3"] {
            check(&format!("$A :0@0 master - 0 0 0 connected {slots}"), "slots");
        }
        for open in ["[", "[]", "[1->-$B", "[1-$B]", "[1->-x]", "[16384->-$B]", "[1-=-$B]"] {
            check(&format!("$A :0@0 myself - 0 0 0 connected {open}"), "open slot");
        }
    }

    #[test]
    fn files_are_written_as_they_are_read() {
        let check = |text: &str| {
            let text = text.replace("$A", A).replace("$B", B);
            assert_eq!(text.parse::<NodesConf>().unwrap().to_string(), text);
        };
        check(
            "$B 127.0.0.1:7000@17000,a.example slave,fail?,nofailover $A 1 2 3 disconnected\n\
             $A ::1:7001@17001 myself,master - 0 0 4 connected 0-5 7-7 [5->-$B] [93-<-$B]\n\
             vars currentEpoch 6 lastVoteEpoch 5\n",
        );
        check("$A :0@0 myself - 0 0 0 connected\nvars currentEpoch 0 lastVoteEpoch 0\n");
    }

    #[test]
    fn tables_and_files() {
        let mine = format!("{A} :1@2 myself,slave {B} 0 0 1 connected\n");
        let other = format!("{B} h:1@2 master - 0 0 2 connected 0-16383\n");
        let vars = "vars currentEpoch 6 lastVoteEpoch 5\n";

        let table: ClusterNodes = format!("{mine}{other}").parse().unwrap();
        assert_eq!(table.myself.to_string(), A);
        assert_eq!(table.my_row().unwrap().primary.unwrap().to_string(), B);
        assert_eq!(table.row(B.parse().unwrap()).unwrap().slots, SlotSet::full());

        let file: NodesConf = format!("{other}{mine}{vars}").parse().unwrap();
        assert_eq!((file.current_epoch, file.last_vote_epoch), (6, 5));
        assert_eq!(file.nodes.rows.len(), 2);

        let check = |text: String, expected: NodesError| {
            assert_eq!(text.parse::<NodesConf>(), Err(expected), "{text}");
        };
        check(String::new(), NodesError::NoMyself);
        check(other.clone(), NodesError::NoMyself);
        check(format!("{mine}{mine}"), NodesError::TwoMyself);
        check(format!("{mine}{other}"), NodesError::NoVars);
        check(format!("{mine}vars currentEpoch 6\n"), NodesError::NoVars);
        check(format!("{mine}\n{B}\n{vars}"), {
            NodesError::Row { line: 3, problem: RowError::Missing("address") }
        });
    }
}
