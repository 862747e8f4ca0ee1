//! What only a restart changes: another engine, another start-up setting, another address of the host. Replicas first, one at a
//! time; a primary hands its role over to a replica that is done already, and is a replica then. A
//! shard without replicas gets one for the while ([`super::roster`]).

use protocol::Engine;

use super::{Draft, Member, View, config, roster::Roster};
use crate::{
    model::{EngineWant, Fleet},
    step::Action,
};

/// The member answers and needs a restart to be as the spec wants it.
pub(super) fn is_outdated(fleet: &Fleet, view: &View<'_>, index: usize) -> bool {
    reason(fleet, view, &view.members[index]).is_some()
}

fn reason(fleet: &Fleet, view: &View<'_>, member: &Member<'_>) -> Option<String> {
    let up = member.up?;
    if let Some(host) = fleet.hosts.get(&member.view.host)
        && host.address != member.view.address
    {
        return Some(format!("{} is at {} now", host.id, host.address));
    }
    if !view.spec.engine.matches(&up.engine) {
        return Some(format!("it runs {}, wanted is {}", up.engine, view.spec.engine));
    }
    let frozen = config::drift(view, up).frozen;
    (!frozen.is_empty()).then(|| format!("only a restart changes {}", frozen.join(", ")))
}

/// Can the wanted engine take over this one's data and stream? None: yes.
fn downgrade(want: &EngineWant, from: Engine) -> Option<String> {
    if want.matches(&from) {
        return None;
    }
    let kind = want.kind.unwrap_or(from.kind);
    let version = want.version.as_ref().map(|want| want.at_most(from.version));
    let to = Engine { kind, version: version.unwrap_or(from.version) };
    let newer = kind != from.kind && want.version.is_none();
    let follows = if newer {
        // Any version of the other product may be found; judge by the product alone.
        Engine { kind, version: protocol::Version::new(u16::MAX, 0, 0) }.can_follow(&from)
    } else {
        to.can_follow(&from)
    };
    (!follows).then(|| format!("{want} can't read the data of {from}"))
}

/// One step of a rolling change. `true`: something is wanted, so that what comes after must wait.
pub(super) fn roll(fleet: &Fleet, view: &View<'_>, roster: &Roster, draft: &mut Draft) -> bool {
    let mut wanted = false;
    for head in &roster.heads {
        for index in &head.replicas {
            let member = &view.members[*index];
            let Some(why) = reason(fleet, view, member) else { continue };
            if let Some(refusal) = member.up.and_then(|up| downgrade(&view.spec.engine, up.engine))
            {
                block(member, refusal, draft);
                return true;
            }
            draft.step(Action::RestartNode { node: member.name.clone() }, why);
            return true;
        }
    }
    for head in &roster.heads {
        let Some(primary) = head.primary else { continue };
        let member = &view.members[primary];
        let Some(why) = reason(fleet, view, member) else { continue };
        wanted = true;
        if let Some(refusal) = member.up.and_then(|up| downgrade(&view.spec.engine, up.engine)) {
            block(member, refusal, draft);
            continue;
        }
        let ready = head
            .replicas
            .iter()
            .copied()
            .filter(|index| view.in_sync(*index) && !is_outdated(fleet, view, *index))
            .max_by_key(|index| {
                (view.members[*index].up.map(|up| up.offset), std::cmp::Reverse(*index))
            });
        let Some(replica) = ready else {
            draft.wait(format!("{} will hand over once a replica of it is in sync", member.name));
            continue;
        };
        if view.hand_over(primary, replica, &format!("{why}; it hands over first"), draft) {
            return true;
        }
    }
    wanted
}

fn block(member: &Member<'_>, reason: String, draft: &mut Draft) {
    draft.block(
        format!("another engine for {}", member.name),
        reason,
        Some("make a new cluster with that engine and import the data"),
    );
}
