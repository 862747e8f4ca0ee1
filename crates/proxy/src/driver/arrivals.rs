//! Connections of which a load balancer has still to say whose they are.
//!
//! Its header is looked at where it lies, in the socket, and taken away when it is whole: TLS, or
//! the first request, begins right behind it.

use std::{
    io::{self, ErrorKind, Read as _},
    time::{Duration, Instant},
};

use mio::{Interest, Token, event::Source as _, net::TcpStream};

use super::{
    ARRIVAL, KIND_BITS, Loop,
    crowd::Seat,
    header::{self, Ends, HEADER_BYTES_MAX, Header},
    socket::Terms,
};

/// How long a header may take.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// How often it is looked whether one takes longer.
pub(super) const LOOK: Duration = Duration::from_secs(1);

pub(super) struct Arrival {
    pub stream: TcpStream,
    pub pool: usize,
    pub terms: Terms,
    pub seat: Option<Seat>,
    /// Of the connection itself, which is the balancer's.
    pub ends: Option<Ends>,
    pub since: Instant,
}

impl Arrival {
    /// What the header says, once it is there.
    fn header(&mut self) -> io::Result<Option<Ends>> {
        let mut bytes = [0; HEADER_BYTES_MAX];
        let count = match self.stream.peek(&mut bytes) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) => return Err(error),
        };
        match header::read(bytes.get(..count).unwrap_or_default()) {
            Header::Partial => Err(ErrorKind::WouldBlock.into()),
            Header::Whole { length, ends } => {
                // It is there, so one read brings it.
                self.stream.read_exact(bytes.get_mut(..length).unwrap_or_default())?;
                Ok(ends)
            }
            Header::Wrong => Err(ErrorKind::InvalidData.into()),
        }
    }
}

impl Loop {
    /// Waits for the header of a connection.
    pub(super) fn arrive(&mut self, mut arrival: Arrival) {
        let free = self.arrivals.iter().position(Option::is_none);
        let index = free.unwrap_or(self.arrivals.len());
        // The first of this kind is the waker's.
        let token = Token((index + 1) << KIND_BITS | ARRIVAL);
        if arrival.stream.register(self.poll.registry(), token, Interest::READABLE).is_err() {
            return;
        }
        if index == self.arrivals.len() {
            self.arrivals.push(None);
        }
        if let Some(place) = self.arrivals.get_mut(index) {
            *place = Some(arrival);
        }
    }

    /// Something came, or a connection is no more.
    pub(super) fn go_on_arriving(&mut self, index: usize) {
        let Some(place) = self.arrivals.get_mut(index) else { return };
        let Some(arrival) = place else { return };
        let read = arrival.header();
        if let Err(error) = &read
            && matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
        {
            return;
        }
        let Some(mut arrival) = place.take() else { return };
        while self.arrivals.pop_if(|last| last.is_none()).is_some() {}
        match read {
            Ok(ends) => {
                let _ = arrival.stream.deregister(self.poll.registry());
                let Arrival { stream, pool, terms, seat, ends: own, .. } = arrival;
                if let Ok(socket) = terms.admit(stream) {
                    self.admit(pool, socket, seat, ends.or(own));
                }
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                let from = arrival.stream.peer_addr().ok();
                tracing::warn!(?from, "no PROXY header, as the listener wants one");
            }
            Err(_) => {}
        }
    }

    /// Ends those whose header takes too long. Once a turn.
    pub(super) fn expire_arrivals(&mut self) {
        for place in &mut self.arrivals {
            if place.as_ref().is_some_and(|arrival| arrival.since.elapsed() > HEADER_TIME) {
                *place = None;
            }
        }
        while self.arrivals.pop_if(|last| last.is_none()).is_some() {}
    }
}
