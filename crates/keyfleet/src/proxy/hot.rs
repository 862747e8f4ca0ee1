//! The keys that are asked for most and the largest ones, of all loops together, as JSON.

use std::{collections::BTreeMap, io};

use proxy::engine::HotFigures;
use serde::{Deserialize, Serialize};

/// So many of each are shown.
const SHOWN: usize = 32;

/// What is shown.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Page {
    /// One request in so many was looked at; 0: none.
    pub one_in: u32,
    /// Over how long.
    pub seconds: f64,
    /// By requests, the most first.
    pub hot: Vec<Hot>,
    /// By bytes, the most first.
    pub large: Vec<Large>,
}

/// Figures are per second, and estimates.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Hot {
    pub key: String,
    pub requests: f64,
    /// So much of that may be other keys'.
    pub over: f64,
    pub request_bytes: f64,
    pub reply_bytes: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Large {
    pub key: String,
    /// The largest request or reply that was seen.
    pub bytes: u64,
}

impl Page {
    pub(super) fn new(loops: &[HotFigures]) -> Self {
        let mut hot: BTreeMap<&[u8], Hot> = BTreeMap::new();
        let mut large: BTreeMap<&[u8], u64> = BTreeMap::new();
        let mut page = Self::default();
        for each in loops {
            let seconds = each.span as f64 / 1e6;
            page.one_in = each.one_in;
            page.seconds = page.seconds.max(seconds);
            let rate = |count: u64| count as f64 * f64::from(each.one_in) / seconds.max(0.1);
            for found in &each.hot {
                let sum = hot.entry(&found.key).or_default();
                sum.requests += rate(found.requests);
                sum.over += rate(found.over);
                sum.request_bytes += rate(found.request_bytes);
                sum.reply_bytes += rate(found.reply_bytes);
            }
            for found in &each.large {
                let most = large.entry(&found.key).or_default();
                *most = found.bytes.max(*most);
            }
        }
        let text = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        let named = hot.into_iter().map(|(key, hot)| Hot { key: text(key), ..hot });
        page.hot = named.collect();
        page.hot.sort_by(|one, other| other.requests.total_cmp(&one.requests));
        page.hot.truncate(SHOWN);
        page.large =
            large.into_iter().map(|(key, bytes)| Large { key: text(key), bytes }).collect();
        page.large.sort_by_key(|large| std::cmp::Reverse(large.bytes));
        page.large.truncate(SHOWN);
        page
    }

    pub(super) fn json(&self) -> io::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }
}

#[cfg(test)]
mod tests {
    use proxy::engine::{HotKey, LargeKey};

    use super::*;

    #[test]
    fn loops_are_added_up() {
        let hot = |key: &str, requests| HotKey {
            key: key.as_bytes().into(),
            requests,
            over: 1,
            request_bytes: 10 * requests,
            reply_bytes: 0,
        };
        let large = |key: &str, bytes| LargeKey { key: key.as_bytes().into(), bytes };
        let figures = |span, hot: Vec<HotKey>, large: Vec<LargeKey>| HotFigures {
            span,
            one_in: 100,
            hot,
            large,
        };
        let one = figures(10_000_000, vec![hot("a", 10), hot("b", 30)], vec![large("c", 5)]);
        let other = figures(5_000_000, vec![hot("a", 20)], vec![large("d", 9), large("c", 7)]);
        let page = Page::new(&[one, other]);
        let rates: Vec<_> = page.hot.iter().map(|hot| (hot.key.as_str(), hot.requests)).collect();
        assert_eq!(rates, [("a", 500.0), ("b", 300.0)]);
        assert_eq!((page.hot[0].over, page.hot[0].request_bytes), (30.0, 5_000.0));
        let large: Vec<_> = page.large.iter().map(|each| (each.key.as_str(), each.bytes)).collect();
        assert_eq!(large, [("d", 9), ("c", 7)]);
        assert_eq!((page.one_in, page.seconds), (100, 10.0));
    }
}
