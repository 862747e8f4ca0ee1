//! The program as a user meets it, without servers: what it says to wrong input, what it promises in
//! its help, and the codes it exits with.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

/// A directory to run in, gone with the value.
struct Directory(PathBuf);

impl Directory {
    fn new(fleet: Option<&str>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("keyfleet-cli-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        if let Some(text) = fleet {
            fs::write(path.join("fleet.yaml"), text).unwrap();
        }
        Self(path)
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keyfleet"));
        command.args(words.split_whitespace()).current_dir(&self.0).stdin(Stdio::null());
        command.env_remove("KEYFLEET_LOG");
        command
    }

    /// What it prints, the exit code last.
    fn run(&self, words: &str) -> String {
        let output = self.command(words).output().unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        format!("{out}{err}exit {}\n", output.status.code().unwrap())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const FLEET: &str = "clusters:\n  cache: {shards: 3, replicas: 1}\n";

#[test]
fn help() {
    let directory = Directory::new(None);
    insta::assert_snapshot!("help", directory.run("--help"));
    for command in ["up", "plan", "status", "down", "guard", "logs", "handover", "freeze", "doctor"]
    {
        insta::assert_snapshot!(format!("help_{command}"), directory.run(&format!("{command} -h")));
    }
}

#[test]
fn wrong_input_is_met_kindly() {
    let none = Directory::new(None);
    let bad = Directory::new(Some("clusters:\n  cache:\n    shard: 3\n    replicas: many\n"));
    let good = Directory::new(Some(FLEET));
    insta::assert_snapshot!("missing_file", none.run("--file other.yaml plan"));
    insta::assert_snapshot!("bad_file", bad.run("plan"));
    insta::assert_snapshot!("existing_file", good.run("init"));
    insta::assert_snapshot!("unknown_cluster", good.run("up cahce"));
    insta::assert_snapshot!("unknown_node", good.run("logs cache-1"));
    insta::assert_snapshot!("no_address", good.run("status --connect 127.0.0.1:x"));
    insta::assert_snapshot!("nobody_confirms", good.run("down --delete-data"));
    insta::assert_snapshot!("unknown_command", good.run("stauts"));
}

#[test]
fn exit_codes_and_json() {
    let good = Directory::new(Some(FLEET));
    let code = |words: &str| good.command(words).output().unwrap().status.code();
    assert_eq!(code("plan"), Some(0));
    assert_eq!(code("plan --exit-code"), Some(3));
    assert_eq!(code("--file nothing.yaml plan"), Some(1));
    for words in ["plan --output json", "status --output json", "schema"] {
        let output = good.command(words).output().unwrap();
        let parsed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(parsed.is_object(), "{words}");
        assert!(output.stderr.is_empty(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn looking_makes_nothing() {
    let good = Directory::new(Some(FLEET));
    for words in ["plan", "status", "doctor", "schema"] {
        good.run(words);
    }
    let names: Vec<_> =
        fs::read_dir(&good.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["fleet.yaml"]);
}

#[test]
fn the_starter_is_sound() {
    let directory = Directory::new(None);
    assert!(directory.run("init").ends_with("exit 0\n"));
    let plan = directory.run("plan");
    assert!(plan.ends_with("exit 0\n") && plan.contains("create 6 nodes"), "{plan}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let good = Directory::new(Some(FLEET));
    let mut child =
        good.command("schema").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}
