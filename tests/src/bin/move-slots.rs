//! Moves slots as its own process, so that a test can kill it: `move-slots FROM TO SLOTS OTHER…`,
//! each node as `id@address`.

use anyhow::{Context as _, Result};
use fleet::model::Pace;
use keyfleet::mover::{
    NodeAddr,
    slots::{SlotMove, move_slots},
};
use protocol::engine::AtomicSlots;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [from, to, slots, others @ ..] = args.as_slice() else {
        anyhow::bail!("move-slots FROM TO SLOTS OTHER…");
    };
    let job = SlotMove {
        from: node(from)?,
        to: node(to)?,
        slots: slots.parse()?,
        others: others.iter().map(|text| node(text)).collect::<Result<Vec<NodeAddr>>>()?,
        login: None,
        pace: Pace::Gentle,
        atomic: AtomicSlots::None,
    };
    move_slots(&job, |_| ()).await?;
    Ok(())
}

fn node(text: &str) -> Result<NodeAddr> {
    let (id, address) = text.split_once('@').context("id@address")?;
    Ok(NodeAddr { id: id.parse()?, address: address.parse()? })
}
