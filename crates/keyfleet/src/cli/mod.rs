//! The command line: one file a subcommand, [`printer`] the only place that prints.

pub mod printer;
pub mod text;

mod analyze;
mod backup;
mod boot;
mod connect;
mod context;
mod doctor;
mod down;
mod freeze;
mod guard;
mod handover;
mod import;
mod init;
mod lease;
mod logs;
mod nutcracker;
mod plan;
mod pools;
mod progress;
mod proxy;
mod restore;
mod schema;
mod signals;
mod status;
mod steps;
mod up;

use std::{path::PathBuf, process::ExitCode};

use clap::{ArgAction, Parser, Subcommand};

use self::{
    context::Context,
    printer::{ColorChoice, Printer},
};
use crate::errors::{Exit, Failure};

/// Runs Redis, Valkey and KeyDB clusters from one file, and keeps them so.
#[derive(Debug, Parser)]
#[command(name = "keyfleet", version, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Of every command")]
struct Global {
    /// The fleet's file [default: fleet.yaml, or 3 shards × 1 replica where there is none]
    #[arg(long, global = true, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Say only what must be said
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Say more (-vv: everything)
    #[arg(long, short, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// When to colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: ColorChoice,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write a starter fleet.yaml
    Init(init::Args),
    /// Make the world match fleet.yaml, then guard it
    Up(up::Args),
    /// Show what `up` would do, step by step, and what is blocked and why
    Plan(plan::Args),
    /// Show what exists, who is primary and what is at risk
    Status(status::Args),
    /// Keep watch: heal, keep primaries spread, never make things worse
    Guard(guard::Args),
    /// Stop servers; data stays
    Down(down::Args),
    /// Show what servers log
    Logs(logs::Args),
    /// Move the primary's role to a replica, losing nothing
    Handover(handover::Args),
    /// Let nothing be changed for a while; what dies is healed
    Freeze(freeze::Args),
    /// Let plain clients use a cluster, or a ring of servers: serve them at one address
    Proxy(Box<proxy::Args>),
    /// Load RDB and append-only files into a running cluster or server
    Import(Box<import::Args>),
    /// Put every key of a cluster or server into a directory or a bucket
    Backup(Box<backup::Args>),
    /// List backups
    Backups(backup::ListArgs),
    /// Load a backup into a running cluster or server, of whatever shape
    Restore(Box<restore::Args>),
    /// Show what an RDB file holds: memory by prefix, type and time left, and the biggest keys
    Analyze(analyze::Args),
    /// Find what on this machine will hurt, with the command that mends it
    Doctor(doctor::Args),
    /// Print the JSON Schema of fleet.yaml
    Schema,
}

/// Parses the arguments, runs the command, shows what went wrong. Under the name `nutcracker` it is
/// twemproxy.
pub fn main() -> ExitCode {
    if nutcracker::is_called() {
        return nutcracker::main();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; a broken pipe while showing them is none either.
            let _ = error.print();
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let printer = Printer::new(cli.global.color, cli.global.quiet);
    let exit = match run(cli, printer) {
        Ok(exit) => exit,
        Err(failure) => {
            printer.failure(&failure);
            failure.exit
        }
    };
    ExitCode::from(exit as u8)
}

fn run(cli: Cli, printer: Printer) -> Result<Exit, Failure> {
    let Global { file, verbose, quiet, .. } = cli.global;
    // Who keeps watch tells what it does.
    let watches = matches!(cli.command, Command::Up(_) | Command::Guard(_));
    start_tracing(verbose.max(u8::from(watches)), quiet, printer);
    let context = Context { printer, file };
    match cli.command {
        Command::Init(args) => init::run(&context, &args),
        Command::Schema => schema::run(&context),
        Command::Doctor(args) => block_on(doctor::run(&context, args)),
        Command::Up(args) => block_on(up::run(&context, args)),
        Command::Plan(args) => block_on(plan::run(&context, args)),
        Command::Status(args) => block_on(status::run(&context, args)),
        Command::Guard(args) => block_on(guard::run(&context, args)),
        Command::Down(args) => block_on(down::run(&context, args)),
        Command::Logs(args) => block_on(logs::run(&context, args)),
        Command::Handover(args) => block_on(handover::run(&context, args)),
        Command::Proxy(args) => block_on(proxy::run(&context, *args)),
        Command::Analyze(args) => block_on(analyze::run(&context, args)),
        Command::Import(args) => block_on(import::run(&context, *args)),
        Command::Backup(args) => block_on(backup::run(&context, *args)),
        Command::Backups(args) => block_on(backup::list(&context, args)),
        Command::Restore(args) => block_on(restore::run(&context, *args)),
        Command::Freeze(args) => freeze::run(&context, &args),
    }
}

fn block_on(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::environment("cannot start threads").because(&error))?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}

/// The log on stderr: warnings, with `-v` what changes, with `-vv` everything. KEYFLEET_LOG
/// overrides it with a filter of its own.
fn start_tracing(verbose: u8, quiet: bool, printer: Printer) {
    use tracing_subscriber::{EnvFilter, fmt};
    let level = match (quiet, verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let filter = EnvFilter::try_from_env("KEYFLEET_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let subscriber = fmt::Subscriber::builder()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(printer.error_style.color)
        .with_target(false)
        .finish();
    // It is set once a process; a second time would be a test's.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
