//! A server process for a moment, and the few commands that tasks need from it.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

const START_DEADLINE: Duration = Duration::from_secs(20);
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(20);

/// A running server on loopback; ends with the value.
pub struct Server {
    process: Child,
    directory: PathBuf,
    connection: BufReader<TcpStream>,
}

/// What a server says to a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    Text(String),
    Error(String),
    Array(Vec<Reply>),
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
                let connection = BufReader::new(stream);
                return Ok(Self { process, directory: directory.to_owned(), connection });
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

    pub fn call(&mut self, arguments: &[&str]) -> Result<Reply> {
        let mut request = format!("*{}\r\n", arguments.len());
        for argument in arguments {
            let _ = write!(request, "${}\r\n{argument}\r\n", argument.len());
        }
        self.connection.get_mut().write_all(request.as_bytes())?;
        self.reply()
    }

    /// CONFIG GET: names and values.
    pub fn configuration(&mut self, pattern: &str) -> Result<Vec<(String, String)>> {
        let Reply::Array(items) = self.call(&["CONFIG", "GET", pattern])? else {
            bail!("CONFIG GET {pattern} gives no array");
        };
        let mut pairs = Vec::new();
        for pair in items.chunks(2) {
            if let [Reply::Text(name), Reply::Text(value)] = pair {
                pairs.push((name.clone(), value.clone()));
            }
        }
        Ok(pairs)
    }

    fn reply(&mut self) -> Result<Reply> {
        let mut line = String::new();
        self.connection.read_line(&mut line)?;
        let (kind, rest) = line.trim_end().split_at_checked(1).context("the server hung up")?;
        Ok(match kind {
            "+" | ":" => Reply::Text(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            "$" => {
                let mut text = vec![0; rest.parse::<usize>()? + 2];
                self.connection.read_exact(&mut text)?;
                text.truncate(text.len() - 2);
                Reply::Text(String::from_utf8_lossy(&text).into_owned())
            }
            "*" => {
                let count = rest.parse::<usize>()?;
                Reply::Array((0..count).map(|_| self.reply()).collect::<Result<_>>()?)
            }
            _ => bail!("not a reply: {line:?}"),
        })
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
