//! `cargo xtask picture`: a real run of keyfleet, drawn as a picture of a terminal for the README.
//!
//! The commands run on a pseudo-terminal (util-linux's `script`), as a user would see them; a small
//! terminal ([`terminal`]) makes the final screen of what they wrote, and [`svg`] draws it.

mod svg;
mod terminal;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};
use protocol::{ClusterNodes, key_slot, resp::encode_command};

use self::terminal::Terminal;
use crate::command::{self, output, run};

const FLEET: &str = "\
clusters:
  cache: {shards: 3, replicas: 1, memory: 256MiB}
";
const KEYS: u32 = 120_000;
const VALUE_BYTES: usize = 500;
const PROMPT: &str = "\x1b[32m$\x1b[0m \x1b[1m";
/// The row of the table that has the replica which is stopped for the picture.
const REPLICA_ROW: usize = 5;

/// Brings a fleet up in a directory of its own, fills it, and draws what the terminal showed.
pub fn draw() -> Result<()> {
    run(Command::new("cargo").args(["build", "--quiet", "--package", "keyfleet"]))?;
    let scene = Scene::new(command::target().join("debug/keyfleet"))?;
    let mut terminal = Terminal::default();
    scene.show(&mut terminal, "up --detach")?;
    scene.fill()?;
    let hung = scene.process(REPLICA_ROW)?;
    signal("-STOP", hung)?;
    terminal.write(&format!("{PROMPT}kill -STOP {hung}\x1b[0m\r\n\r\n"));
    let shown = scene.show(&mut terminal, "status");
    signal("-CONT", hung)?;
    shown?;
    let target = command::workspace().join("docs/status.svg");
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(&target, svg::draw(&terminal.lines(), "keyfleet"))?;
    println!("{}", target.display());
    Ok(())
}

/// A fleet in a directory of its own; both are gone with the value.
struct Scene {
    program: PathBuf,
    directory: PathBuf,
}

impl Scene {
    fn new(program: PathBuf) -> Result<Self> {
        let directory =
            std::env::temp_dir().join(format!("keyfleet-picture-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("fleet.yaml"), FLEET)?;
        Ok(Self { program, directory })
    }

    fn keyfleet(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.directory);
        command
    }

    /// A prompt, and the command's output as a terminal shows it.
    fn show(&self, terminal: &mut Terminal, words: &str) -> Result<()> {
        terminal.write(&format!("{PROMPT}keyfleet {words}\x1b[0m\r\n"));
        let whole = format!("{} {words}", self.program.display());
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--flush", "--command", &whole, "/dev/null"]);
        script.current_dir(&self.directory).env("TERM", "xterm-256color").env_remove("NO_COLOR");
        terminal.write(&output(script.stdin(Stdio::null()))?);
        terminal.write("\r\n");
        Ok(())
    }

    /// The port of the node in this row of the status's table.
    fn port(&self, row: usize) -> Result<String> {
        let status = output(self.keyfleet().args(["status", "--color", "never"]))?;
        let mut ports =
            status.split_whitespace().filter_map(|word| word.strip_prefix("127.0.0.1:"));
        Ok(ports.nth(row).context("status shows no address")?.to_owned())
    }

    fn process(&self, row: usize) -> Result<u32> {
        let info =
            output(Command::new("redis-cli").args(["-p", &self.port(row)?, "info", "server"]))?;
        let id = info.lines().find_map(|line| line.strip_prefix("process_id:"));
        Ok(id.context("INFO tells no process")?.trim().parse()?)
    }

    /// Writes keys to the primaries that own their slots.
    fn fill(&self) -> Result<()> {
        let seed = self.port(0)?;
        let nodes = output(Command::new("redis-cli").args(["-p", &seed, "cluster", "nodes"]))?;
        let nodes: ClusterNodes = nodes.parse()?;
        let mut commands: BTreeMap<u16, Vec<u8>> = BTreeMap::new();
        let value = "v".repeat(VALUE_BYTES);
        for number in 0..KEYS {
            let key = format!("user:{number}");
            let slot = key_slot(key.as_bytes());
            let owner = nodes.rows.iter().find(|row| row.slots.contains(slot));
            let port = owner.context("a slot without an owner")?.port;
            let parts = [b"SET".as_slice(), key.as_bytes(), value.as_bytes()];
            encode_command(parts, commands.entry(port).or_default());
        }
        for (port, bytes) in commands {
            pipe(port, &bytes)?;
        }
        Ok(())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let words = ["down", "--quiet", "--delete-data", "--yes-delete", "cache"];
        if let Err(error) = run(self.keyfleet().args(words)) {
            eprintln!("the fleet in {} may still run: {error}", self.directory.display());
            return;
        }
        // What is left is a few files in the directory for temporary ones.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn signal(signal: &str, process: u32) -> Result<()> {
    run(Command::new("kill").args([signal, &process.to_string()]))
}

fn pipe(port: u16, commands: &[u8]) -> Result<()> {
    let mut client = Command::new("redis-cli");
    client.args(["-p", &port.to_string(), "--pipe"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut client = client.spawn().context("redis-cli cannot be started")?;
    client.stdin.take().context("redis-cli takes no input")?.write_all(commands)?;
    client.wait()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture_of(text: &str) -> String {
        let mut terminal = Terminal::default();
        terminal.write(text);
        svg::draw(&terminal.lines(), "test")
    }

    #[test]
    fn text_is_escaped_and_coloured() {
        let drawn = picture_of("a<b> \x1b[1;31mred & bold\x1b[0m\r\n");
        assert!(drawn.contains("a&lt;b&gt;"), "{drawn}");
        assert!(drawn.contains("red &amp; bold"), "{drawn}");
        assert!(drawn.contains("class=\"red bold\""), "{drawn}");
    }
}
