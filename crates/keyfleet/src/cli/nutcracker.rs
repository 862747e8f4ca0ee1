//! This program under the name `nutcracker`: twemproxy's command line, log, signals and exit codes.
//!
//! What differs: SIGTERM, which kills twemproxy, ends this with exit code 0. SIGHUP has the
//! configuration file read again, besides opening the log file anew. `-i` and `-m` are checked and
//! have no effect: figures are always current, and buffers are not cut into chunks.

mod log;
mod options;

use std::{
    env,
    ffi::OsString,
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use ::proxy::route::{Address, EjectionMode};
use fleet::model::ProxyStart;
use tracing_subscriber::{layer::SubscriberExt as _, reload};

use self::{
    log::{Log, filter},
    options::{Options, Wanted},
};
use super::{
    printer::{ColorChoice, Printer, WIDTH_MAX},
    text::Style,
};
use crate::{
    errors::Failure,
    proxy::{Service, SlowLogSetup},
    twemproxy::{self, ControlError, End, LogWish, Setup, stats},
};

/// The name under which this program is twemproxy.
const NAME: &str = "nutcracker";
/// Set for the process that runs on as a daemon.
const DAEMON: &str = "KEYFLEET_NUTCRACKER_DAEMON";
/// Where twemproxy's packages have its file, and where its own build looks.
const FILES: [&str; 2] = ["/etc/nutcracker/nutcracker.yml", "conf/nutcracker.yml"];

/// Was this program called by that name?
pub fn is_called() -> bool {
    let name = env::args_os().next().map(PathBuf::from);
    name.as_deref().and_then(Path::file_name).is_some_and(|name| name == NAME)
}

/// Does what twemproxy would do with the same arguments.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let words = arguments.iter().map(|word| word.to_string_lossy().into_owned());
    let options = match options::parse(words) {
        Ok(options) => options,
        Err(error) => {
            say(&format!("{NAME}: {error}\n{}", options::USAGE));
            return ExitCode::FAILURE;
        }
    };
    let version = format!("This is nutcracker-{}", stats::VERSION);
    let replaced = format!("keyfleet {} in its place\n", env!("CARGO_PKG_VERSION"));
    match options.wanted {
        Wanted::Help => say(&format!("{version}\n{replaced}\n{}", options::USAGE)),
        Wanted::Version => say(&format!("{version}\n{replaced}")),
        Wanted::Description => say(&format!("{version}\n{replaced}\n{}", description())),
        Wanted::Test => return test(&file(&options)),
        Wanted::Run => return start(&options, &arguments),
    }
    ExitCode::SUCCESS
}

fn say(text: &str) {
    Printer::new(ColorChoice::Never, false).urgent(text);
}

fn file(options: &Options) -> PathBuf {
    let there = || FILES.iter().find(|file| Path::new(file).exists()).or(FILES.last());
    options.file.clone().or_else(|| there().map(PathBuf::from)).unwrap_or_default()
}

/// Every field of the stats with what it means.
fn description() -> String {
    let row = |(name, meaning): (&str, &str)| format!("  {name:<20}\"{meaning}\"\n");
    let pool: String = stats::POOL_FIELDS.iter().map(|(name, text, _)| row((name, text))).collect();
    let server: String =
        stats::SERVER_FIELDS.iter().map(|(name, text, _)| row((name, text))).collect();
    format!("pool stats:\n{pool}\nserver stats:\n{server}")
}

fn test(file: &Path) -> ExitCode {
    let (verdict, code) = match twemproxy::read(file) {
        Ok(_) => ("ok", ExitCode::SUCCESS),
        Err(error) => {
            say(&explain(error));
            ("invalid", ExitCode::FAILURE)
        }
    };
    say(&format!("{NAME}: configuration file '{}' syntax is {verdict}", file.display()));
    code
}

/// The error with what led to it; errors of the file with their lines.
fn explain(error: ControlError) -> String {
    Failure::from(error).render(Style { color: false }, WIDTH_MAX).trim_end().to_owned()
}

fn start(options: &Options, arguments: &[OsString]) -> ExitCode {
    let log = match Log::open(options.log.clone()) {
        Ok(log) => log,
        Err(error) => {
            let shown = options.log.as_deref().unwrap_or(Path::new("stderr")).display();
            say(&format!("{NAME}: opening log file '{shown}' failed: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let is_daemon = env::var_os(DAEMON).is_some();
    if options.daemonize && !is_daemon {
        return match run_on(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(&format!("{NAME}: cannot run on as a daemon: {error}"));
                ExitCode::FAILURE
            }
        };
    }
    if is_daemon {
        // It leads no group of its own yet, so this can't fail.
        let _ = rustix::process::setsid();
        rustix::process::umask(rustix::fs::Mode::empty());
    }
    if let Some(path) = &options.pid_file
        && let Err(error) = fs::write(path, std::process::id().to_string())
    {
        say(&format!("{NAME}: writing pid file '{}' failed: {error}", path.display()));
        return ExitCode::FAILURE;
    }
    let code = serve(options, &log);
    if let Some(path) = &options.pid_file {
        let _ = fs::remove_file(path);
    }
    code
}

/// Starts this program again, without a terminal.
fn run_on(arguments: &[OsString]) -> io::Result<()> {
    Command::new(env::current_exe()?)
        .arg0(NAME)
        .args(arguments)
        .env(DAEMON, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
}

fn serve(options: &Options, log: &Log) -> ExitCode {
    let mut level = options.verbosity;
    let (layer, handle) = reload::Layer::new(filter(level));
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(log.clone());
    let subscriber = tracing_subscriber::registry().with(layer).with(lines);
    let _ = tracing::subscriber::set_global_default(subscriber);
    let setup = Setup {
        file: file(options),
        options: twemproxy::Options {
            threads: 1,
            ejected: EjectionMode::Rering,
            tls: None,
            tls_listen: None,
            service: Service {
                memory_max: Some(ProxyStart::PLAIN.memory_max_bytes as usize),
                slow_log: SlowLogSetup { slower_than: None, ..SlowLogSetup::default() },
                ..Service::default()
            },
        },
        stats: Some(Address::new(&options.stats_host, options.stats_port)),
        metrics: None,
        takeover: None,
    };
    let started = |service: &twemproxy::Service| {
        for (name, address, _) in service.listens() {
            tracing::info!("serving {name} at {address}");
        }
    };
    let wish = |wish| match wish {
        LogWish::Reopen => log.reopen(),
        LogWish::More | LogWish::Less => {
            level = match wish {
                LogWish::More => (level + 1).min(options::VERBOSITY_MAX),
                _ => level.saturating_sub(1),
            };
            let _ = handle.reload(filter(level));
            tracing::error!("the log's level is {level} now");
        }
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let ended = match runtime {
        Ok(runtime) => runtime.block_on(async {
            let (end, service) = twemproxy::run(setup, started, wish).await?;
            service.stop().map_err(ControlError::Failed)?;
            Ok(end)
        }),
        Err(error) => Err(ControlError::Failed(error)),
    };
    match ended {
        Ok(End::Terminate | End::HandedOver) => ExitCode::SUCCESS,
        Ok(End::Interrupt) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{}", explain(error));
            ExitCode::FAILURE
        }
    }
}
