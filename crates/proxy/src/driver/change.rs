//! Other pools and listeners for a loop that runs.

use std::io;

use mio::Token;

use super::{KIND_BITS, LISTENER, Listener, Loop, Terms};
use crate::{engine::PoolSetup, route::Address};

/// What changes.
#[derive(Debug, Default)]
pub struct Change {
    /// Pools by number: replaced, or added where the number is the next one; None: removed.
    pub pools: Vec<(usize, Option<PoolSetup>)>,
    /// All listeners that there are to be from now on, each with its pool's number.
    pub listeners: Vec<(usize, Listening)>,
}

/// Where clients connect.
#[derive(Debug)]
pub enum Listening {
    /// The listener that is there, at [`Listener::address`].
    Still {
        address: Address,
        /// See [`Listener::set_keepalive`].
        keepalive: bool,
        /// For clients that connect from now on.
        terms: Terms,
    },
    New(Listener),
}

impl Loop {
    pub(super) fn change(&mut self, change: Change) {
        for (number, setup) in change.pools {
            match setup {
                None => self.engine.remove_pool(number),
                Some(setup) if number < self.engine.pools() => {
                    self.engine.replace_pool(number, setup);
                }
                Some(setup) => drop(self.engine.add_pool(setup)),
            }
        }
        // Those who wait at a listener already connected to what it was before.
        for index in 0..self.listeners.len() {
            self.accept(index);
        }
        let mut former = std::mem::take(&mut self.listeners);
        self.listeners.resize_with(former.len(), || None);
        for (pool, listening) in change.listeners {
            match listening {
                Listening::Still { address, keepalive, terms } => {
                    let at = |place: &Option<(usize, Listener)>| {
                        place.as_ref().is_some_and(|(_, each)| *each.address() == address)
                    };
                    if let Some(index) = former.iter().position(at)
                        && let Some(place) = former.get_mut(index)
                        && let Some(to) = self.listeners.get_mut(index)
                    {
                        *to = place.take().map(|(_, kept)| (pool, kept.with_terms(terms)));
                        let kept = to.as_ref().map(|(_, kept)| kept.set_keepalive(keepalive));
                        if let Some(Err(error)) = kept {
                            tracing::warn!(%error, "cannot change keepalive");
                        }
                    }
                }
                Listening::New(listener) => {
                    if let Err(error) = self.listen(pool, listener) {
                        tracing::error!(%error, "cannot take clients");
                    }
                }
            }
        }
    }

    /// Takes clients from one more listener.
    pub(super) fn listen(&mut self, pool: usize, mut listener: Listener) -> io::Result<()> {
        let free = self.listeners.iter().position(Option::is_none);
        let index = free.unwrap_or(self.listeners.len());
        listener.register(self.poll.registry(), Token(index << KIND_BITS | LISTENER))?;
        if index == self.listeners.len() {
            self.listeners.push(None);
        }
        if let Some(place) = self.listeners.get_mut(index) {
            *place = Some((pool, listener));
        }
        Ok(())
    }
}
