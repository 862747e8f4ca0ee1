//! Commands of append-only files: each to its slot, those with keys of several slots split where
//! that means the same.
//!
//! Transactions come as their single commands. Nobody can tell what a command does to what is there
//! already, so those that empty databases end the import, and one that was stopped here doesn't go on.

use std::collections::BTreeMap;

use protocol::{Slot, commands, key_slot, resp::encode_command};

use super::{ImportError, carry::Carrier, carry::NO_DB, source::Position, state::Saved};

/// What a command is to an import.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// SELECT: the ones that follow are in this database.
    Select(u64),
    /// It changes nothing by itself.
    Nothing,
    /// It changes whole databases.
    Sweeping,
    /// FUNCTION LOAD.
    Function,
    /// For one slot each: the words' positions, without the name's.
    Parts(BTreeMap<Slot, Vec<usize>>),
    /// Nothing else is possible with it.
    Unfit(&'static str),
}

fn kind(words: &[&[u8]]) -> Kind {
    let Some(command) = commands::resolve(words) else { return Kind::Unfit("is not known") };
    match command.name {
        "select" => {
            let number = words.get(1).and_then(|word| std::str::from_utf8(word).ok());
            let number = number.and_then(|number| number.parse().ok());
            return number.map_or(Kind::Unfit("names no database"), Kind::Select);
        }
        "flushall" | "flushdb" | "swapdb" | "move" => return Kind::Sweeping,
        "function|load" => return Kind::Function,
        "multi" | "exec" | "ping" | "publish" | "spublish" | "script|load" | "script|flush"
        | "replconf" => return Kind::Nothing,
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

impl Carrier<'_> {
    pub(super) fn carry_command(
        &mut self,
        at: Position,
        words: &[&[u8]],
    ) -> Result<(), ImportError> {
        let name = || self.job.inputs.get(at.input).map(super::Input::name).unwrap_or_default();
        if self.job.filter.looks_at_values() {
            let option = "a filter by type, time to live or size";
            return Err(ImportError::Commands { name: name(), option });
        }
        let shown = words.first().copied().unwrap_or_default();
        let parts = match kind(words) {
            Kind::Select(db) => {
                self.source_db = db;
                return Ok(());
            }
            Kind::Nothing => return Ok(()),
            Kind::Sweeping => {
                let command = shown.escape_ascii().to_string();
                return Err(ImportError::Sweeping { name: name(), offset: at.offset, command });
            }
            Kind::Function => return self.function(words.last().copied().unwrap_or_default()),
            Kind::Unfit(why) => {
                let shown = shown.escape_ascii().to_string();
                let key = words.get(1).copied().unwrap_or_default();
                self.tally.troubles.add(key, format!("{shown} at byte {}: {why}", at.offset));
                return Ok(());
            }
            Kind::Parts(parts) => parts,
        };
        let key = parts.values().next().and_then(|part| words.get(*part.first()?));
        let key = key.copied().unwrap_or_default();
        let db = self.job.filter.mapped(self.source_db);
        if !self.job.filter.takes_db(self.source_db) || !self.job.filter.takes_name(key) {
            self.tally.filtered += 1;
            return Ok(());
        }
        if self.is_cluster() && db != 0 {
            let db = self.source_db;
            self.tally.troubles.add(key, format!("is in database {db}; {NO_DB}"));
            return Ok(());
        }
        self.tally.commands += 1;
        if self.job.dry_run {
            return Ok(());
        }
        if !self.sent_commands {
            self.sent_commands = true;
            // What came before in other files must be there, and a restart must not come here.
            self.feeder.barrier()?;
            if let Some(state) = &self.job.state {
                let tally = self.tally.clone();
                state.save(&Saved { position: at, tally, commands: true, ..Saved::default() })?;
            }
        }
        self.switch(at, db)?;
        for (slot, part) in parts {
            let chosen = std::iter::once(0).chain(part).filter_map(|at| words.get(at));
            self.feeder.push(slot, at.total, |out| encode_command(chosen, out))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_commands_are_to_an_import() {
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
