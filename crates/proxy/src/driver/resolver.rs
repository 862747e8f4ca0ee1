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

/// An [`Address::Name`], and for which connection.
type Question = (ConnId, Arc<Address>);

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

    pub fn ask(&mut self, conn: ConnId, name: Arc<Address>) {
        if self.questions.is_none() {
            let (questions, receiver) = channel();
            let (answers, waker) = (self.answers.clone(), Arc::clone(&self.waker));
            let thread = thread::Builder::new().name("resolver".to_owned());
            if thread.spawn(move || answer(&receiver, &answers, &waker)).is_ok() {
                self.questions = Some(questions);
            }
        }
        let question = (conn, Arc::clone(&name));
        let asked = self.questions.as_ref().map(|questions| questions.send(question));
        if !matches!(asked, Some(Ok(()))) {
            self.questions = None;
            let _ = self.answers.send(Message::Resolved { conn, name, address: None });
            let _ = self.waker.wake();
        }
    }
}

fn answer(questions: &Receiver<Question>, answers: &Sender<Message>, waker: &Waker) {
    while let Ok((conn, name)) = questions.recv() {
        let found = match &*name {
            Address::Name { host, port } => (host.as_str(), *port).to_socket_addrs().ok(),
            Address::Tcp(_) | Address::Unix(_) => None,
        };
        let address = found.and_then(|mut found| found.next());
        if answers.send(Message::Resolved { conn, name, address }).is_err() {
            return;
        }
        let _ = waker.wake();
    }
}
