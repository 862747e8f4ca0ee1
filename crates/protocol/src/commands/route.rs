//! What becomes of each command: our decisions.

use super::Flags;

/// How a proxy in front of a cluster serves a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// All its keys must be in one slot; it goes to the node that owns that slot. A request
    /// without keys (`EVAL script 0`) goes to any primary. Across slots it is refused: it must
    /// be atomic, or its answer is more than the answers of the parts.
    OneSlot,
    /// Its keys may be in any slots: it is dealt out to their nodes, and the answers are merged.
    /// It is atomic in each slot, not across them. After each key of MSET stands its value, if
    /// the request is whole.
    Split(Merge),
    /// To every primary, and the answers are merged.
    AllPrimaries(Merge),
    /// To any node: the answer is the same everywhere, or the cluster spreads the effect.
    AnyNode,
    /// SCAN over all primaries, one after the other; the cursor says which one is next.
    Scan,
    /// The proxy answers.
    Local,
    /// It needs a connection to one server that no other client uses.
    Session(Session),
    /// It is answered with an error that says why.
    Refused(&'static str),
}

/// How the answers of several nodes become one. An error among them is the answer, unless it says
/// otherwise here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Integers are added.
    Sum,
    /// Each node answers an array with one element for each of its keys: they are put in the order
    /// of the request's keys.
    InOrderOfKeys,
    /// OK, when all say OK.
    AllOk,
    /// Arrays are joined, in no particular order.
    Concat,
    /// Arrays are joined and each element is kept once.
    Union,
    /// Arrays of ones and zeros: one where all have one.
    And,
    /// Flat arrays of names and integers, the same names everywhere: integers are added.
    SumPairs,
    /// All answers are the same; the first one.
    Same,
    /// One that is not null, if there is one.
    NotNull,
    /// OK when one says OK; errors only when all answer errors.
    OneOk,
}

/// Why a command needs a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// MULTI, EXEC, DISCARD, WATCH, UNWATCH: in one slot. Keyless ones act on the connection that
    /// the session has; the first key decides where it is.
    Transaction,
    /// It may wait for data: see [`super::Command::blocks`].
    Blocking,
    /// Channels: (P)SUBSCRIBE on any node; SSUBSCRIBE where the channel's slot is.
    Subscription,
    /// WAIT and WAITAOF: they ask for the writes of the connection they come over. Where clients
    /// share connections that is only known in a transaction.
    Acknowledgement,
}

/// May a request be sent again when the connection broke before its reply came, so that nobody
/// knows whether it was executed?
///
/// Only where twice leaves the same data as once, and gives the same reply. Reads do. Of the
/// writes, few do: DEL's second reply differs, INCR's effect too. Those that may are writes that
/// set what is there to what the request holds and answer OK. As with any client that tries again,
/// a write of someone else between the two may be covered by the second; the request was not
/// answered yet then, so either order was possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    Always,
    /// SET with at most a time to live: NX, XX, GET and the like depend on what is there.
    PlainSet,
    Never,
}

/// What twemproxy 0.5.0 does with a command: what the running program did with each name that its
/// parser knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Twemproxy {
    /// It closes the client's connection.
    Closes,
    /// It answers itself.
    Answers,
    /// To the server of its first key, wherever the others belong. EVAL and EVALSHA need a key.
    FirstKey,
    /// Dealt out by key: one request for each server that has some.
    Splits,
    /// To the server that the text of its number of keys hashes to, where the keys are not:
    /// a fault of twemproxy that nobody can build on.
    KeyCount,
    /// Without a key: to the server that the key `placeholder` belongs to.
    Placeholder,
}

const ONE_NODE: &str = "it concerns one server, not the cluster: connect to that server";
pub(super) const ADMIN: &str = "servers are administered directly, not through a proxy";
const INTERNAL: &str = "it is for servers and cluster tools among themselves";
pub(super) const FOLLOWED: &str = "the proxy follows redirections itself";
pub(super) const TOPOLOGY: &str = "the cluster is changed by what runs it, not through a proxy";
const ONE_DATABASE: &str = "a cluster has one database";
const SHARED: &str = "it would change a connection that clients share";
pub(super) const BARE: &str = "it needs a subcommand";

pub(super) const UNDECIDED: Route = Route::Refused("it is not known to the proxy");

/// The decision; none for a command that nobody has decided about, and that no rule fits.
pub(super) fn decide(name: &str, flags: Flags, has_keys: bool) -> Option<Route> {
    use Merge::{AllOk, And, Concat, InOrderOfKeys, NotNull, OneOk, Same, Sum, SumPairs, Union};
    use Route::{AllPrimaries, AnyNode, Local, OneSlot, Refused, Scan, Split};
    if name.ends_with("|help") {
        return Some(AnyNode);
    }
    let route = match name {
        "mget" => Split(InOrderOfKeys),
        "mset" => Split(AllOk),
        "del" | "unlink" | "exists" | "touch" => Split(Sum),
        "sunion" => Split(Union),

        "dbsize" | "pubsub|numpat" => AllPrimaries(Sum),
        "keys" => AllPrimaries(Concat),
        "randomkey" => AllPrimaries(NotNull),
        "flushall" | "flushdb" | "script|flush" | "function|delete" | "function|flush"
        | "function|restore" => AllPrimaries(AllOk),
        "script|load" | "function|load" => AllPrimaries(Same),
        "script|exists" => AllPrimaries(And),
        "script|kill" | "function|kill" => AllPrimaries(OneOk),
        "pubsub|channels" | "pubsub|shardchannels" => AllPrimaries(Union),
        "pubsub|numsub" | "pubsub|shardnumsub" => AllPrimaries(SumPairs),
        "scan" => Scan,

        "publish"
        | "time"
        | "lolwut"
        | "command"
        | "command|count"
        | "command|docs"
        | "command|getkeys"
        | "command|getkeysandflags"
        | "command|info"
        | "command|list"
        | "function|dump"
        | "function|list"
        | "script|show"
        | "acl|cat"
        | "acl|genpass" => AnyNode,

        "ping"
        | "echo"
        | "hello"
        | "auth"
        | "quit"
        | "reset"
        | "select"
        | "readonly"
        | "readwrite"
        | "info"
        | "role"
        | "config|get"
        | "slowlog|get"
        | "slowlog|len"
        | "slowlog|reset"
        | "acl|whoami"
        | "client|getname"
        | "client|setname"
        | "client|setinfo"
        | "client|id"
        | "client|info"
        | "client|list"
        | "client|capa"
        | "client|no-evict"
        | "client|getredir"
        | "client|trackinginfo"
        | "cluster|info"
        | "cluster|nodes"
        | "cluster|slots"
        | "cluster|shards"
        | "cluster|myid"
        | "cluster|myshardid"
        | "cluster|keyslot"
        | "cluster|countkeysinslot"
        | "cluster|getkeysinslot"
        | "cluster|replicas"
        | "cluster|slaves" => Local,

        "multi" | "exec" | "discard" | "watch" | "unwatch" => Route::Session(Session::Transaction),
        "wait" | "waitaof" => Route::Session(Session::Acknowledgement),
        "subscribe" | "psubscribe" | "ssubscribe" | "unsubscribe" | "punsubscribe"
        | "sunsubscribe" => Route::Session(Session::Subscription),
        // What their flags don't say: a channel's slot decides; a script may read or write.
        "spublish" | "eval" | "evalsha" | "fcall" | "eval_ro" | "evalsha_ro" | "fcall_ro" => {
            OneSlot
        }

        "asking" => Refused(FOLLOWED),
        "swapdb" => Refused(ONE_DATABASE),
        "migrate" | "restore-asking" | "psync" | "sync" | "replconf" | "pfselftest" | "pfdebug"
        | "debug" | "script|debug" => Refused(INTERNAL),
        "client|no-touch"
        | "client|reply"
        | "client|tracking"
        | "client|caching"
        | "client|import-source" => Refused(SHARED),
        "client|kill" | "client|pause" | "client|unpause" | "client|unblock" => Refused(ADMIN),
        "monitor"
        | "lastsave"
        | "memory|doctor"
        | "memory|malloc-stats"
        | "memory|purge"
        | "memory|stats"
        | "function|stats"
        | "cluster|links"
        | "cluster|slot-stats"
        | "cluster|count-failure-reports"
        | "cluster|getslotmigrations"
        | "clusterscan" => Refused(ONE_NODE),
        "acl" | "client" | "cluster" | "commandlog" | "config" | "function" | "latency"
        | "memory" | "module" | "object" | "pubsub" | "script" | "slowlog" | "xgroup" | "xinfo" => {
            Refused(BARE)
        }
        _ if name.starts_with("commandlog|") || name.starts_with("latency|") => Refused(ONE_NODE),
        _ if name.starts_with("cluster|") && flags.has(Flags::ADMIN) => Refused(TOPOLOGY),
        _ if flags.has(Flags::ADMIN) => Refused(ADMIN),
        _ if flags.has(Flags::BLOCKING) && has_keys => Route::Session(Session::Blocking),
        _ if has_keys && is_plain(flags) => OneSlot,
        _ => return None,
    };
    Some(route)
}

/// It reads or writes the keys it names, and leaves nothing behind on its connection.
fn is_plain(flags: Flags) -> bool {
    let reads_or_writes = flags.has(Flags::WRITE) != flags.has(Flags::READONLY);
    let odd = [Flags::ADMIN, Flags::PUBSUB, Flags::NOSCRIPT, Flags::NO_AUTH, Flags::NO_MULTI];
    reads_or_writes && !odd.into_iter().any(|flag| flags.has(flag))
}

impl Repeat {
    pub(super) fn of(name: &str, flags: Flags, route: Route) -> Self {
        match (name, route) {
            ("set", _) => Self::PlainSet,
            ("setex" | "psetex" | "mset" | "hmset" | "lset" | "pfmerge" | "script|load", _) => {
                Self::Always
            }
            // Subscribers would get it twice.
            ("publish" | "spublish", _) => Self::Never,
            ("script|exists", _) | (_, Route::AnyNode) => Self::Always,
            _ if name.starts_with("pubsub|") || flags.has(Flags::READONLY) => Self::Always,
            _ => Self::Never,
        }
    }
}

impl Twemproxy {
    pub(super) fn of(name: &str) -> Self {
        match name {
            "mget" | "mset" | "del" | "unlink" | "touch" => Self::Splits,
            "zunion" | "zinter" | "zdiff" => Self::KeyCount,
            "ping" | "quit" | "auth" => Self::Answers,
            "command" | "lolwut" => Self::Placeholder,
            _ if FIRST_KEY.split(' ').any(|each| each == name) => Self::FirstKey,
            _ => Self::Closes,
        }
    }
}

/// [`Twemproxy::FirstKey`].
pub(super) const FIRST_KEY: &str = "\
    append bitcount bitfield bitpos copy decr decrby dump eval evalsha exists expire expireat \
    geoadd geodist geohash geopos georadius georadiusbymember geosearch geosearchstore get \
    getbit getdel getex getrange getset hdel hexists hget hgetall hincrby hincrbyfloat hkeys \
    hlen hmget hmset hrandfield hscan hset hsetnx hstrlen hvals incr incrby incrbyfloat lindex \
    linsert llen lmove lpop lpos lpush lpushx lrange lrem lset ltrim persist pexpire pexpireat \
    pfadd pfcount pfmerge psetex pttl restore rpop rpoplpush rpush rpushx sadd scard sdiff \
    sdiffstore set setbit setex setnx setrange sinter sinterstore sismember smembers smismember \
    smove sort spop srandmember srem sscan strlen sunion sunionstore ttl type zadd zcard zcount \
    zdiffstore zincrby zinterstore zlexcount zmscore zpopmax zpopmin zrandmember zrange \
    zrangebylex zrangebyscore zrangestore zrank zrem zremrangebylex zremrangebyrank \
    zremrangebyscore zrevrange zrevrangebylex zrevrangebyscore zrevrank zscan zscore zunionstore";
