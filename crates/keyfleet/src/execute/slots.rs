//! Steps that move slots; the work itself is the mover's.

use std::time::{Duration, Instant};

use fleet::{model::NodeName, step::RepairCase};
use protocol::{SlotSet, engine::AtomicSlots};

use super::{Context, Member, Report, StepError};
use crate::mover::{
    NodeAddr,
    repair::{SlotRepair, repair_slots},
    slots::{Progress, SlotMove, move_slots},
};

/// How often progress is told.
const TELL: Duration = Duration::from_millis(100);

/// Moves slots with their keys.
pub(super) async fn move_between(
    context: &Context,
    from: &NodeName,
    to: &NodeName,
    slots: &SlotSet,
    report: &Report<'_>,
) -> Result<(), StepError> {
    let all = context.answering(&from.cluster).await?;
    let find = |name: &NodeName| {
        let found = all.iter().find(|(member, _)| member.name == *name);
        let (member, view) =
            found.ok_or_else(|| StepError::Stale(format!("{name} doesn't answer")))?;
        if !view.is_primary() {
            return Err(StepError::Stale(format!("{name} is a replica")));
        }
        Ok((member, NodeAddr { id: view.id(), address: member.address }))
    };
    let ((source, source_address), (target, target_address)) = (find(from)?, find(to)?);
    let ends = [source_address, target_address];
    let others =
        all.iter().map(|(member, view)| NodeAddr { id: view.id(), address: member.address });
    let job = SlotMove {
        from: source_address,
        to: target_address,
        slots: slots.clone(),
        others: others.filter(|other| !ends.contains(other)).collect(),
        login: Some(source.login.clone()),
        pace: context.cluster(&from.cluster)?.pace,
        atomic: atomic(context, source, target).await?,
    };
    let (mut told, sink, step) = (Instant::now(), report.sink.clone(), report.step.clone());
    let tell = move |progress: Progress| {
        if told.elapsed() > TELL {
            told = Instant::now();
            let Progress { slots_done, slots_total, keys, .. } = progress;
            let text = format!("{slots_done} of {slots_total} slots, {keys} keys");
            Report { step: &step, sink: &sink }.say(&text);
        }
    };
    move_slots(&job, tell).await.map_err(Box::new)?;
    Ok(())
}

/// Closes half-moved slots. Every primary must answer: one that doesn't may hold keys of them.
pub(super) async fn repair(
    context: &Context,
    owner: &NodeName,
    slots: &SlotSet,
    case: RepairCase,
) -> Result<(), StepError> {
    let all = context.answering(&owner.cluster).await?;
    let found = all.iter().find(|(member, _)| member.name == *owner);
    let (member, view) =
        found.ok_or_else(|| StepError::Stale(format!("{owner} doesn't answer")))?;
    let answers = |id| all.iter().any(|(_, view)| view.id() == id);
    if let Some(away) = view.nodes.rows.iter().find(|row| !row.slots.is_empty() && !answers(row.id))
    {
        return Err(StepError::Stale(format!("{} doesn't answer", away.id.short())));
    }
    let address = NodeAddr { id: view.id(), address: member.address };
    let others =
        all.iter().map(|(member, view)| NodeAddr { id: view.id(), address: member.address });
    let job = SlotRepair {
        owner: address,
        slots: slots.clone(),
        case,
        others: others.filter(|other| *other != address).collect(),
        login: Some(member.login.clone()),
    };
    repair_slots(&job).await.map_err(Box::new)?;
    Ok(())
}

/// What both servers can do, as they run now.
async fn atomic(
    context: &Context,
    source: &Member,
    target: &Member,
) -> Result<AtomicSlots, StepError> {
    let (source, target) = (context.running(source).await?, context.running(target).await?);
    let (source, target) = (source.dialect().atomic_slots, target.dialect().atomic_slots);
    Ok(if source == target { source } else { AtomicSlots::None })
}
