//! How replicas follow: a live link copies what was written since; a new one begins with a full copy
//! that replaces whatever the replica held, with emptiness too.

use std::{collections::BTreeMap, sync::Arc};

use super::{Data, Group, Net, Sync};

/// How long a full copy takes, in milliseconds.
const COPY_MS: u64 = 1_000;

/// A primary's data at an offset.
type Copied = (Arc<Data>, u64);

impl Group {
    /// Replicas take over what their primaries hold. True where something was copied.
    pub(super) fn replicate(&mut self, net: &Net) -> bool {
        let mut changes: BTreeMap<u32, (Sync, Option<Copied>)> = BTreeMap::new();
        let mut wake_ms: Option<u64> = None;
        for (number, node) in &self.nodes {
            if !net.answers(node) {
                continue;
            }
            let Some(primary) = node.replica_of() else { continue };
            if self.strangers.contains(&primary) {
                continue;
            }
            let source = self.node_by_id(primary).filter(|source| net.reaches(node, source));
            let now = match (source, node.sync) {
                (None, Sync::InSync) => (Sync::Down(Some(net.now_ms)), None),
                (None, Sync::Until { down_since_ms, .. }) => (Sync::Down(down_since_ms), None),
                (None, Sync::Down(_)) => continue,
                (Some(_), Sync::Down(down_since_ms)) => {
                    let done_ms = net.now_ms + COPY_MS;
                    (Sync::Until { done_ms, down_since_ms }, None)
                }
                (Some(_), Sync::Until { done_ms, .. }) if done_ms > net.now_ms => {
                    wake_ms = Some(wake_ms.map_or(done_ms, |ms| ms.min(done_ms)));
                    continue;
                }
                (Some(source), sync) => {
                    let same = Arc::ptr_eq(&source.data, &node.data)
                        && source.offset == node.offset
                        && sync == Sync::InSync;
                    if same {
                        continue;
                    }
                    (Sync::InSync, Some((Arc::clone(&source.data), source.offset)))
                }
            };
            if let Sync::Until { done_ms, .. } = now.0 {
                wake_ms = Some(wake_ms.map_or(done_ms, |ms| ms.min(done_ms)));
            }
            changes.insert(*number, now);
        }
        let changed = !changes.is_empty();
        for (number, (sync, copied)) in changes {
            let Some(node) = self.nodes.get_mut(&number) else { continue };
            node.sync = sync;
            if let Some((data, offset)) = copied {
                node.data = data;
                node.offset = offset;
                node.append();
            }
        }
        if let Some(at_ms) = wake_ms {
            self.wake(at_ms);
        }
        changed
    }
}
