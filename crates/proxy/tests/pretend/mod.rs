//! What the stories share.

pub const SEEDS: u64 = 256;
pub const STEPS: usize = 3_000;

/// SplitMix64: the same seed, the same story.
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `bound` − 1; 0 where `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// Appends a bulk string.
pub fn word(out: &mut Vec<u8>, word: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
    out.extend_from_slice(word);
    out.extend_from_slice(b"\r\n");
}

/// Tells the story of each seed, which returns how many replies there were; of the seed in SEED
/// alone, where it is set.
pub fn tell(story: impl Fn(u64) -> usize + std::panic::RefUnwindSafe) {
    let only: Option<u64> = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..SEEDS, |seed| seed..seed + 1);
    let mut answered = 0;
    for seed in seeds {
        match std::panic::catch_unwind(|| story(seed)) {
            Ok(count) => answered += count,
            Err(panic) => {
                eprintln!("again with SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(only.is_some() || answered > 100_000, "{answered} replies say little");
}
