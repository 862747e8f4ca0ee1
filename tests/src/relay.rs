//! A relay before a server, to be held up or cut as a network is.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

/// Passes bytes on, both ways. Dropping it ends its connections.
#[derive(Debug)]
pub struct Relay {
    /// Where to connect to.
    pub address: SocketAddr,
    state: watch::Sender<State>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Nothing gets through, and nobody is told.
    held: bool,
    /// How often connections were cut.
    cuts: usize,
}

impl Relay {
    /// A relay to this address, on a free port of loopback.
    pub async fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (state, seen) = watch::channel(State::default());
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, to, seen.clone()));
            }
        });
        Ok(Self { address, state, task })
    }

    /// From now on nothing gets through.
    pub fn hold(&self) {
        self.state.send_modify(|state| state.held = true);
    }

    /// Everything gets through again, what was held first.
    pub fn release(&self) {
        self.state.send_modify(|state| state.held = false);
    }

    /// Breaks all connections; new ones can be made.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(client: TcpStream, to: SocketAddr, mut state: watch::Receiver<State>) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    let cuts = state.borrow().cuts;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let requests = pass(from_client, to_server, state.clone());
    let replies = pass(from_server, to_client, state.clone());
    tokio::select! {
        () = requests => {}
        () = replies => {}
        _ = state.wait_for(|state| state.cuts != cuts) => {}
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if state.wait_for(|state| !state.held).await.is_err()
            || to.write_all(&buffer[..count]).await.is_err()
        {
            return;
        }
    }
}
