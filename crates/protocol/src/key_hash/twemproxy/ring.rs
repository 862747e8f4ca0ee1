//! Which server has a number.

use super::hash::md5_words;

/// How the servers of a pool share the numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distribution {
    /// Each server has about 160 points on a circle, by its weight; a number belongs to the next
    /// point. A server that goes takes only its own numbers with it.
    #[default]
    Ketama,
    /// By remainder; a server counts as often as it weighs.
    Modula,
    /// Any server, whatever it weighs: the number should be a random one.
    Random,
}

impl Distribution {
    pub const ALL: [Self; 3] = [Self::Ketama, Self::Modula, Self::Random];

    /// As `distribution:` in nutcracker.yml has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ketama => "ketama",
            Self::Modula => "modula",
            Self::Random => "random",
        }
    }

    /// The distribution of that name; none for other names, and names in capital letters.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|distribution| distribution.name() == name)
    }
}

/// A server that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingServer<'a> {
    /// What [`Ring::server`] answers with.
    pub id: u32,
    /// Its place depends on it: the name it is given, or its address as twemproxy writes it.
    pub name: &'a str,
    /// From 1 on.
    pub weight: u32,
}

/// The servers of a pool that are in use. It never changes: a new one is made when a server leaves
/// or comes back.
#[derive(Clone, Debug)]
pub struct Ring(Numbers);

#[derive(Clone, Debug)]
enum Numbers {
    Ketama(Circle),
    /// Each server's id after the sum of the weights up to and with it.
    Modula(Vec<(u64, u32)>),
    Random(Vec<u32>),
}

impl Ring {
    /// From the servers in use, in any order: as in twemproxy, the lengths of their names, then
    /// the names, put them in order.
    pub fn new(distribution: Distribution, servers: &[RingServer<'_>]) -> Self {
        let mut servers = servers.to_vec();
        servers.sort_by_key(|server| (server.name.len(), server.name));
        Self(match distribution {
            Distribution::Ketama => Numbers::Ketama(Circle::new(&servers)),
            Distribution::Modula => {
                let mut sum = 0;
                let mut up_to = |server: &RingServer<'_>| {
                    sum += u64::from(server.weight);
                    (sum, server.id)
                };
                Numbers::Modula(servers.iter().map(&mut up_to).collect())
            }
            Distribution::Random => {
                Numbers::Random(servers.iter().map(|server| server.id).collect())
            }
        })
    }

    /// The server that has this number; none where no server is in use. The number is a key's
    /// [`super::KeyHash::value`], or a random one for [`Distribution::Random`].
    #[inline]
    pub fn server(&self, value: u32) -> Option<u32> {
        match &self.0 {
            Numbers::Ketama(circle) => circle.server(value),
            Numbers::Modula(sums) => {
                let (total, _) = sums.last()?;
                let remainder = u64::from(value).checked_rem(*total)?;
                let index = sums.partition_point(|(sum, _)| *sum <= remainder);
                sums.get(index).map(|(_, id)| *id)
            }
            Numbers::Random(ids) => {
                let index = (value as usize).checked_rem(ids.len())?;
                ids.get(index).copied()
            }
        }
    }
}

/// Points in order of their numbers.
#[derive(Clone, Debug)]
struct Circle {
    points: Vec<Point>,
    /// For each value of a number's upper bits: the first point at or after the least such number.
    starts: Vec<u32>,
    /// How far to shift for the upper bits.
    shift: u32,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    value: u32,
    id: u32,
}

/// Of a server of average weight; four at a time come from one MD5.
const POINTS: u32 = 160;
const POINTS_AT_A_TIME: u32 = 4;

impl Circle {
    /// Where two points have the same number, the server that comes first has it: twemproxy sorts
    /// with the C library's `qsort`, which is stable for so few.
    fn new(servers: &[RingServer<'_>]) -> Self {
        let total = servers.iter().map(|server| u64::from(server.weight)).sum();
        let mut points = Vec::new();
        for server in servers {
            for index in 0..times(server.weight, total, servers.len()) {
                let values = md5_words(format!("{}-{index}", server.name).as_bytes());
                points.extend(values.map(|value| Point { value, id: server.id }));
            }
        }
        points.sort_by_key(|point| point.value);
        // As many starts as points, so that about one step leads from a start to the point.
        let bits = points.len().next_power_of_two().trailing_zeros().clamp(1, 20);
        let shift = u32::BITS - bits;
        let start = |upper: u32| points.partition_point(|point| point.value < upper << shift);
        let starts = (0..1 << bits).map(|upper| start(upper) as u32).collect();
        Self { points, starts, shift }
    }

    #[inline]
    fn server(&self, value: u32) -> Option<u32> {
        let start = *self.starts.get((value >> self.shift) as usize)? as usize;
        let mut onwards = self.points.get(start..)?.iter();
        let point = onwards.find(|point| point.value >= value).or(self.points.first())?;
        Some(point.id)
    }
}

/// How many times [`POINTS_AT_A_TIME`] points a server has: counted in 32-bit floats, so that at
/// some weights it is one less than exact arithmetic gives.
fn times(weight: u32, total: u64, servers: usize) -> u32 {
    let share = weight as f32 / total as f32;
    let times = share * POINTS as f32 / POINTS_AT_A_TIME as f32 * servers as f32;
    (f64::from(times) + 0.000_000_000_1) as f32 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn servers<'a>(names: &[&'a str]) -> Vec<RingServer<'a>> {
        let server = |(id, name): (usize, &&'a str)| RingServer { id: id as u32, name, weight: 1 };
        names.iter().enumerate().map(server).collect()
    }

    /// The numbers at which something could go wrong.
    fn values(ring: &Ring) -> Vec<u32> {
        let Numbers::Ketama(circle) = &ring.0 else { panic!("no circle") };
        let around = |value: u32| [value.wrapping_sub(1), value, value.wrapping_add(1)];
        let points = circle.points.iter().flat_map(|point| around(point.value));
        points.chain((0..=0xff).flat_map(|byte| around(byte << 24))).collect()
    }

    #[test]
    fn next_point_has_a_number() {
        for count in [1, 2, 3, 40] {
            let names: Vec<String> = (0..count).map(|index| format!("server{index}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let ring = Ring::new(Distribution::Ketama, &servers(&names));
            let Numbers::Ketama(circle) = &ring.0 else { panic!("no circle") };
            assert_eq!(circle.points.len(), 160 * count);
            for value in values(&ring) {
                let next = circle.points.iter().find(|point| point.value >= value);
                let expected = next.unwrap_or(&circle.points[0]).id;
                assert_eq!(ring.server(value), Some(expected), "{count} {value}");
            }
        }
    }

    #[test]
    fn order_does_not_matter() {
        for distribution in Distribution::ALL {
            let one = Ring::new(distribution, &servers(&["b", "aa", "a"]));
            let mut reversed = servers(&["b", "aa", "a"]);
            reversed.reverse();
            let other = Ring::new(distribution, &reversed);
            for value in (0..1000).map(|index: u32| index.wrapping_mul(0x9e37_79b9)) {
                assert_eq!(one.server(value), other.server(value));
            }
        }
        let ring = Ring::new(Distribution::Modula, &servers(&["b", "aa", "a"]));
        assert_eq!([0, 1, 2, 3].map(|value| ring.server(value)), [2, 0, 1, 2].map(Some));
    }

    #[test]
    fn a_server_takes_only_its_own_numbers_with_it() {
        let all = servers(&["a", "b", "c", "d"]);
        let before = Ring::new(Distribution::Ketama, &all);
        let after = Ring::new(Distribution::Ketama, &all[1..]);
        for value in values(&before) {
            let server = before.server(value).unwrap();
            let now = after.server(value).unwrap();
            assert!(if server == 0 { now != 0 } else { now == server }, "{value}");
        }
    }

    #[test]
    fn weights() {
        let weigh = |distribution, weights: &[u32]| {
            let names: Vec<String> = (0..weights.len()).map(|index| index.to_string()).collect();
            let mut servers = servers(&names.iter().map(String::as_str).collect::<Vec<_>>());
            for (server, weight) in servers.iter_mut().zip(weights) {
                server.weight = *weight;
            }
            Ring::new(distribution, &servers)
        };
        let check = |weights: &[u32], expected: &[usize]| {
            let Numbers::Ketama(circle) = weigh(Distribution::Ketama, weights).0 else { panic!() };
            let count = |id| circle.points.iter().filter(|point| point.id == id).count();
            let counts: Vec<usize> = (0..weights.len() as u32).map(count).collect();
            assert_eq!(counts, expected, "{weights:?}");
        };
        check(&[1], &[160]);
        check(&[5, 5], &[160, 160]);
        check(&[1, 3], &[80, 240]);
        check(&[1, 1000], &[0, 316]);
        check(&[u32::MAX, 1], &[320, 0]);
        let ring = weigh(Distribution::Modula, &[1, 3]);
        assert_eq!([0, 1, 3, 4].map(|value| ring.server(value)), [0, 1, 1, 0].map(Some));
        let ring = weigh(Distribution::Modula, &[u32::MAX, u32::MAX]);
        assert_eq!(ring.server(u32::MAX), Some(1));
        let ring = weigh(Distribution::Random, &[1, 100]);
        assert_eq!([0, 1, 2].map(|value| ring.server(value)), [0, 1, 0].map(Some));
    }

    #[test]
    fn nobody_there() {
        for distribution in Distribution::ALL {
            assert_eq!(Ring::new(distribution, &[]).server(7), None);
        }
    }
}
