//! Commands of append-only files: each to its slot, those with keys of several slots split where
//! that means the same.
//!
//! Transactions come as their single commands. Nobody can tell what a command does to what is there
//! already, so those that empty databases end the import, and one that was stopped here doesn't go on.

use protocol::resp::encode_command;

use super::{ImportError, carry::Carrier, sieve::NO_DB, source::Position, state::Saved};
use crate::mover::kind::{Kind, kind};

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
