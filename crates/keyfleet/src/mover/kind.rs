//! What commands of a stream or a file are to those that do them again elsewhere.

use std::collections::BTreeMap;

use protocol::{Slot, commands, key_slot};

/// What a command is to them.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// SELECT: the ones that follow are in this database.
    Select(u64),
    /// It changes nothing by itself.
    Nothing,
    /// It changes whole databases, or a slot.
    Sweeping,
    /// FUNCTION LOAD.
    Function,
    /// For one slot each: the words' positions, without the name's.
    Parts(BTreeMap<Slot, Vec<usize>>),
    /// Nothing else is possible with it.
    Unfit(&'static str),
}

/// What the command is.
pub fn kind(words: &[&[u8]]) -> Kind {
    let Some(command) = commands::resolve(words) else { return Kind::Unfit("is not known") };
    match command.name {
        "select" => {
            let number = words.get(1).and_then(|word| std::str::from_utf8(word).ok());
            let number = number.and_then(|number| number.parse().ok());
            return number.map_or(Kind::Unfit("names no database"), Kind::Select);
        }
        "flushall" | "flushdb" | "swapdb" | "move" | "cluster|flushslot" => return Kind::Sweeping,
        "function|load" => return Kind::Function,
        "multi" | "exec" | "ping" | "publish" | "spublish" | "script|load" | "script|flush"
        | "replconf" => return Kind::Nothing,
        name if name.starts_with("cluster|") => return Kind::Nothing,
        _ => {}
    }
    let Ok(keys) = command.keys(words) else {
        return Kind::Unfit("says wrongly which keys it has");
    };
    // MSET's values follow their keys; of the others nothing but keys may be shared out.
    let pairs = command.name == "mset";
    let mut parts: BTreeMap<Slot, Vec<usize>> = BTreeMap::new();
    for at in keys {
        let Some(key) = words.get(at) else { continue };
        let part = parts.entry(key_slot(key)).or_default();
        part.push(at);
        if pairs {
            part.push(at + 1);
        }
    }
    match parts.len() {
        0 => Kind::Unfit("has no keys"),
        1 => {
            let all = (1..words.len()).collect();
            let slot = parts.into_keys().next();
            slot.map_or(Kind::Nothing, |slot| Kind::Parts(BTreeMap::from([(slot, all)])))
        }
        _ if pairs || matches!(command.name, "del" | "unlink") => Kind::Parts(parts),
        _ => Kind::Unfit("has keys of several slots"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_commands_are() {
        let check = |text: &str, expected: Kind| {
            let words: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
            assert_eq!(kind(&words), expected, "{text}");
        };
        let part = |key: &str, at: &[usize]| (key_slot(key.as_bytes()), at.to_vec());
        check("SELECT 3", Kind::Select(3));
        check("SELECT x", Kind::Unfit("names no database"));
        check("MULTI", Kind::Nothing);
        check("FLUSHALL", Kind::Sweeping);
        check("FUNCTION LOAD code", Kind::Function);
        check("cluster flushslot 5", Kind::Sweeping);
        check("cluster syncslots finish", Kind::Nothing);
        check("nonsense a", Kind::Unfit("is not known"));
        check("INCRBY a 1", Kind::Parts(BTreeMap::from([part("a", &[1, 2])])));
        check("DEL {x}a {x}b", Kind::Parts(BTreeMap::from([part("x", &[1, 2])])));
        check("DEL a b", Kind::Parts(BTreeMap::from([part("a", &[1]), part("b", &[2])])));
        check(
            "MSET a 1 b 2",
            Kind::Parts(BTreeMap::from([part("a", &[1, 2]), part("b", &[3, 4])])),
        );
        check("RENAME a b", Kind::Unfit("has keys of several slots"));
        check("RENAME {x}a {x}b", Kind::Parts(BTreeMap::from([part("x", &[1, 2])])));
    }
}
