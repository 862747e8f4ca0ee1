//! What a cluster says of itself.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs as _},
    sync::Arc,
    time::{Duration, Instant},
};

use protocol::{
    SlotSet, Value,
    resp::{DecodeError, Decoder, encode_command},
};

use crate::{
    driver::{
        Connector,
        tls_fault::{Peer, explained},
    },
    engine::Profile,
    route::{Address, Primary, Topology},
};

/// A node did not say what its cluster looks like.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    #[error("it cannot be reached")]
    Io(#[from] io::Error),
    #[error("its answer cannot be read")]
    Decode(#[from] DecodeError),
    #[error("it answers in another protocol; where it speaks TLS: --server-tls-ca FILE")]
    Foreign,
    #[error("it says: {0}")]
    Refused(String),
    #[error("its answer to CLUSTER SLOTS has not the expected shape")]
    Shape,
    #[error("it owns and knows no slots")]
    Empty,
}

/// A connection that waits, plain or with TLS.
trait Link: Read + Write {}

impl<T: Read + Write> Link for T {}

/// Asks a node for its cluster's primaries and their slots, with `tls` over TLS. Blocks for as long
/// as `deadline`.
pub fn ask(
    address: &Address,
    profile: &Profile,
    tls: Option<&Connector>,
    deadline: Duration,
) -> Result<Topology, TopologyError> {
    let mut topology = Topology::default();
    for answer in exchange(address, profile, tls, deadline, &[&["CLUSTER", "SLOTS"]])? {
        topology = read(&answer.value, address).ok_or(TopologyError::Shape)?;
    }
    if topology.primaries.is_empty() { Err(TopologyError::Empty) } else { Ok(topology) }
}

/// A node's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub value: Value,
    /// From the request to the answer.
    pub took: Duration,
}

/// Asks a node one thing after another. Blocks for as long as `deadline`.
pub fn exchange(
    address: &Address,
    profile: &Profile,
    tls: Option<&Connector>,
    deadline: Duration,
    requests: &[&[&str]],
) -> Result<Vec<Answer>, TopologyError> {
    let give_up = Instant::now() + deadline;
    let target: SocketAddr = match address {
        Address::Tcp(address) => *address,
        Address::Name { host, port } => (host.as_str(), *port)
            .to_socket_addrs()?
            .next()
            .ok_or(io::Error::from(io::ErrorKind::NotFound))?,
        Address::Unix(_) => return Err(io::Error::from(io::ErrorKind::Unsupported).into()),
    };
    let socket = TcpStream::connect_timeout(&target, deadline)?;
    socket.set_write_timeout(Some(deadline))?;
    socket.set_read_timeout(Some(deadline))?;
    let stream: Box<dyn Link> = match tls {
        None => Box::new(socket.try_clone()?),
        Some(tls) => Box::new(tls.connect_waiting(socket.try_clone()?, address)?),
    };
    talk(&socket, stream, profile, give_up, requests).map_err(|error| match error {
        TopologyError::Io(error) => in_words(error, tls.is_some()).into(),
        TopologyError::Decode(_) if tls.is_none() => TopologyError::Foreign,
        error => error,
    })
}

/// Says what may be wrong where it is TLS on one side only, and what is wrong with TLS.
fn in_words(error: io::Error, tls: bool) -> io::Error {
    use io::ErrorKind as Kind;
    let kind = error.kind();
    let text = match (kind, tls) {
        (Kind::TimedOut | Kind::WouldBlock, true) => {
            "it does not answer over TLS in time: is this its plain port?".to_owned()
        }
        (Kind::UnexpectedEof | Kind::ConnectionReset, false) => {
            format!("it hangs up ({error}); where it speaks TLS: --server-tls-ca FILE")
        }
        _ => match explained(&error, Peer::Server) {
            Some(text) => text,
            None => return error,
        },
    };
    io::Error::new(kind, text)
}

fn talk(
    socket: &TcpStream,
    mut stream: Box<dyn Link>,
    profile: &Profile,
    give_up: Instant,
    requests: &[&[&str]],
) -> Result<Vec<Answer>, TopologyError> {
    let mut decoder = Decoder::default();
    let mut call = |words: &[&str]| -> Result<Value, TopologyError> {
        let mut request = Vec::new();
        encode_command(words, &mut request);
        stream.write_all(&request)?;
        let mut piece = [0; 16 << 10];
        loop {
            match decoder.next()? {
                Some(Value::Error(text)) => return Err(TopologyError::Refused(text)),
                Some(value) => return Ok(value),
                None => {}
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            socket.set_read_timeout(Some(left))?;
            match stream.read(&mut piece)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => decoder.feed(piece.get(..count).unwrap_or_default()),
            }
        }
    };
    match (profile.user.as_deref(), profile.password.as_deref()) {
        (Some(user), Some(password)) => drop(call(&["AUTH", user, password])?),
        (None, Some(password)) => drop(call(&["AUTH", password])?),
        (_, None) => {}
    }
    let answers = requests.iter().map(|words| {
        let began = Instant::now();
        Ok(Answer { value: call(words)?, took: began.elapsed() })
    });
    answers.collect()
}

/// Reads the reply to CLUSTER SLOTS of the node at `asked`. None: it has another shape.
/// Source: CLUSTER SLOTS in the engines' documentation.
pub fn read(reply: &Value, asked: &Address) -> Option<Topology> {
    let mut topology = Topology::default();
    for range in reply.as_array()? {
        let [first, last, primary, ..] = range.as_array()? else { return None };
        let slots = SlotSet::range(number(first)?, number(last)?);
        let address = address_of(primary, asked)?;
        match topology.primaries.iter_mut().find(|each| *each.address == address) {
            Some(primary) => primary.slots = primary.slots.union(&slots),
            None => topology.primaries.push(Primary { address: Arc::new(address), slots }),
        }
    }
    Some(topology)
}

/// Reads who replicates whom from the reply to CLUSTER SLOTS of the node at `asked`: replicas with
/// their primaries, each once. None: it has another shape.
pub fn read_replicas(reply: &Value, asked: &Address) -> Option<Vec<(Address, Address)>> {
    let mut replicas = Vec::new();
    for range in reply.as_array()? {
        let [_, _, nodes @ ..] = range.as_array()? else { return None };
        let nodes: Option<Vec<Address>> =
            nodes.iter().map(|node| address_of(node, asked)).collect();
        let mut nodes = nodes?.into_iter();
        let primary = nodes.next()?;
        for replica in nodes {
            let pair = (replica, primary.clone());
            if !replicas.contains(&pair) {
                replicas.push(pair);
            }
        }
    }
    Some(replicas)
}

fn address_of(node: &Value, asked: &Address) -> Option<Address> {
    let [host, port, ..] = node.as_array()? else { return None };
    let port = number(port)?;
    // A node that doesn't know its address or name says nothing, or a question mark.
    Some(match host.as_str() {
        None | Some("" | "?") => asked.with_port(port),
        Some(host) => Address::new(host, port),
    })
}

fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_integer()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies() {
        let check = |text: &str, expected: Option<&[(&str, &str)]>| {
            let text = text.replace(' ', "\r\n");
            let (value, _) =
                protocol::resp::decode(text.as_bytes(), &protocol::resp::Limits::default())
                    .unwrap()
                    .unwrap();
            let asked = Address::parse("10.0.0.1:7000").unwrap();
            let primary = |(name, slots): &(&str, &str)| Primary {
                address: Arc::new(Address::parse(name).unwrap()),
                slots: slots.parse().unwrap(),
            };
            let expected =
                expected.map(|all| Topology { primaries: all.iter().map(primary).collect() });
            assert_eq!(read(&value, &asked), expected, "{text:?}");
        };
        let node = "*3 $9 127.0.0.1 :7001 $2 id ";
        check(
            &format!("*2 *3 :0 :5 {node}*4 :7 :9 {node}{node}"),
            Some(&[("127.0.0.1:7001", "0-5,7-9")]),
        );
        check("*1 *3 :0 :5 *2 $0  :7002 ", Some(&[("10.0.0.1:7002", "0-5")]));
        check("*1 *3 :0 :5 *2 $-1 :7002 ", Some(&[("10.0.0.1:7002", "0-5")]));
        check("*0 ", Some(&[]));
        check("*1 *2 :0 :5 ", None);
        check("*1 *3 :0 :99999 *2 $-1 :7002 ", None);
        check("+OK ", None);
    }

    #[test]
    fn replicas() {
        let node = |port| format!("*3 $9 127.0.0.1 :{port} $2 id ");
        let (a, b, c) = (node(1), node(2), node(3));
        let text = format!("*3 *5 :0 :5 {a}{b}{c}*4 :6 :7 {a}{b}*3 :8 :9 {c}").replace(' ', "\r\n");
        let limits = protocol::resp::Limits::default();
        let (value, _) = protocol::resp::decode(text.as_bytes(), &limits).unwrap().unwrap();
        let address = |port| Address::new("127.0.0.1", port);
        let found = read_replicas(&value, &address(9)).unwrap();
        assert_eq!(found, [(address(2), address(1)), (address(3), address(1))]);
    }
}
