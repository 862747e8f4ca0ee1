//! `keyfleet schema`: the JSON Schema of fleet.yaml, for editors.

use super::context::Context;
use crate::errors::{Exit, Failure};

pub fn run(context: &Context) -> Result<Exit, Failure> {
    context.printer.data(&format!("{:#}\n", fleet::spec::json_schema()))?;
    Ok(Exit::Done)
}
