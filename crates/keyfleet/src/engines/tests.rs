//! The whole search, with programs that only know their version.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use super::*;

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("keyfleet-engines-{}-{number}", process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A program that answers as the server does; the path is relative.
    fn program(&self, path: &str, banner: &str) -> PathBuf {
        self.script(path, &format!("#!/bin/sh\necho '{banner}'\n"))
    }

    fn script(&self, path: &str, text: &str) -> PathBuf {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Written by a child, so that no other thread's fork holds it open for writing when it
        // is executed ("text file busy").
        let write = "printf %s \"$1\" > \"$2\"";
        let status =
            process::Command::new("sh").args(["-c", write, "sh", text]).arg(&path).status();
        assert!(status.unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn want(kind: &str, version: &str) -> EngineWant {
    EngineWant {
        kind: search::KINDS.into_iter().find(|known| known.name() == kind),
        version: (!version.is_empty()).then(|| version.parse().unwrap()),
        path: None,
    }
}

fn path_of(directories: &[&Path]) -> std::ffi::OsString {
    env::join_paths(directories).unwrap()
}

#[tokio::test]
async fn prefers_by_kind_then_version() {
    let scratch = Scratch::new();
    let program = |path: &str, banner: &str| scratch.program(path, banner);
    program("a/redis-server", "Redis server v=6.2.5 sha=0:0 malloc=libc bits=64 build=1");
    program("a/keydb-server", "KeyDB server v=6.3.4 sha=7e7e5e57:0 malloc=jemalloc-5.2.1 bits=64");
    program("b/redis-server", "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0");
    program("b/valkey-server", "Valkey server v=9.1.2 sha=00000000:0 malloc=jemalloc-5.3.1");
    program("cache/valkey-8.1.1-3/bin/valkey-server", "Valkey server v=8.1.1 sha=00000000:0");
    program("cache/.scratch/bin/valkey-server", "Valkey server v=8.2.0 sha=00000000:0");
    let (a, b, cache) = (scratch.0.join("a"), scratch.0.join("b"), scratch.0.join("cache"));
    let path = path_of(&[&a, &b]);
    let check = async |kind: &str, version: &str, expected: &str| {
        let found = find_on(&want(kind, version), &cache, &path).await;
        let found = found.map(|binary| binary.engine.to_string());
        assert_eq!(found.ok().as_deref(), (!expected.is_empty()).then_some(expected));
    };
    check("", "", "redis 7.0.15").await;
    check("redis", "", "redis 7.0.15").await;
    check("", "6", "redis 6.2.5").await;
    check("", "6.3", "keydb 6.3.4").await;
    check("valkey", "", "valkey 9.1.2").await;
    check("valkey", "8.1", "valkey 8.1.1").await;
    check("keydb", "6.3.4", "keydb 6.3.4").await;
    check("valkey", "8.2", "").await;
}

#[tokio::test]
async fn finds_the_client_beside_the_server() {
    let scratch = Scratch::new();
    // As Fedora does it: Valkey under both names.
    scratch.program("bin/redis-server", "Valkey server v=8.1.1 sha=00000000:0");
    let cli = scratch.program("bin/valkey-cli", "valkey-cli 8.1.1");
    let path = path_of(&[&scratch.0.join("bin")]);
    let found = find_on(&want("valkey", ""), &scratch.0.join("cache"), &path).await.unwrap();
    assert_eq!(found.server, scratch.0.join("bin/redis-server"));
    assert_eq!(found.cli, Some(cli));
    assert_eq!(found.library_path, None);
}

#[tokio::test]
async fn a_given_path_is_taken_or_refused() {
    let scratch = Scratch::new();
    let good = scratch.program("good/redis-server", "Redis server v=7.0.15 sha=00000000:0");
    scratch.program("good/my-server", "Valkey server v=9.1.2 sha=00000000:0");
    let broken = scratch.script("broken", "#!/bin/sh\necho 'no such library' >&2\nexit 127\n");
    let other = scratch.program("other", "hello");
    let path = path_of(&[&scratch.0.join("good")]);
    let check = async |given: &str, version: &str, expected: &str| {
        let want = EngineWant { path: Some(given.to_owned()), ..want("", version) };
        let answer = match find_on(&want, &scratch.0.join("cache"), &path).await {
            Ok(found) => found.engine.to_string(),
            Err(error) => error.to_string(),
        };
        assert!(answer.ends_with(expected), "{given}: {answer}, not {expected}");
    };
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    check(&text(&good), "", "redis 7.0.15").await;
    check(&text(&good), "7.2", "is redis 7.0.15, the spec asks for version 7.2").await;
    check("my-server", "", "valkey 9.1.2").await;
    check("your-server", "", "your-server is not on PATH").await;
    check(&text(&broken), "", "does not run: no such library").await;
    check(&text(&other), "", "not a version line of an engine: \"hello\\n\"").await;
    check("/no/such/server", "", "No such file or directory (os error 2)").await;
}

#[tokio::test]
async fn says_what_is_here_and_what_to_do() {
    let scratch = Scratch::new();
    scratch.program("bin/redis-server", "Redis server v=7.0.15 sha=00000000:0");
    let path = path_of(&[&scratch.0.join("bin")]);
    let error = find_on(&want("keydb", ""), &scratch.0.join("cache"), &path).await.unwrap_err();
    assert_eq!(error.to_string(), "no keydb on this machine, only redis 7.0.15");
    assert_eq!(error.hint(), "install keydb-server, or set engine.path to the program");
}
