//! A pretend fleet with faults: [`story`] makes up fleets and what happens to them from a seed,
//! [`trial`] lets a planner live through it and judges every wave and the end, [`ledger`] keeps the
//! acknowledged writes. The clusters themselves are `fleet::world`'s, the judge is `fleet::check`.

pub mod ledger;
pub mod rng;
pub mod scene;
pub mod story;
pub mod trial;
