//! Primaries back to their spread, by handovers that lose nothing: one at a time, paced, and only
//! where the spread strictly improves (I1, I4, I10).

use protocol::NodeId;

use super::{Draft, View, roster::Roster};
use crate::{model::Fleet, step::Action};

/// An hour.
const HOUR_MS: u64 = 3_600_000;

/// Watched calm must have lasted this long before a voluntary move, at the most.
const CALM_MS_MAX: u64 = 15_000;

/// One handover towards the spread. `true`: something is wanted.
pub(super) fn primaries(
    fleet: &Fleet,
    view: &View<'_>,
    roster: &Roster,
    draft: &mut Draft,
) -> bool {
    if let Some(head) = roster
        .heads
        .iter()
        .find(|head| head.primary.is_some_and(|index| !view.allows(&view.members[index].view.host)))
    {
        return leave_host(view, head, draft);
    }
    if !view.spreads() {
        return false;
    }
    let Some((head, replica)) = roster.spreading(view, true) else { return false };
    let Some(primary) = roster.heads[head].primary else { return false };
    let history = view.observed.history.get(&view.spec.name);
    if let Some(calm_since) = history.and_then(|history| history.calm_since_ms) {
        let wanted = view.spec.node_timeout_ms.min(CALM_MS_MAX);
        let passed = view.observed.at_ms.saturating_sub(calm_since);
        if passed < wanted {
            draft.wait(format!(
                "primaries will spread after {} s more of calm",
                (wanted - passed).div_ceil(1000)
            ));
            return true;
        }
    }
    let lately = history.map_or(0, |history| {
        let since = view.observed.at_ms.saturating_sub(HOUR_MS);
        history.handovers_ms.iter().filter(|(_, at)| *at > since).count()
    });
    if lately >= fleet.guard.moves_per_hour_max as usize {
        draft
            .wait(format!("primaries will spread: {lately} handovers in the last hour are enough"));
        return true;
    }
    let host = &view.members[primary].view.host;
    let why = format!("too many primaries stand on {host}");
    view.hand_over(primary, replica, &why, draft);
    true
}

fn leave_host(view: &View<'_>, head: &super::roster::Head, draft: &mut Draft) -> bool {
    let Some(primary) = head.primary else { return false };
    let Some(replica) = head.replicas.iter().copied().find(|index| view.in_sync(*index)) else {
        return false;
    };
    let host = &view.members[primary].view.host;
    view.hand_over(primary, replica, &format!("{host} is not one of its hosts any more"), draft);
    true
}

impl View<'_> {
    /// Emit a handover, or say that the shard had one too recently (I4). `true`: emitted.
    pub(super) fn hand_over(
        &self,
        primary: usize,
        replica: usize,
        why: &str,
        draft: &mut Draft,
    ) -> bool {
        let (from, to) = (&self.members[primary], &self.members[replica]);
        if let Some(rest_ms) = from.id.and_then(|id| self.too_soon_ms(id)) {
            draft.wait(format!(
                "{} can hand over in {} s: its shard did so just now",
                from.name,
                rest_ms.div_ceil(1000)
            ));
            return false;
        }
        draft.step(Action::Handover { from: from.name.clone(), to: to.name.clone() }, why);
        true
    }

    /// How long the shard of this primary must still rest from its last change, or from the last try
    /// of one, before it may be disturbed again (I4).
    fn too_soon_ms(&self, primary: NodeId) -> Option<u64> {
        let history = self.observed.history.get(&self.spec.name)?;
        self.rest_ms(primary, history.handovers_ms.iter().chain(&history.refusals_ms))
    }

    /// How long voters still refuse to replace this primary: they don't vote twice on the same one
    /// within twice the node timeout. A shard whose primary is another since may vote at once.
    pub(super) fn refused_ms(&self, primary: NodeId) -> Option<u64> {
        let history = self.observed.history.get(&self.spec.name)?;
        self.rest_ms(primary, history.refusals_ms.iter())
    }

    fn rest_ms<'b>(
        &self,
        primary: NodeId,
        events: impl Iterator<Item = &'b (NodeId, u64)>,
    ) -> Option<u64> {
        let of_shard = events.filter(|(id, _)| *id == primary);
        let last = of_shard.map(|(_, at)| *at).max()?;
        let passed = self.observed.at_ms.saturating_sub(last);
        (2 * self.spec.node_timeout_ms).checked_sub(passed).filter(|rest| *rest > 0)
    }
}
