//! Which keys are asked for most, and which are large: found in a sample.
//!
//! One in so many replies is looked at, when its request is still known; besides, each reply that is
//! large enough to be passed on in parts. What was counted of a key in a window of time is at least
//! what the sample held, and at most [`HotKey::over`] more; a key that has more than its share
//! (1 / [`KEYS_MAX`]) of a window's sample is always there.
//!
//! Deliberately absent: keys longer than 1 KiB, large requests that are passed on as they come,
//! sessions, and rings, whose requests are not kept until they are answered.
//! Source: Metwally, Agrawal, El Abbadi, "Efficient computation of frequent and top-k elements in data
//! streams" (2005), the Space-Saving algorithm.

use protocol::commands;

use super::{ConnId, Core, Engine, Micros, request};

/// Keys that are counted at once.
pub const KEYS_MAX: usize = 64;
/// Keys that are known as the largest.
const LARGE_MAX: usize = 32;
const KEY_BYTES_MAX: usize = 1 << 10;
/// Figures are of so long, or of what has passed of that.
const WINDOW: Micros = 10_000_000;

/// A key, as far as it was seen in the sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HotKey {
    pub key: Box<[u8]>,
    pub requests: u64,
    /// So many of those may have been others' before.
    pub over: u64,
    pub request_bytes: u64,
    /// Of replies that were for this key alone.
    pub reply_bytes: u64,
}

/// A key with the most bytes that a request or a reply for it had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LargeKey {
    pub key: Box<[u8]>,
    pub bytes: u64,
}

/// What was found in a window of time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HotFigures {
    /// How long it is, in µs.
    pub span: Micros,
    /// Each request of the sample stands for so many.
    pub one_in: u32,
    /// In no order.
    pub hot: Vec<HotKey>,
    pub large: Vec<LargeKey>,
}

/// The sample of one engine.
pub(super) struct Sample {
    one_in: u32,
    /// When the window at hand began.
    began: Micros,
    now: HotFigures,
    before: Option<HotFigures>,
}

impl Sample {
    pub fn new(one_in: u32) -> Self {
        let now = HotFigures { one_in, ..HotFigures::default() };
        Self { one_in, began: 0, now, before: None }
    }

    /// The last whole window; until there is one, what there is.
    pub fn figures(&self, now: Micros) -> HotFigures {
        let span = now.saturating_sub(self.began);
        match &self.before {
            Some(before) if span < WINDOW => before.clone(),
            _ => HotFigures { span, ..self.now.clone() },
        }
    }

    /// Ends the window if it is time.
    fn turn(&mut self, now: Micros) {
        let span = now.saturating_sub(self.began);
        if span < WINDOW {
            return;
        }
        let next = HotFigures { one_in: self.one_in, ..HotFigures::default() };
        let ended = std::mem::replace(&mut self.now, next);
        self.before = Some(HotFigures { span, ..ended });
        self.began = now;
    }

    fn count(&mut self, key: &[u8], request_bytes: u64, reply_bytes: u64) {
        let hot = &mut self.now.hot;
        let at = hot.iter().position(|each| *each.key == *key).or_else(|| {
            let fresh =
                HotKey { key: key.into(), requests: 0, over: 0, request_bytes: 0, reply_bytes: 0 };
            if hot.len() < KEYS_MAX {
                hot.push(fresh);
                return Some(hot.len() - 1);
            }
            let at = (0..hot.len()).min_by_key(|at| hot.get(*at).map(|each| each.requests))?;
            let least = hot.get_mut(at)?;
            let over = least.requests;
            *least = HotKey { requests: over, over, ..fresh };
            Some(at)
        });
        if let Some(each) = at.and_then(|at| hot.get_mut(at)) {
            each.requests += 1;
            each.request_bytes += request_bytes;
            each.reply_bytes += reply_bytes;
        }
    }

    fn measure(&mut self, key: &[u8], bytes: u64) {
        let large = &mut self.now.large;
        if let Some(known) = large.iter_mut().find(|each| *each.key == *key) {
            known.bytes = known.bytes.max(bytes);
        } else if large.len() < LARGE_MAX {
            large.push(LargeKey { key: key.into(), bytes });
        } else if let Some(least) = large.iter_mut().min_by_key(|each| each.bytes)
            && least.bytes < bytes
        {
            *least = LargeKey { key: key.into(), bytes };
        }
    }
}

impl Core {
    /// A request for one key was answered from memory.
    pub(super) fn sample_near(&mut self, key: &[u8], request_bytes: usize, reply_bytes: usize) {
        self.sample_in = self.sample_in.wrapping_sub(1);
        if self.sample_in == 0
            && let Some(sample) = &mut self.sample
        {
            self.sample_in = sample.one_in;
            if key.len() <= KEY_BYTES_MAX {
                sample.turn(self.now);
                sample.count(key, request_bytes as u64, reply_bytes as u64);
            }
        }
    }
}

impl Engine {
    /// A reply whose turn it is, or one that was passed on in parts, of which so many bytes came last;
    /// its request is still kept.
    #[cold]
    pub(super) fn sample(&mut self, id: ConnId, length: usize, last_bytes: usize, streamed: bool) {
        let Some(sample) = &mut self.core.sample else { return };
        let chosen = self.core.sample_in == 0;
        if chosen {
            self.core.sample_in = sample.one_in;
        }
        let Some(conn) = self.core.conns.get(id) else { return };
        let reply_bytes = last_bytes + if streamed { conn.passed } else { 0 };
        let bytes = conn.output.kept(0, length);
        let words: Vec<&[u8]> = request::words(bytes).collect();
        let keys = commands::resolve(&words[..]).and_then(|command| command.keys(&words[..]).ok());
        let keys: Vec<&[u8]> = keys
            .into_iter()
            .flatten()
            .filter_map(|index| words.get(index).copied())
            .filter(|key| key.len() <= KEY_BYTES_MAX)
            .collect();
        sample.turn(self.core.now);
        let alone = keys.len() == 1;
        let each = (bytes.len() / keys.len().max(1)) as u64;
        let replied = if alone { reply_bytes as u64 } else { 0 };
        for key in keys {
            if chosen {
                sample.count(key, each, replied);
            }
            sample.measure(key, replied.max(each));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_most_frequent_are_found() {
        let mut sample = Sample::new(1);
        let mut truth: BTreeMap<String, u64> = BTreeMap::new();
        // Some hot keys among many that come once or twice.
        let mut state = 1_u64;
        for number in 0..20_000_u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let drawn = state >> 33;
            let key = match drawn % 10 {
                0..3 => "hot:0".to_owned(),
                3..5 => format!("hot:{}", drawn / 10 % 4),
                _ => format!("cold:{}", number / 2),
            };
            *truth.entry(key.clone()).or_default() += 1;
            sample.count(key.as_bytes(), 1, 10);
        }
        let found = sample.figures(5);
        assert_eq!((found.hot.len(), found.span), (KEYS_MAX, 5));
        for (key, count) in &truth {
            let hot = found.hot.iter().find(|each| *each.key == *key.as_bytes());
            assert!(hot.is_some() || *count <= 20_000 / KEYS_MAX as u64, "{key} {count}");
            if let Some(hot) = hot {
                assert!((hot.requests - hot.over..=hot.requests).contains(count), "{hot:?}");
            }
        }
        let sum: u64 = found.hot.iter().map(|each| each.requests).sum();
        assert_eq!(sum, 20_000);
    }

    #[test]
    fn the_largest_stay() {
        let mut sample = Sample::new(1);
        for number in 0..100_u64 {
            sample.measure(format!("{}", number * 7 % 100).as_bytes(), number * 7 % 100);
        }
        let mut sizes: Vec<u64> = sample.now.large.iter().map(|each| each.bytes).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, (100 - LARGE_MAX as u64..100).collect::<Vec<_>>());
    }

    #[test]
    fn windows_end() {
        let mut sample = Sample::new(3);
        sample.count(b"a", 1, 1);
        assert_eq!(sample.figures(WINDOW - 1).hot.len(), 1);
        sample.turn(WINDOW);
        let found = sample.figures(WINDOW + 5);
        assert_eq!((found.span, found.one_in, found.hot.len()), (WINDOW, 3, 1));
        assert_eq!(sample.figures(2 * WINDOW + 5).hot.len(), 0);
    }
}
