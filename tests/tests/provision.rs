//! An engine out of the distribution's packages, with nothing installed. Needs a machine with apt
//! and its package sources.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process,
};

use fleet::model::EngineWant;
use keyfleet::engines::find_on;
use protocol::EngineKind;

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A PATH that has what unpacking needs, and no engine.
fn tools(directory: &Path) -> OsString {
    fs::create_dir_all(directory).unwrap();
    for name in ["apt-get", "apt-cache", "dpkg"] {
        let path = env::var_os("PATH").unwrap();
        let tool = env::split_paths(&path).map(|entry| entry.join(name)).find(|p| p.is_file());
        let tool = tool.unwrap_or_else(|| panic!("this test needs {name}: run it on Debian"));
        symlink(tool, directory.join(name)).unwrap();
    }
    directory.into()
}

#[tokio::test]
async fn unpacks_packages_once_for_all() {
    let name = format!("keyfleet-provision-{}", process::id());
    let scratch = Scratch(env::temp_dir().join(name));
    let (path, cache) = (tools(&scratch.0.join("tools")), scratch.0.join("cache"));
    let mut want = EngineWant { kind: Some(EngineKind::Redis), ..EngineWant::default() };

    // Both at once, as two commands of one user may.
    let (one, two) = tokio::join!(find_on(&want, &cache, &path), find_on(&want, &cache, &path));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one, two);
    assert!(one.server.starts_with(&cache), "{one:?}");
    let client = one.cli_command().unwrap().arg("--version").output().await.unwrap();
    assert!(String::from_utf8(client.stdout).unwrap().starts_with("redis-cli"), "{one:?}");
    assert!(!cache.join(".scratch").exists());

    // A damaged one is replaced.
    fs::remove_file(&one.server).unwrap();
    assert_eq!(find_on(&want, &cache, &path).await.unwrap(), one);

    // Not in the machine's lists; so fresh ones are fetched, and do not have it either.
    want.version = Some("1.0".parse().unwrap());
    let none = find_on(&want, &cache, &path).await.unwrap_err();
    assert!(none.hint().starts_with("ask for what this distribution has (redis "), "{none:?}");
    assert!(none.to_string().starts_with("no redis 1.0 on this machine, only redis"), "{none}");
}
