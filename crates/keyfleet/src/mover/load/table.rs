//! Which lane a slot's commands go to.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering},
    },
};

use protocol::{ClusterNodes, Slot, cluster_text::NodesError, slots::SLOT_COUNT};
use tokio::{runtime::Handle, sync::mpsc};

use super::{LoadError, Shared, Target, lane, lane::Batch, locked};
use crate::{
    admin_client::{ClientError, Login},
    mover::connect,
};

/// Batches that wait for their turn on one lane.
const QUEUE: usize = 4;

const NO_LANE: u16 = u16::MAX;

/// The owners of the slots, as far as they were heard of.
#[derive(Debug)]
pub(super) struct Table {
    target: Target,
    login: Option<Login>,
    /// For each slot its lane.
    owners: Vec<AtomicU16>,
    lanes: Mutex<Vec<Lane>>,
}

#[derive(Debug)]
struct Lane {
    address: SocketAddr,
    /// Once something was sent on it.
    sender: Option<mpsc::Sender<Batch>>,
}

impl Table {
    pub async fn open(target: Target, login: Option<Login>) -> Result<Self, LoadError> {
        let owners = (0..SLOT_COUNT).map(|_| AtomicU16::new(NO_LANE)).collect();
        let table = Self { target, login, owners, lanes: Mutex::default() };
        table.refresh().await?;
        Ok(table)
    }

    /// Asks for the owners anew; the first node that answers is believed.
    pub async fn refresh(&self) -> Result<(), LoadError> {
        let seeds = match &self.target {
            Target::Server(address) => {
                let lane = self.lane_at(*address);
                for owner in &self.owners {
                    owner.store(lane, Ordering::Relaxed);
                }
                return Ok(());
            }
            Target::Cluster(seeds) => seeds,
        };
        let known = locked(&self.lanes).iter().map(|lane| lane.address).collect::<Vec<_>>();
        let mut last = None;
        for seed in known.iter().chain(seeds) {
            match self.ask(*seed).await {
                Ok(view) => {
                    self.learn(&view, seed.ip());
                    return Ok(());
                }
                Err(error) => last = Some(error),
            }
        }
        let source =
            last.unwrap_or(ClientError::Refused { address: SocketAddr::from(([0, 0, 0, 0], 0)) });
        Err(LoadError::Owners(Arc::new(source)))
    }

    async fn ask(&self, address: SocketAddr) -> Result<ClusterNodes, ClientError> {
        let mut link = connect(address, self.login.as_ref()).await?;
        let reply = link.call(["CLUSTER", "NODES"]).await?;
        let shape =
            |problem: String| ClientError::Shape { address, command: "CLUSTER NODES", problem };
        let text = reply.as_str().ok_or_else(|| shape("not text".to_owned()))?;
        text.parse().map_err(|error: NodesError| shape(error.to_string()))
    }

    fn learn(&self, view: &ClusterNodes, asked: IpAddr) {
        for row in view.rows.iter().filter(|row| row.flags.primary && !row.slots.is_empty()) {
            // A node that doesn't know its own address says none.
            let ip = if row.ip.is_empty() { Ok(asked) } else { row.ip.parse() };
            let Ok(ip) = ip else { continue };
            let lane = self.lane_at(SocketAddr::new(ip, row.port));
            for slot in row.slots.iter() {
                self.set(slot, lane);
            }
        }
    }

    /// The slot is at that address, a server says.
    pub fn moved(&self, slot: Slot, to: SocketAddr) {
        self.set(slot, self.lane_at(to));
    }

    fn set(&self, slot: Slot, lane: u16) {
        if let Some(owner) = self.owners.get(usize::from(slot.number())) {
            owner.store(lane, Ordering::Relaxed);
        }
    }

    /// The lane of a slot's owner.
    pub fn lane_of(&self, slot: Slot) -> Result<usize, LoadError> {
        let lane = self.owners.get(usize::from(slot.number()));
        match lane.map_or(NO_LANE, |lane| lane.load(Ordering::Relaxed)) {
            NO_LANE => Err(LoadError::NoOwner { slot }),
            lane => Ok(usize::from(lane)),
        }
    }

    /// The lane to an address, a new one where there is none.
    pub fn lane_at(&self, address: SocketAddr) -> u16 {
        let mut lanes = locked(&self.lanes);
        let at = lanes.iter().position(|lane| lane.address == address).unwrap_or_else(|| {
            lanes.push(Lane { address, sender: None });
            lanes.len() - 1
        });
        u16::try_from(at).unwrap_or(NO_LANE)
    }

    pub fn address(&self, lane: usize) -> SocketAddr {
        let lanes = locked(&self.lanes);
        lanes.get(lane).map_or(SocketAddr::from(([0, 0, 0, 0], 0)), |lane| lane.address)
    }

    /// Addresses of all lanes.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        locked(&self.lanes).iter().map(|lane| lane.address).collect()
    }

    pub fn lanes(&self) -> usize {
        locked(&self.lanes).len()
    }

    /// The way into a lane, which is started where it wasn't.
    pub fn sender(
        &self,
        lane: usize,
        shared: &Arc<Shared>,
        runtime: &Handle,
    ) -> mpsc::Sender<Batch> {
        let mut lanes = locked(&self.lanes);
        let start = |address| {
            let (sender, batches) = mpsc::channel(QUEUE);
            runtime.spawn(lane::run(Arc::clone(shared), address, batches));
            sender
        };
        match lanes.get_mut(lane) {
            Some(lane) => lane.sender.get_or_insert_with(|| start(lane.address)).clone(),
            None => mpsc::channel(1).0,
        }
    }

    /// Ends the lanes.
    pub fn close(&self) {
        for lane in locked(&self.lanes).iter_mut() {
            lane.sender = None;
        }
    }
}
