//! Two proxies over twin backends get the same random commands; whatever they answer, and whatever
//! their backends hold at the end, must be the same.
//!
//! Deliberately absent from what is sent: commands that twemproxy refuses or routes by mistake,
//! and answers that chance decides (SPOP, SRANDMEMBER, RANDOMKEY). What an engine keeps in no
//! order is sorted before it is compared; times to live may differ by two seconds.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use protocol::{
    Value,
    resp::{Decoder, Limits, encode_command},
};
use sim::rng::Rng;

/// The longest wait for an answer.
const TIME_MAX: Duration = Duration::from_secs(30);

/// Commands in one pipeline, at most.
const PIPELINE_MAX: usize = 40;

/// Shorter ones are sent byte by byte now and then.
const BYTEWISE_MAX: usize = 600;

/// The longest value, which is rare.
const VALUE_MAX: usize = 200_000;

/// Names of one kind of value; as many keys again have another kind now and then.
const KEYS_A_KIND: usize = 24;

/// What is sent. A word in capitals is sent as it is; else
/// `string hash list set zset hll geo`: a key, most often of that kind · `own`: a key of nothing but
/// strings (how a set is dumped, chance decides) · `keys`, `pairs`: 1 to 12
/// keys (and values) of strings · `v` a value · `m` `m+` members · `f` `f+` fields · `n` a small
/// number · `x` a float · `t` a long time to live · `s` a score.
const COMMANDS: &[&str] = &[
    "GET string",
    "GET string",
    "SET string v",
    "SET string v",
    "SET string v EX t",
    "SET string v NX",
    "SET string v XX GET",
    "SET string v KEEPTTL",
    "SETEX string t v",
    "PSETEX string t v",
    "SETNX string v",
    "GETSET string v",
    "GETDEL string",
    "GETEX string PERSIST",
    "APPEND string v",
    "STRLEN string",
    "GETRANGE string n n",
    "SETRANGE string n v",
    "INCR string",
    "DECR string",
    "INCRBY string n",
    "DECRBY string n",
    "INCRBYFLOAT string x",
    "SETBIT string n 1",
    "GETBIT string n",
    "BITCOUNT string",
    "BITPOS string 1",
    "BITFIELD string SET u8 0 n GET u4 0",
    "SET own v",
    "DUMP own",
    "RESTORE own 0 v",
    "MGET keys",
    "MGET keys",
    "MSET pairs",
    "MSET pairs",
    "DEL keys",
    "UNLINK keys",
    "TOUCH keys",
    "EXISTS string",
    "DEL hash",
    "UNLINK zset",
    "TYPE string",
    "TYPE zset",
    "EXPIRE string t",
    "EXPIRE hash t",
    "PEXPIRE list t",
    "EXPIREAT set 4102444800",
    "PEXPIREAT zset 4102444800000",
    "TTL string",
    "PTTL hash",
    "PERSIST string",
    "SORT list ALPHA",
    "COPY string string",
    "HSET hash f v",
    "HSET hash f v f v",
    "HSETNX hash f v",
    "HMSET hash f v f v",
    "HGET hash f",
    "HMGET hash f+",
    "HGETALL hash",
    "HDEL hash f+",
    "HEXISTS hash f",
    "HINCRBY hash f n",
    "HINCRBYFLOAT hash f x",
    "HKEYS hash",
    "HVALS hash",
    "HLEN hash",
    "HSTRLEN hash f",
    "LPUSH list m+",
    "RPUSH list m+",
    "LPUSHX list m",
    "RPUSHX list m",
    "LPOP list",
    "RPOP list",
    "LPOP list n",
    "LLEN list",
    "LRANGE list 0 n",
    "LINDEX list n",
    "LSET list n v",
    "LINSERT list BEFORE m v",
    "LREM list 0 m",
    "LTRIM list 0 n",
    "LPOS list m",
    "RPOPLPUSH list list",
    "LMOVE list list LEFT RIGHT",
    "SADD set m+",
    "SREM set m+",
    "SCARD set",
    "SISMEMBER set m",
    "SMISMEMBER set m+",
    "SMEMBERS set",
    "SMOVE set set m",
    "SDIFF set set",
    "SINTER set set",
    "SUNION set set",
    "SDIFFSTORE set set set",
    "SINTERSTORE set set set",
    "SUNIONSTORE set set set",
    "ZADD zset s m",
    "ZADD zset s m s m s m",
    "ZADD zset GT CH s m",
    "ZCARD zset",
    "ZCOUNT zset -inf s",
    "ZINCRBY zset s m",
    "ZLEXCOUNT zset - +",
    "ZMSCORE zset m+",
    "ZPOPMIN zset",
    "ZPOPMAX zset n",
    "ZRANGE zset 0 n",
    "ZRANGE zset 0 n WITHSCORES",
    "ZRANGEBYLEX zset - +",
    "ZRANGEBYSCORE zset -inf s WITHSCORES",
    "ZRANGESTORE zset zset 0 n",
    "ZRANK zset m",
    "ZREM zset m+",
    "ZREMRANGEBYRANK zset 0 n",
    "ZREMRANGEBYSCORE zset -inf s",
    "ZREMRANGEBYLEX zset - (m",
    "ZREVRANGE zset 0 n",
    "ZREVRANGEBYSCORE zset s -inf",
    "ZREVRANGEBYLEX zset + -",
    "ZREVRANK zset m",
    "ZSCORE zset m",
    "ZUNIONSTORE zset 2 zset zset",
    "ZINTERSTORE zset 2 zset zset",
    "PFADD hll m+",
    "PFCOUNT hll",
    "PFMERGE hll hll",
    "GEOADD geo 13.5 38.1 m",
    "GEOADD geo 2.3 48.8 m",
    "GEOPOS geo m",
    "GEODIST geo m m km",
    "GEOHASH geo m",
    "GEOSEARCH geo FROMLONLAT 13.5 38.1 BYRADIUS 9000 km ASC",
    "EVAL return{KEYS[1],ARGV[1]} 1 string v",
    "EVAL return(redis.call('INCR',KEYS[1])) 1 string",
    "EVALSHA 0123456789012345678901234567890123456789 1 string",
    "PING",
];

/// Commands whose answers have no order.
const UNORDERED: [&str; 7] = ["HGETALL", "HKEYS", "HVALS", "SMEMBERS", "SDIFF", "SINTER", "SUNION"];

/// Sends `count` commands, in pipelines that are cut anywhere, to both proxies and compares the answers, then what each backend of one
/// holds with what its twin holds. An error tells the command and both answers.
pub fn compare(
    proxies: [SocketAddr; 2],
    backends: &[[SocketAddr; 2]],
    count: usize,
    seed: u64,
) -> Result<()> {
    let mut rng = Rng::new(seed);
    let mut left = Wire::open(proxies[0])?;
    let mut right = Wire::open(proxies[1])?;
    let mut sent = 0;
    while sent < count {
        let pipeline: Vec<_> = (0..=rng.below(PIPELINE_MAX)).map(|_| command(&mut rng)).collect();
        left.send_cut(&pipeline, &mut rng)?;
        right.send_cut(&pipeline, &mut rng)?;
        for words in &pipeline {
            let one = left.reply().with_context(|| format!("seed {seed}: {}", shown(words)))?;
            let other = right.reply().with_context(|| format!("seed {seed}: {}", shown(words)))?;
            ensure!(
                alike(&words[0], &one, &other),
                "seed {seed}, about command {sent}: {}\n{one:?}\n{other:?}",
                shown(words)
            );
            sent += 1;
        }
    }
    for twins in backends {
        let [one, other] = [contents(twins[0])?, contents(twins[1])?];
        ensure!(one == other, "seed {seed}: {} and {} differ", twins[0], twins[1]);
    }
    Ok(())
}

/// A connection without pretensions.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    decoder: Decoder,
}

impl Wire {
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(TIME_MAX))?;
        stream.set_write_timeout(Some(TIME_MAX))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, decoder: Decoder::new(Limits::default()) })
    }

    /// Its own end.
    pub fn local_address(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Sends commands in one go.
    pub fn send(&mut self, commands: &[Vec<Vec<u8>>]) -> Result<()> {
        let mut bytes = Vec::new();
        for words in commands {
            encode_command(words, &mut bytes);
        }
        Ok(self.stream.write_all(&bytes)?)
    }

    /// Sends bytes as they are.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Sends commands in one go, or cut anywhere, or byte by byte.
    fn send_cut(&mut self, commands: &[Vec<Vec<u8>>], rng: &mut Rng) -> Result<()> {
        let mut bytes = Vec::new();
        for words in commands {
            encode_command(words, &mut bytes);
        }
        let mut rest = bytes.as_slice();
        if rest.len() < BYTEWISE_MAX && rng.chance(5) {
            for byte in rest.chunks(1) {
                self.stream.write_all(byte)?;
            }
            return Ok(());
        }
        while rng.chance(40) && !rest.is_empty() {
            let (now, later) = rest.split_at(rng.below(rest.len()));
            self.stream.write_all(now)?;
            rest = later;
        }
        Ok(self.stream.write_all(rest)?)
    }

    /// The next answer; an error where the connection was closed.
    pub fn reply(&mut self) -> Result<Value> {
        let mut piece = [0; 16 << 10];
        loop {
            if let Some(value) = self.decoder.next()? {
                return Ok(value);
            }
            match self.stream.read(&mut piece)? {
                0 => bail!("the connection was closed"),
                read => self.decoder.feed(&piece[..read]),
            }
        }
    }

    /// Sends one command and returns its answer.
    pub fn call(&mut self, words: &[&[u8]]) -> Result<Value> {
        self.send(&[words.iter().map(|word| word.to_vec()).collect()])?;
        self.reply()
    }
}

fn shown(words: &[Vec<u8>]) -> String {
    words.iter().map(|word| word.escape_ascii().to_string()).collect::<Vec<_>>().join(" ")
}

fn command(rng: &mut Rng) -> Vec<Vec<u8>> {
    let template = rng.pick(COMMANDS).copied().unwrap_or("PING");
    let mut words: Vec<Vec<u8>> = Vec::new();
    for word in template.split(' ') {
        match word {
            "own" | "string" | "hash" | "list" | "set" | "zset" | "hll" | "geo" => {
                words.push(key(word, rng));
            }
            "keys" => words.extend((0..=rng.below(12)).map(|_| key("string", rng))),
            "pairs" => {
                for _ in 0..=rng.below(12) {
                    words.push(key("string", rng));
                    words.push(value(rng));
                }
            }
            "v" => words.push(value(rng)),
            "m" | "f" => words.push(member(rng)),
            "m+" | "f+" => words.extend((0..=rng.below(5)).map(|_| member(rng))),
            "(m" => words.push([b"(", member(rng).as_slice()].concat()),
            "n" => words.push(rng.below(40).to_string().into_bytes()),
            "x" => words.push(format!("{}.5", rng.below(9)).into_bytes()),
            "t" => words.push((100_000 + rng.below(1_000)).to_string().into_bytes()),
            "s" => words.push((i64::from(rng.between(0, 200)) - 100).to_string().into_bytes()),
            literal => words.push(literal.as_bytes().to_vec()),
        }
    }
    if rng.chance(30) {
        words[0].make_ascii_lowercase();
    }
    words
}

/// Names of every sort: plain, tagged, with bytes beyond ASCII, long, spaces and line ends.
fn key(kind: &str, rng: &mut Rng) -> Vec<u8> {
    let kind = if rng.chance(4) && kind != "own" { "string" } else { kind };
    let number = rng.below(KEYS_A_KIND);
    match number % 8 {
        0 => format!("{kind}:{{tag{}}}:{number}", number % 3).into_bytes(),
        1 => [kind.as_bytes(), &[0xff, 0x80, 0xc3, number as u8, b'\r', b'\n', 0]].concat(),
        2 => format!("{kind}{}{number}", "long".repeat(40 + number)).into_bytes(),
        3 => format!("{{}}{kind} {number}{{").into_bytes(),
        _ => format!("{kind}{number}").into_bytes(),
    }
}

fn value(rng: &mut Rng) -> Vec<u8> {
    if rng.below(400) == 0 {
        return (0..rng.below(VALUE_MAX)).map(|at| (at * 11 % 256) as u8).collect();
    }
    match rng.below(10) {
        0 => Vec::new(),
        1 => (0..rng.below(3_000)).map(|at| (at * 7 % 256) as u8).collect(),
        2 => b"*1\r\n$4\r\nPING\r\n".to_vec(),
        3..6 => rng.below(1_000).to_string().into_bytes(),
        _ => format!("value {}", rng.below(100)).into_bytes(),
    }
}

fn member(rng: &mut Rng) -> Vec<u8> {
    format!("m{}", rng.below(30)).into_bytes()
}

fn alike(name: &[u8], one: &Value, other: &Value) -> bool {
    let name = String::from_utf8_lossy(name).to_ascii_uppercase();
    match (name.as_str(), one, other) {
        ("TTL", Value::Integer(one), Value::Integer(other)) => one.abs_diff(*other) <= 2,
        ("PTTL", Value::Integer(one), Value::Integer(other)) => one.abs_diff(*other) <= 2_000,
        (name, Value::Array(_), Value::Array(_)) if UNORDERED.contains(&name) => {
            sorted(one) == sorted(other)
        }
        _ => one == other,
    }
}

fn sorted(value: &Value) -> Vec<String> {
    let items = value.as_array().unwrap_or_default();
    let mut items: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
    items.sort();
    items
}

/// Every key of a server with its value as text, sorted.
fn contents(address: SocketAddr) -> Result<Vec<String>> {
    let mut server = Wire::open(address)?;
    let keys = server.call(&[b"KEYS", b"*"])?;
    let mut contents = Vec::new();
    for key in keys.as_array().context("KEYS gives an array")? {
        let key = key.as_bytes().context("a key is bytes")?;
        let kind = server.call(&[b"TYPE", key])?;
        let value = match kind.as_str() {
            Some("string") => format!("{:?}", server.call(&[b"GET", key])?),
            Some("hash") => sorted(&server.call(&[b"HGETALL", key])?).join(" "),
            Some("list") => format!("{:?}", server.call(&[b"LRANGE", key, b"0", b"-1"])?),
            Some("set") => sorted(&server.call(&[b"SMEMBERS", key])?).join(" "),
            Some("zset") => {
                format!("{:?}", server.call(&[b"ZRANGE", key, b"0", b"-1", b"WITHSCORES"])?)
            }
            other => bail!("{} holds a {other:?}", key.escape_ascii()),
        };
        let lives = server.call(&[b"PTTL", key])?.as_integer().is_some_and(|ms| ms >= 0);
        contents.push(format!("{} lives={lives} {value}", key.escape_ascii()));
    }
    contents.sort();
    Ok(contents)
}
