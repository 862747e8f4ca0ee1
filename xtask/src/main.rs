//! What developers and the pipeline run: `cargo xtask test`, `bench`, `engines`, `directives`,
//! `commands`, `matrix`.

mod bench;
mod clients;
mod command;
mod commands;
mod differential;
mod directives;
mod dumps;
mod engines;
mod keydb;
mod matrix;
mod packages;
mod picture;
mod server;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Development tasks")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the tests need, then run all tests of the workspace.
    Test {
        /// Run only tests whose names contain one of these.
        filter: Vec<String>,
    },
    /// Measure keyfleet beside the engines' own tools; exit 1 where a goal isn't met.
    Bench {
        /// Put what it shows into docs/figures.md.
        #[arg(long, global = true)]
        record: bool,
        #[command(subcommand)]
        bench: bench::Bench,
    },
    /// Install the engines that the tests run against, and print where they are.
    Engines,
    /// Send random commands to twemproxy and to keyfleet in its place, over twin servers, and
    /// compare every answer and what the servers hold in the end.
    Differential {
        #[arg(long, default_value_t = 1_000_000)]
        commands: usize,
        /// Where chance begins; told when something differs.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Only write the page of what differs on purpose.
        #[arg(long)]
        page: bool,
    },
    /// Install the client libraries that the proxy is tested with.
    Clients,
    /// Let every engine save values of every type: the files that the tests of `protocol::rdb` read.
    Dumps,
    /// Load what every engine saved into every engine, and write the page of what gets where.
    Matrix,
    /// Run keyfleet and draw what the terminal shows into docs/status.svg.
    Picture,
    /// Ask every engine for its configuration directives and write the table that `protocol` has
    /// compiled in; then start every engine with a file that holds them all.
    Directives {
        /// Write nothing; fail where the table is not what the engines say.
        #[arg(long)]
        check: bool,
    },
    /// Ask every engine for its commands and write the table that `protocol` has compiled in, and
    /// the reference page of what the proxy does with each.
    Commands {
        /// Write nothing; fail where a file is not current.
        #[arg(long)]
        check: bool,
        /// Ask no engine: only the page.
        #[arg(long)]
        page: bool,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().task {
        Task::Bench { bench, record } => return bench::run(&bench, record),
        Task::Test { filter } => test::run_all(&filter)?,
        Task::Engines => {
            for engine in engines::install()? {
                println!("{} {}", engine.name, engine.server.display());
            }
        }
        Task::Differential { page: true, .. } => differential::write_page()?,
        Task::Differential { commands, seed, .. } => differential::run(commands, seed)?,
        Task::Clients => clients::install()?,
        Task::Dumps => dumps::run()?,
        Task::Matrix => matrix::run()?,
        Task::Picture => picture::draw()?,
        Task::Directives { check } => directives::run(check)?,
        Task::Commands { check, page: true } => commands::write_page(check)?,
        Task::Commands { check, page: false } => {
            // The page is of the compiled-in table: a new one shows after the next build.
            commands::run(check)?;
            commands::write_page(check)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
