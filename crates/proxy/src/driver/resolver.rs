//! Names to addresses, in a thread of its own: a slow name server stops nobody.

use std::{
    net::ToSocketAddrs as _,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

use mio::Waker;

use super::running::Message;
use crate::{engine::ConnId, route::Address};

type Question = (ConnId, String, u16);

/// Asks the system; the answers come as [`Message::Resolved`].
pub(super) struct Resolver {
    /// The thread, once there was something to ask.
    questions: Option<Sender<Question>>,
    answers: Sender<Message>,
    waker: Arc<Waker>,
}

impl Resolver {
    pub fn new(answers: Sender<Message>, waker: Arc<Waker>) -> Self {
        Self { questions: None, answers, waker }
    }

    pub fn ask(&mut self, conn: ConnId, host: String, port: u16) {
        if self.questions.is_none() {
            let (questions, receiver) = channel();
            let (answers, waker) = (self.answers.clone(), Arc::clone(&self.waker));
            let thread = thread::Builder::new().name("resolver".to_owned());
            if thread.spawn(move || answer(&receiver, &answers, &waker)).is_ok() {
                self.questions = Some(questions);
            }
        }
        let asked = self.questions.as_ref().map(|questions| questions.send((conn, host, port)));
        if !matches!(asked, Some(Ok(()))) {
            self.questions = None;
            let _ = self.answers.send(Message::Resolved { conn, address: None });
            let _ = self.waker.wake();
        }
    }
}

fn answer(questions: &Receiver<Question>, answers: &Sender<Message>, waker: &Waker) {
    while let Ok((conn, host, port)) = questions.recv() {
        let found = (host.as_str(), port).to_socket_addrs().ok();
        let address = found.and_then(|mut found| found.next()).map(Address::Tcp);
        if answers.send(Message::Resolved { conn, address }).is_err() {
            return;
        }
        let _ = waker.wake();
    }
}
