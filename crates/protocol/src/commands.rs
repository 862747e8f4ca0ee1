//! Every command of the engines: its arity, where its keys are, what it does, and how a proxy in
//! front of a cluster serves it.
//!
//! The table beside this file comes from the engines' own COMMAND output (Redis 7.0 and 8.0,
//! Valkey 8.1 and 9.1); `cargo xtask commands` makes it anew. The decisions are ours, in `route`,
//! and each command of the table has one. What the table does not know has none either, and must
//! not reach a connection that clients share: nobody knows what it leaves behind there.
//!
//! Looking up allocates nothing. Deliberately absent: modules' commands that the asked engines
//! were built without, and commands that only KeyDB has.

mod keys;
mod names;
mod route;

use std::sync::LazyLock;

pub use keys::{Arguments, BadKeyCount, Keys};
use keys::{KeySpec, KeySpecs};
use names::Names;
pub use route::{Merge, Repeat, Route, Session, Twemproxy};

use crate::{EngineKind, Version};

/// A command, or one subcommand of a container such as CLIENT.
#[derive(Debug)]
pub struct Command {
    /// Lower case; `client|setname` for a subcommand.
    pub name: &'static str,
    /// As the engines group them: `string`, `sorted-set`.
    pub group: &'static str,
    /// How many arguments it takes, the name (and the subcommand's) included; negative: at least
    /// so many. Where versions differ, what any of them takes.
    pub arity: i8,
    pub flags: Flags,
    /// How a proxy in front of a cluster serves it. Of a container: how it serves the bare name.
    pub route: Route,
    /// May it be sent again when nobody knows whether it was executed?
    pub repeat: Repeat,
    /// What twemproxy 0.5.0 does with it.
    pub twemproxy: Twemproxy,
    /// The oldest asked version of each product that has it.
    pub since: Vec<(EngineKind, Version)>,
    keys: KeySpecs,
    subcommands: Vec<Command>,
}

/// What the engines say of a command.
/// Source: `COMMAND` in the engines' documentation, flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u16);

impl Flags {
    /// It changes data.
    pub const WRITE: Self = Self(1);
    /// It only reads data.
    pub const READONLY: Self = Self(1 << 1);
    /// It is for who administers the server.
    pub const ADMIN: Self = Self(1 << 2);
    /// It may keep its connection waiting.
    pub const BLOCKING: Self = Self(1 << 3);
    /// It has to do with channels.
    pub const PUBSUB: Self = Self(1 << 4);
    /// Scripts can't call it.
    pub const NOSCRIPT: Self = Self(1 << 5);
    /// It is served before AUTH.
    pub const NO_AUTH: Self = Self(1 << 6);
    /// It can't stand in a transaction.
    pub const NO_MULTI: Self = Self(1 << 7);
    /// Where its keys are depends on its arguments.
    pub const MOVABLE_KEYS: Self = Self(1 << 8);

    const NAMES: [(&str, Self); 9] = [
        ("write", Self::WRITE),
        ("readonly", Self::READONLY),
        ("admin", Self::ADMIN),
        ("blocking", Self::BLOCKING),
        ("pubsub", Self::PUBSUB),
        ("noscript", Self::NOSCRIPT),
        ("no_auth", Self::NO_AUTH),
        ("no_multi", Self::NO_MULTI),
        ("movablekeys", Self::MOVABLE_KEYS),
    ];

    /// Are all flags of the other here?
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    fn parse(list: &str) -> Option<Self> {
        let mut flags = Self::default();
        for word in list.split(',').filter(|word| *word != "-") {
            let (_, flag) = Self::NAMES.iter().find(|(name, _)| *name == word)?;
            flags.0 |= flag.0;
        }
        Some(flags)
    }
}

/// The command of this name in any case of letters; none for a name that no asked engine has.
/// CLIENT and the like are found as containers: see [`resolve`].
#[inline]
pub fn lookup(name: &[u8]) -> Option<&'static Command> {
    let table = LazyLock::force(&TABLE);
    table.commands.get(table.names.find(name)?)
}

/// The command that a request is for, the subcommand of a container. The first argument is the
/// command's name. None for what no asked engine has, unknown subcommands too.
pub fn resolve<A: Arguments + ?Sized>(arguments: &A) -> Option<&'static Command> {
    let command = lookup(arguments.get(0)?)?;
    match arguments.get(1) {
        Some(name) if command.is_container() => command.subcommand(name),
        _ => Some(command),
    }
}

/// All commands by name, without subcommands.
pub fn all() -> &'static [Command] {
    &TABLE.commands
}

impl Command {
    /// Does its first argument say what it does, as in CLIENT SETNAME?
    pub fn is_container(&self) -> bool {
        !self.subcommands.is_empty()
    }

    /// By name, in any case of letters.
    pub fn subcommand(&self, name: &[u8]) -> Option<&Command> {
        self.subcommands.iter().find(|each| each.last_name().as_bytes().eq_ignore_ascii_case(name))
    }

    /// By name.
    pub fn subcommands(&self) -> &[Command] {
        &self.subcommands
    }

    /// `setname` of `client|setname`.
    pub fn last_name(&self) -> &'static str {
        self.name.rsplit_once('|').map_or(self.name, |(_, last)| last)
    }

    /// Does a request of so many arguments, the name included, have enough and not too many?
    #[inline]
    pub const fn takes(&self, count: usize) -> bool {
        let least = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { count >= least } else { count == least }
    }

    /// Does it change data, as far as its flags say? Scripts may, and don't say so.
    #[inline]
    pub const fn is_write(&self) -> bool {
        self.flags.has(Flags::WRITE)
    }

    /// Does it only read data, so that a replica can serve it?
    #[inline]
    pub const fn is_read(&self) -> bool {
        self.flags.has(Flags::READONLY)
    }

    /// The position of the only key, where that does not depend on the arguments: 1 for GET. The
    /// way for most requests; [`Command::keys`] for all.
    #[inline]
    pub const fn only_key(&self) -> Option<usize> {
        self.keys.only
    }

    /// The positions of the keys of a request; those of sharded channels, which have slots as keys
    /// do, among them. Too few arguments make no or fewer keys: the engine finds the words for it.
    pub fn keys<A: Arguments + ?Sized>(&self, arguments: &A) -> Result<Keys, BadKeyCount> {
        self.keys.find(arguments)
    }

    /// Will this request of a command with [`Session::Blocking`] keep its connection waiting?
    /// XREAD and XREADGROUP do only with BLOCK; without, they are served as [`Route::OneSlot`].
    pub fn blocks<A: Arguments + ?Sized>(&self, arguments: &A) -> bool {
        if !self.flags.has(Flags::BLOCKING) {
            return false;
        }
        let streams = matches!(self.name, "xread" | "xreadgroup");
        // The options stand before STREAMS; GROUP's two names may be any words.
        let first = if self.name == "xreadgroup" { 4 } else { 1 };
        let mut words = (first..arguments.count()).map_while(|index| arguments.get(index));
        let option = words.find(|word| {
            [b"BLOCK".as_slice(), b"STREAMS"].iter().any(|o| word.eq_ignore_ascii_case(o))
        });
        !streams || option.is_some_and(|word| word.eq_ignore_ascii_case(b"BLOCK"))
    }

    /// May this request be sent again when the connection was lost before its reply came? See
    /// [`Repeat`].
    pub fn safe_to_repeat<A: Arguments + ?Sized>(&self, arguments: &A) -> bool {
        match self.repeat {
            Repeat::Always => true,
            Repeat::Never => false,
            Repeat::PlainSet => {
                // SET key value [EX seconds | PX ... | EXAT ... | PXAT ... | KEEPTTL]
                let option = |index| arguments.get(index).unwrap_or_default();
                let time: [&[u8]; 4] = [b"EX", b"PX", b"EXAT", b"PXAT"];
                match arguments.count() {
                    3 => true,
                    4 => option(3).eq_ignore_ascii_case(b"KEEPTTL"),
                    5 => time.iter().any(|name| option(3).eq_ignore_ascii_case(name)),
                    _ => false,
                }
            }
        }
    }

    fn parse(line: &'static str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let name = words.next()?;
        let group = words.next()?;
        let arity = words.next()?.parse().ok()?;
        let flags = Flags::parse(words.next()?)?;
        let specs = words.next()?.split(';').filter(|spec| *spec != "-");
        let keys = KeySpecs::new(specs.map(KeySpec::parse).collect::<Option<_>>()?);
        let since = words.map(|word| {
            let (kind, version) = word.split_once('@')?;
            let kinds = [EngineKind::Redis, EngineKind::Valkey];
            let kind = kinds.into_iter().find(|each| each.name() == kind)?;
            Some((kind, version.parse().ok()?))
        });
        let since = since.collect::<Option<_>>()?;
        let route = route::decide(name, flags, keys.any()).unwrap_or(route::UNDECIDED);
        let repeat = Repeat::of(name, flags, route);
        let twemproxy = Twemproxy::of(name);
        let subcommands = Vec::new();
        Some(Self { name, group, arity, flags, route, repeat, twemproxy, since, keys, subcommands })
    }
}

struct Table {
    /// By name.
    commands: Vec<Command>,
    names: Names,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(include_str!("commands/table.txt")));

impl Table {
    /// What is not understood is left out; a test sees to it that nothing is.
    fn parse(text: &'static str) -> Self {
        let mut commands: Vec<Command> = Vec::new();
        let lines = text.lines().filter(|line| !line.starts_with('#') && !is_engine(line));
        let (tops, subs): (Vec<_>, Vec<_>) =
            lines.filter_map(Command::parse).partition(|command| !command.name.contains('|'));
        commands.extend(tops);
        commands.sort_unstable_by_key(|command| command.name);
        for subcommand in subs {
            let container = subcommand.name.split('|').next().unwrap_or_default();
            if let Ok(index) = commands.binary_search_by(|command| command.name.cmp(container))
                && let Some(container) = commands.get_mut(index)
            {
                container.subcommands.push(subcommand);
            }
        }
        let names = Names::new(commands.iter().map(|command| command.name));
        Self { commands, names }
    }
}

/// `engine PRODUCT VERSION`: which engines were asked.
fn is_engine(line: &str) -> bool {
    line.starts_with("engine ")
}

#[cfg(test)]
mod tests;
