//! Bytes on their way out.

/// What is to be written to a socket, and, where it is kept, what was written and may have to be
/// sent again. Freed in order.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    /// Before it: of no use any more.
    start: usize,
    /// Before it: written.
    sent: usize,
}

/// A buffer larger than this is given back to the allocator once it is empty.
const KEPT_BYTES_MAX: usize = 64 << 10;
/// One that is larger than this grows by so much, not to the double: all that it has counts.
const DOUBLED_BYTES_MAX: usize = 512 << 10;
const GROWTH_BYTES: usize = 1 << 20;

impl Output {
    /// Where to append.
    #[inline]
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Appends what may be much.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        let room = self.bytes.capacity() - self.bytes.len();
        if room < bytes.len() && self.bytes.len() >= DOUBLED_BYTES_MAX {
            self.make_room(bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
    }

    #[cold]
    fn make_room(&mut self, count: usize) {
        self.drop_front();
        if self.bytes.capacity() - self.bytes.len() < count {
            self.bytes.reserve_exact(count.max(GROWTH_BYTES));
        }
    }

    fn drop_front(&mut self) {
        self.bytes.drain(..self.start);
        self.sent -= self.start;
        self.start = 0;
    }

    /// Not written yet.
    #[inline]
    pub fn unsent(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    #[inline]
    pub fn unsent_len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Bytes in memory that are in use.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// So many bytes were written; they are kept until [`Output::release`].
    #[inline]
    pub fn wrote(&mut self, count: usize) {
        self.sent = (self.sent + count).min(self.bytes.len());
    }

    /// So many bytes from the front are needed no more. Only what was written is freed.
    #[inline]
    pub fn release(&mut self, count: usize) {
        self.start = (self.start + count).min(self.sent);
        if self.start == self.bytes.len() {
            self.clear();
        } else if self.start >= KEPT_BYTES_MAX && self.start >= self.bytes.len() / 2 {
            self.drop_front();
        }
    }

    /// So many bytes were written and are not kept.
    #[inline]
    pub fn wrote_and_done(&mut self, count: usize) {
        self.wrote(count);
        let done = self.sent - self.start;
        self.release(done);
    }

    /// So many bytes, from so far behind the front of what is kept.
    pub fn kept(&self, skip: usize, count: usize) -> &[u8] {
        let from = self.start + skip;
        self.bytes.get(from..from + count).unwrap_or_default()
    }

    /// How many of the kept bytes were written.
    pub fn kept_sent(&self) -> usize {
        self.sent - self.start
    }

    /// What was not written is this instead.
    pub fn replace_unsent(&mut self, bytes: &[u8]) {
        self.bytes.truncate(self.sent);
        self.bytes.extend_from_slice(bytes);
    }

    pub fn clear(&mut self) {
        (self.start, self.sent) = (0, 0);
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        } else {
            self.bytes.clear();
        }
    }

    /// Bytes that the allocator gave.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_is_kept_until_released() {
        let mut output = Output::default();
        output.bytes().extend_from_slice(b"onetwothree");
        output.wrote(7);
        assert_eq!((output.unsent(), output.kept(3, 3)), (&b"hree"[..], &b"two"[..]));
        output.release(3);
        assert_eq!((output.kept(0, 3), output.kept_sent(), output.len()), (&b"two"[..], 4, 8));
        output.release(100);
        assert_eq!((output.unsent(), output.len()), (&b"hree"[..], 4));
        output.wrote_and_done(4);
        assert_eq!(output.len(), 0);
    }

    #[test]
    fn the_front_is_given_back_while_it_runs() {
        let mut output = Output::default();
        for number in 0..10_000_u32 {
            output.bytes().extend_from_slice(&[number as u8; 100]);
            if number > 0 {
                output.wrote_and_done(100);
            }
            assert_eq!(output.unsent(), [number as u8; 100]);
        }
        assert!(output.capacity() < 4 * KEPT_BYTES_MAX, "{}", output.capacity());
    }

    #[test]
    fn much_takes_hardly_more_than_it_is() {
        let mut output = Output::default();
        let piece = vec![7; 100_000];
        for number in 1..=50 {
            output.push(&piece);
            assert_eq!(output.unsent_len(), number * piece.len());
            assert!(output.capacity() <= number * piece.len() + GROWTH_BYTES);
        }
        // What was written makes room before more is taken.
        output.wrote_and_done(20 * piece.len());
        let before = output.capacity();
        (0..20).for_each(|_| output.push(&piece));
        assert_eq!((output.capacity(), output.unsent_len()), (before, 50 * piece.len()));
        assert!(output.unsent().iter().all(|byte| *byte == 7));
    }
}
