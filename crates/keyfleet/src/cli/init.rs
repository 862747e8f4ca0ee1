//! `keyfleet init`: a starter fleet.yaml. Never overwrites.

use std::{fs::OpenOptions, io::ErrorKind, io::Write as _};

use fleet::spec::STARTER;

use super::context::Context;
use crate::errors::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(context: &Context, _: &Args) -> Result<Exit, Failure> {
    let path = context.file();
    let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Failure::user(format!("{} exists and is left as it is", path.display()))
                .hint("choose another name: keyfleet init --file other.yaml"));
        }
        Err(error) => return Err(Failure::file("create", path, &error)),
    };
    file.write_all(STARTER.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| Failure::file("write", path, &error))?;
    let up = context.command("up");
    context.printer.note(&format!("Wrote {}. Read it, then: {up}", path.display()));
    Ok(Exit::Done)
}
