//! The log of `nutcracker`: a file that can be opened anew, as log rotation wants it, or stderr.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// See the module. Copies are the same log.
#[derive(Clone, Debug)]
pub struct Log {
    path: Option<PathBuf>,
    file: Arc<Mutex<Option<File>>>,
}

impl Log {
    /// Without a path it is stderr.
    pub fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let file = path.as_deref().map(append).transpose()?;
        Ok(Self { path, file: Arc::new(Mutex::new(file)) })
    }

    /// Goes on in the file that has its name now.
    pub fn reopen(&self) {
        let Some(path) = &self.path else { return };
        match append(path) {
            Ok(file) => *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file),
            Err(error) => tracing::error!(%error, "cannot open the log file anew"),
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).open(path)
}

impl Write for &Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.file.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => file.write(bytes),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = &'a Log;

    fn make_writer(&'a self) -> &'a Log {
        self
    }
}

/// What is logged at twemproxy's verbosity: 5, its default, is what changes.
pub fn filter(verbosity: u8) -> EnvFilter {
    EnvFilter::new(match verbosity {
        0..=3 => "error",
        4 => "warn",
        5..=6 => "info",
        7 => "debug",
        _ => "trace",
    })
}
