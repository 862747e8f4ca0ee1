//! Server programs that are here already.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet::model::EngineWant;
use protocol::{Engine, EngineKind};

use super::{
    EngineBinary, EngineError,
    command::{self, CommandError},
};

/// In the order of preference.
pub const KINDS: [EngineKind; 3] = [EngineKind::Redis, EngineKind::Valkey, EngineKind::KeyDb];

const VERSION_DEADLINE: Duration = Duration::from_secs(10);

/// The program that the spec names: a path, or a bare name to be found on PATH.
pub async fn given(
    want: &EngineWant,
    given: &str,
    path: &OsStr,
) -> Result<EngineBinary, EngineError> {
    let bad = |reason: String| EngineError::Path { path: given.to_owned(), reason };
    let server = if given.contains('/') {
        std::path::absolute(given).map_err(|error| bad(error.to_string()))?
    } else {
        on_path_named(given, path).ok_or_else(|| bad("is not on PATH".to_owned()))?
    };
    let mut directories = Vec::from_iter(server.parent().map(Path::to_owned));
    directories.extend(std::env::split_paths(path));
    match probe(&server, &directories, None).await {
        Ok(found) if want.matches(&found.engine) => Ok(found),
        Ok(found) => Err(bad(format!("is {}, the spec asks for {want}", found.engine))),
        Err(error) => Err(bad(error)),
    }
}

/// Every server on PATH, in its order. A program that does not answer is left out, with a
/// warning.
pub async fn on_path(path: &OsStr) -> Vec<EngineBinary> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for directory in std::env::split_paths(path).filter(|directory| directory.is_absolute()) {
        for server in servers_in(&directory) {
            let real = server.canonicalize().unwrap_or_else(|_| server.clone());
            if !seen.insert((real, server.file_name().map(OsStr::to_owned))) {
                continue;
            }
            match probe(&server, std::slice::from_ref(&directory), None).await {
                Ok(binary) => found.push(binary),
                Err(reason) => tracing::warn!(server = %server.display(), reason, "not usable"),
            }
        }
    }
    found
}

/// The preferred one of those that match.
pub fn best(want: &EngineWant, found: &[EngineBinary]) -> Option<EngineBinary> {
    let rank = |kind| KINDS.iter().position(|known| *known == kind);
    found
        .iter()
        .filter(|binary| want.matches(&binary.engine))
        .min_by_key(|binary| (rank(binary.engine.kind), std::cmp::Reverse(binary.engine.version)))
        .cloned()
}

/// The programs in this directory that are called like servers.
pub fn servers_in(directory: &Path) -> impl Iterator<Item = PathBuf> {
    KINDS
        .map(|kind| directory.join(format!("{kind}-server")))
        .into_iter()
        .filter(|program| is_executable(program))
}

/// Asks the program what it is. The client is looked for in the directories, under the
/// server's name and its product's. The error says in words why it is not a server.
pub async fn probe(
    server: &Path,
    client_directories: &[PathBuf],
    library_path: Option<&Path>,
) -> Result<EngineBinary, String> {
    let mut ask = command::program(server, library_path);
    let text =
        command::output(ask.arg("--version"), VERSION_DEADLINE).await.map_err(
            |error| match &error {
                CommandError::Start { source, .. } => format!("cannot be started: {source}"),
                CommandError::Late { .. } => error.to_string(),
                CommandError::Failed { message, .. } => format!("does not run: {message}"),
            },
        )?;
    let engine = Engine::from_version_line(&text).map_err(|error| error.to_string())?;
    let name = server.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let sibling = name.strip_suffix("-server").map(|prefix| format!("{prefix}-cli"));
    let names = [sibling, Some(format!("{}-cli", engine.kind))];
    let cli = names.iter().flatten().find_map(|name| {
        client_directories
            .iter()
            .map(|directory| directory.join(name))
            .find(|program| is_executable(program))
    });
    Ok(EngineBinary {
        engine,
        server: server.to_owned(),
        cli,
        library_path: library_path.map(Path::to_owned),
    })
}

fn on_path_named(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|program| is_executable(program))
}

fn is_executable(program: &Path) -> bool {
    program
        .metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
