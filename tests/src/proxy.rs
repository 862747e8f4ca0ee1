//! `keyfleet proxy` in this process, in front of servers.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail};
use keyfleet::proxy::{Proxy, Service, Setup};
use proxy::{
    engine::{Profile, Users},
    route::Address,
};

/// A running proxy; dropping it ends it.
pub struct Front {
    pub address: SocketAddr,
    proxy: Option<Proxy>,
}

impl Front {
    /// In front of the cluster that these nodes belong to.
    pub fn start(nodes: &[SocketAddr], threads: usize) -> Result<Self> {
        Self::serve(Self::setup(nodes, threads), Service::default())
    }

    /// What [`Front::start`] starts.
    pub fn setup(nodes: &[SocketAddr], threads: usize) -> Setup {
        Setup {
            listen: Address::Tcp((Ipv4Addr::LOCALHOST, 0).into()),
            threads,
            seeds: nodes.iter().map(|node| Address::Tcp(*node)).collect(),
            profile: Profile::default(),
            client_password: None,
            users: Users::of_the_servers(),
        }
    }

    /// Something else.
    pub fn serve(setup: Setup, service: Service) -> Result<Self> {
        let proxy = Proxy::start_with(setup, service, true).context("the proxy")?;
        let Address::Tcp(address) = *proxy.listen() else { bail!("it listens elsewhere") };
        Ok(Self { address, proxy: Some(proxy) })
    }

    /// Its figures as Prometheus reads them.
    pub fn figures(&self) -> String {
        self.proxy.as_ref().map(|proxy| proxy.figures().text()).unwrap_or_default()
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Some(proxy) = self.proxy.take() {
            let _ = proxy.stop();
        }
    }
}
