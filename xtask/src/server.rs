//! A server process for a moment, and the few commands that tasks need from it.

use std::{
    fmt::Debug,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use protocol::{
    Value,
    resp::{Decoder, encode_command},
};

const START_DEADLINE: Duration = Duration::from_secs(20);
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(20);

/// A running server on loopback; ends with the value.
pub struct Server {
    process: Child,
    directory: PathBuf,
    connection: TcpStream,
    decoder: Decoder,
}

impl Server {
    /// Starts the program in an empty directory with this configuration file, and waits until it
    /// answers. The error holds the server's log.
    pub fn start(program: &Path, directory: &Path, configuration: &str) -> Result<Self> {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)?;
        let file = directory.join("node.conf");
        fs::write(&file, configuration)?;
        let port = free_port()?;
        let log = fs::File::create(directory.join("log"))?;
        let mut process = Command::new(program)
            .arg(&file)
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let give_up = Instant::now() + START_DEADLINE;
        loop {
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) {
                stream.set_read_timeout(Some(REPLY_DEADLINE))?;
                let directory = directory.to_owned();
                let decoder = Decoder::default();
                return Ok(Self { process, directory, connection: stream, decoder });
            }
            if process.try_wait()?.is_some() || Instant::now() > give_up {
                let _ = process.kill();
                let _ = process.wait();
                let log = fs::read_to_string(directory.join("log"))?;
                bail!("{} does not start:\n{log}", program.display());
            }
            thread::sleep(RETRY);
        }
    }

    /// Sends one command and returns the answer, errors too.
    pub fn call(&mut self, arguments: &[impl AsRef<[u8]> + Debug]) -> Result<Value> {
        let mut request = Vec::new();
        encode_command(arguments, &mut request);
        self.connection.write_all(&request)?;
        let mut piece = [0; 16_384];
        loop {
            if let Some(value) = self.decoder.next()? {
                return Ok(value);
            }
            let length = self.connection.read(&mut piece)?;
            if length == 0 {
                bail!("the server hung up on {arguments:?}");
            }
            self.decoder.feed(piece.get(..length).unwrap_or_default());
        }
    }

    /// CONFIG GET: names and values.
    pub fn configuration(&mut self, pattern: &str) -> Result<Vec<(String, String)>> {
        let reply = self.call(&["CONFIG", "GET", pattern])?;
        let pairs = reply.pairs().with_context(|| format!("CONFIG GET {pattern}: {reply:?}"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(pairs.into_iter().map(|(name, value)| (text(name), text(value))).collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
