//! The engine moves the slots by itself: `CLUSTER MIGRATESLOTS` (Valkey from 9.0), which copies them
//! like a replica and switches the owner at once.

use protocol::SlotSet;

use super::{
    Link,
    slots::{Fault, Report, SlotMove},
};

pub(super) async fn migrate_slots(
    _job: &SlotMove,
    _slots: &SlotSet,
    _source: &mut Link,
    _report: &Report<'_>,
) -> Result<(), Fault> {
    Err(Fault::Atomic("not yet".into()))
}
