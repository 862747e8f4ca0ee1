//! Serves a nutcracker.yml until somebody wants it to end: reloads it, answers at the stats port.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use fleet::spec::{SpecErrors, nutcracker};
use proxy::route::Address;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    signal::unix::{Signal, SignalKind, signal},
    task::{JoinHandle, block_in_place},
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Options, Reloaded, Service, ServiceError, stats};
use crate::proxy::{
    metrics,
    takeover::{self, Offered, Taken},
};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How long a reader of the stats may take.
const STATS: Duration = Duration::from_secs(5);

/// What to serve.
#[derive(Debug)]
pub struct Setup {
    /// nutcracker.yml.
    pub file: PathBuf,
    pub options: Options,
    /// Where twemproxy's figures are given away.
    pub stats: Option<Address>,
    /// Where figures for Prometheus are given away.
    pub metrics: Option<Address>,
    /// Where the proxy waits that this one takes the place of, and this one for the next.
    pub takeover: Option<PathBuf>,
}

/// Who ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// A proxy that took its place.
    HandedOver,
}

/// What signals want of the log, as twemproxy has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogWish {
    /// SIGHUP.
    Reopen,
    /// SIGTTIN.
    More,
    /// SIGTTOU.
    Less,
}

/// It can't be served, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{errors}")]
    Spec { text: String, errors: SpecErrors },
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("cannot give figures away on {address}")]
    Figures { address: Address, source: io::Error },
    #[error("cannot pass sockets on at {}", path.display())]
    Takeover { path: PathBuf, source: io::Error },
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    #[error("the proxy failed")]
    Failed(#[source] io::Error),
}

/// Reads a file of pools.
pub fn read(path: &Path) -> Result<(String, Vec<nutcracker::Pool>), ControlError> {
    let text = fs::read_to_string(path)
        .map_err(|source| ControlError::Read { path: path.to_owned(), source })?;
    match nutcracker::parse(&text, &path.display().to_string()) {
        Ok(pools) => Ok((text, pools)),
        Err(errors) => Err(ControlError::Spec { text, errors }),
    }
}

/// Serves until SIGINT or SIGTERM, or until another proxy takes over; what served has to be ended
/// yet. `started` is told what is served; `log` what signals want of the log. SIGHUP, and a change of
/// the file, have it read again: if it is wrong, that is logged and all stays as it is.
pub async fn run(
    mut setup: Setup,
    started: impl FnOnce(&Service),
    mut log: impl FnMut(LogWish),
) -> Result<(End, Service), ControlError> {
    let mut signals = Signals::new().map_err(ControlError::Signals)?;
    let (text, pools) = read(&setup.file)?;
    let takeover = setup.takeover.take();
    let passing = |source| {
        let path = takeover.clone().unwrap_or_default();
        ControlError::Takeover { path, source }
    };
    let mut taken = match &takeover {
        None => None,
        Some(path) => takeover::take(path).map_err(passing)?,
    };
    let stats = listen(setup.stats.as_ref(), taken.as_mut()).await?;
    let metrics = listen(setup.metrics.as_ref(), taken.as_mut()).await?;
    if let Some(taken) = &mut taken {
        setup.options.service.taken = taken.rest();
    }
    let mut service = Service::start(pools, setup.options)?;
    started(&service);
    let offered = Offered::default();
    let doors = [&stats, &metrics].into_iter().flatten();
    let doors = doors.map(|door| door.as_fd().try_clone_to_owned());
    let doors: Vec<OwnedFd> = doors.collect::<Result<_, _>>().map_err(passing)?;
    let offer = |service: &Service| -> io::Result<()> {
        let mut sockets = service.sockets()?;
        for door in &doors {
            sockets.push(door.try_clone()?);
        }
        *offered.lock().unwrap_or_else(PoisonError::into_inner) = sockets;
        Ok(())
    };
    let mut next = None;
    if let Some(path) = &takeover {
        offer(&service).map_err(passing)?;
        next = Some(takeover::offer(path, Arc::clone(&offered)).map_err(passing)?);
        taken.map_or(Ok(()), Taken::serves).map_err(passing)?;
    }
    let next = takeover::taken_over(next);
    tokio::pin!(next);
    let metrics = metrics.map(|door| tokio::spawn(metrics::serve(door, service.source())));
    let mut watched = Watched { served: text.clone(), seen: text };
    let (since, source) = (SystemTime::now(), host_name());
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = loop {
        let mut again = false;
        tokio::select! {
            _ = signals.interrupt.recv() => break End::Interrupt,
            _ = signals.terminate.recv() => break End::Terminate,
            () = &mut next => break End::HandedOver,
            _ = signals.hangup.recv() => {
                log(LogWish::Reopen);
                again = true;
            }
            _ = signals.more.recv() => log(LogWish::More),
            _ = signals.less.recv() => log(LogWish::Less),
            // These two do nothing; without a listener they would end the process.
            _ = signals.user_1.recv() => {}
            _ = signals.user_2.recv() => {}
            _ = looks.tick() => again = watched.has_changed(fs::read_to_string(&setup.file).ok()),
            stream = accept(stats.as_ref()) => {
                let figures = block_in_place(|| service.figures());
                tokio::spawn(give(stream, stats::line_now(&source, since, &figures)));
            }
        }
        if again {
            reload(&mut service, &setup.file, &mut watched);
            offer(&service).map_err(passing)?;
        }
    };
    match (end, &takeover) {
        (End::HandedOver, _) => {
            metrics.inspect(JoinHandle::abort);
        }
        (_, Some(path)) => drop(fs::remove_file(path)),
        (_, None) => {}
    }
    Ok((end, service))
}

fn reload(service: &mut Service, file: &Path, watched: &mut Watched) {
    let reloaded = read(file).and_then(|(text, pools)| {
        watched.served.clone_from(&text);
        watched.seen = text;
        Ok(service.reload(pools)?)
    });
    match reloaded {
        Ok(told) if told.is_empty() => {
            tracing::info!(file = %file.display(), "read again; nothing has changed");
        }
        Ok(Reloaded { added, changed, removed }) => {
            tracing::info!(?added, ?changed, ?removed, "reloaded {}", file.display());
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            tracing::error!("not reloaded: {error}{}", source.unwrap_or_default());
        }
    }
}

/// A file that is looked at now and then.
struct Watched {
    /// What was read from it last.
    served: String,
    /// What was seen last.
    seen: String,
}

impl Watched {
    /// Is there something new? Only when it was seen twice, so that a file is not read while it
    /// is being written; and only once, so that an error is not told again and again.
    fn has_changed(&mut self, now: Option<String>) -> bool {
        let Some(now) = now else { return false };
        let is_settled = now == self.seen;
        self.seen = now;
        let is_new = is_settled && self.seen != self.served;
        if is_new {
            self.served.clone_from(&self.seen);
        }
        is_new
    }
}

async fn listen(
    address: Option<&Address>,
    taken: Option<&mut Taken>,
) -> Result<Option<TcpListener>, ControlError> {
    let Some(address) = address else { return Ok(None) };
    let failed = |source| ControlError::Figures { address: address.clone(), source };
    Ok(Some(takeover::listener(address, taken).await.map_err(failed)?))
}

/// The next one who wants the figures; never without a listener.
async fn accept(stats: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = stats else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a reader of the stats");
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

async fn give(mut stream: TcpStream, line: String) {
    let writing = async {
        stream.write_all(line.as_bytes()).await?;
        stream.shutdown().await
    };
    // Who doesn't read it does without.
    let _ = timeout(STATS, writing).await;
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    more: Signal,
    less: Signal,
    user_1: Signal,
    user_2: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let raw = |signal: rustix::process::Signal| SignalKind::from_raw(signal.as_raw());
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            more: signal(raw(rustix::process::Signal::TTIN))?,
            less: signal(raw(rustix::process::Signal::TTOU))?,
            user_1: signal(SignalKind::user_defined1())?,
            user_2: signal(SignalKind::user_defined2())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_when_it_has_settled_and_once() {
        let mut watched = Watched { served: "a".into(), seen: "a".into() };
        let mut check = |now: Option<&str>, expected: bool| {
            assert_eq!(watched.has_changed(now.map(str::to_owned)), expected, "{now:?}");
        };
        check(Some("a"), false);
        check(Some("b"), false);
        check(None, false);
        check(Some("bb"), false);
        check(Some("bb"), true);
        check(Some("bb"), false);
        check(Some("a"), false);
        check(Some("a"), true);
    }
}
