//! What every command starts from: the printer and the fleet's file.

use std::path::{Path, PathBuf};

use super::printer::Printer;

/// The file that is read where none is named.
pub const DEFAULT_FILE: &str = "fleet.yaml";

/// See the module.
#[derive(Debug)]
pub struct Context {
    pub printer: Printer,
    /// As the user gave it.
    pub file: Option<PathBuf>,
}

impl Context {
    /// The fleet's file, whether it exists or not.
    pub fn file(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE))
    }
}
