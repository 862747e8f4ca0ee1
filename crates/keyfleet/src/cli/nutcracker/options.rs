//! twemproxy's options, read as getopt_long reads them: short ones in clusters, long ones by any
//! beginning that is no other's; what is no option is passed over.

use std::path::PathBuf;

/// What twemproxy logs, from 0 (nothing but what ends it) up.
pub const VERBOSITY_MAX: u8 = 11;

/// What there is to say about the options.
pub const USAGE: &str = "\
Usage: nutcracker [-?hVdDt] [-v verbosity level] [-o output file]
                  [-c conf file] [-s stats port] [-a stats addr]
                  [-i stats interval] [-p pid file] [-m mbuf size]

Options:
  -h, --help             : show this text and exit
  -V, --version          : show the version and exit
  -t, --test-conf        : test the configuration file and exit
  -d, --daemonize        : run as a daemon
  -D, --describe-stats   : show what the stats mean and exit
  -v, --verbose=N        : how much is logged (default: 5, min: 0, max: 11)
  -o, --output=S         : the log file (default: stderr)
  -c, --conf-file=S      : the configuration file (default: /etc/nutcracker/nutcracker.yml,
                           else conf/nutcracker.yml)
  -s, --stats-port=N     : the port of the stats (default: 22222)
  -a, --stats-addr=S     : the address of the stats (default: 0.0.0.0)
  -i, --stats-interval=N : no effect: stats are current (default: 30000 msec)
  -p, --pid-file=S       : a file for the process id (default: none)
  -m, --mbuf-size=N      : no effect (default: 16384 bytes, min: 512, max: 16777216)
";

/// See [`USAGE`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub wanted: Wanted,
    pub daemonize: bool,
    pub verbosity: u8,
    pub log: Option<PathBuf>,
    pub file: Option<PathBuf>,
    pub stats_port: u16,
    pub stats_host: String,
    pub pid_file: Option<PathBuf>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Run,
    Test,
    Description,
    Version,
    Help,
}

/// Options that can't be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("invalid option -- '{0}'")]
    Unknown(String),
    #[error("option -{option} requires {}", what(*.option))]
    Value { option: char },
    #[error("option -s value {0} is not a valid port")]
    Port(u32),
    #[error("mbuf chunk size must be between {} and {} bytes", MBUF.0, MBUF.1)]
    Mbuf,
}

const MBUF: (u32, u32) = (512, 16_777_216);

/// Short name, long name, whether it takes a value.
const ALL: [(char, &str, bool); 13] = [
    ('h', "help", false),
    ('V', "version", false),
    ('t', "test-conf", false),
    ('d', "daemonize", false),
    ('D', "describe-stats", false),
    ('v', "verbose", true),
    ('o', "output", true),
    ('c', "conf-file", true),
    ('s', "stats-port", true),
    ('i', "stats-interval", true),
    ('a', "stats-addr", true),
    ('p', "pid-file", true),
    ('m', "mbuf-size", true),
];

fn what(option: char) -> &'static str {
    match option {
        'o' | 'c' | 'p' => "a file name",
        'a' => "a string",
        'm' => "a non-zero number",
        _ => "a number",
    }
}

/// Reads the arguments behind the program's name.
pub fn parse(words: impl Iterator<Item = String>) -> Result<Options, OptionError> {
    let mut options = Options {
        wanted: Wanted::Run,
        daemonize: false,
        verbosity: 5,
        log: None,
        file: None,
        stats_port: 22_222,
        stats_host: "0.0.0.0".to_owned(),
        pid_file: None,
    };
    let mut words = words;
    while let Some(word) = words.next() {
        if word == "--" {
            break;
        }
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let (option, takes_value) = find_long(name)?;
            let value = match (takes_value, value) {
                (true, Some(value)) => value,
                (true, None) => words.next().ok_or(OptionError::Value { option })?,
                (false, None) => String::new(),
                (false, Some(_)) => return Err(OptionError::Unknown(name.to_owned())),
            };
            options.set(option, &value)?;
        } else if let Some(cluster) = word.strip_prefix('-') {
            let mut letters = cluster.chars();
            while let Some(option) = letters.next() {
                let found = ALL.iter().find(|(short, ..)| *short == option);
                let (_, _, takes_value) =
                    found.ok_or_else(|| OptionError::Unknown(option.to_string()))?;
                if !takes_value {
                    options.set(option, "")?;
                    continue;
                }
                let rest = letters.as_str();
                let value = if rest.is_empty() {
                    words.next().ok_or(OptionError::Value { option })?
                } else {
                    rest.to_owned()
                };
                options.set(option, &value)?;
                break;
            }
        }
    }
    Ok(options)
}

fn find_long(name: &str) -> Result<(char, bool), OptionError> {
    let exact = ALL.iter().find(|(_, long, _)| *long == name);
    let mut beginning = ALL.iter().filter(|(_, long, _)| long.starts_with(name));
    match (exact, beginning.next(), beginning.next()) {
        (Some((short, _, takes_value)), ..) | (None, Some((short, _, takes_value)), None) => {
            Ok((*short, *takes_value))
        }
        _ => Err(OptionError::Unknown(name.to_owned())),
    }
}

impl Options {
    fn set(&mut self, option: char, value: &str) -> Result<(), OptionError> {
        match option {
            'h' => self.wanted = Wanted::Help,
            'D' => self.want(Wanted::Description),
            'V' => self.want(Wanted::Version),
            't' => self.want(Wanted::Test),
            'd' => self.daemonize = true,
            'v' => self.verbosity = number(option, value)?.min(VERBOSITY_MAX.into()) as u8,
            'o' => self.log = Some(value).filter(|value| !value.is_empty()).map(PathBuf::from),
            'c' => self.file = Some(value.into()),
            'p' => self.pid_file = Some(value.into()),
            'a' => value.clone_into(&mut self.stats_host),
            'i' => drop(number(option, value)?),
            's' => {
                let port = number(option, value)?;
                let valid = u16::try_from(port).ok().filter(|port| *port > 0);
                self.stats_port = valid.ok_or(OptionError::Port(port))?;
            }
            _ => match number(option, value)? {
                0 => return Err(OptionError::Value { option }),
                size if size < MBUF.0 || size > MBUF.1 => return Err(OptionError::Mbuf),
                _ => {}
            },
        }
        Ok(())
    }

    /// Of several things the one that twemproxy does first.
    fn want(&mut self, wanted: Wanted) {
        let rank = |wanted| match wanted {
            Wanted::Run => 0,
            Wanted::Test => 1,
            Wanted::Version => 2,
            Wanted::Description => 3,
            Wanted::Help => 4,
        };
        if rank(wanted) > rank(self.wanted) {
            self.wanted = wanted;
        }
    }
}

/// Digits only, as there.
fn number(option: char, value: &str) -> Result<u32, OptionError> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value.parse().ok().filter(|_| digits).ok_or(OptionError::Value { option })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, OptionError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options() {
        let check = |line: &str, expect: &dyn Fn(&mut Options)| {
            let mut expected = parsed("").unwrap();
            expect(&mut expected);
            assert_eq!(parsed(line), Ok(expected), "{line}");
        };
        check("", &|_| {});
        check("-c a.yml", &|o| o.file = Some("a.yml".into()));
        check("-ca.yml", &|o| o.file = Some("a.yml".into()));
        check("--conf-file=a.yml", &|o| o.file = Some("a.yml".into()));
        check("--conf a.yml", &|o| o.file = Some("a.yml".into()));
        check("-dv7", &|o| (o.daemonize, o.verbosity) = (true, 7));
        check("-v 99", &|o| o.verbosity = 11);
        check("-o log -p pid", &|o| (o.log, o.pid_file) = (Some("log".into()), Some("pid".into())));
        check("-s 1 -a ::1", &|o| (o.stats_port, o.stats_host) = (1, "::1".into()));
        check("-i 100 -m 512", &|_| {});
        check("-m 16777216 word", &|_| {});
        check("-- -x", &|_| {});
        check("-t -D -V", &|o| o.wanted = Wanted::Description);
        check("-tV", &|o| o.wanted = Wanted::Version);
        check("-hD", &|o| o.wanted = Wanted::Help);
        check("-t", &|o| o.wanted = Wanted::Test);
    }

    #[test]
    fn refusals_in_its_words() {
        let check = |line: &str, expected: &str| {
            assert_eq!(parsed(line).unwrap_err().to_string(), expected, "{line}");
        };
        check("-q", "invalid option -- 'q'");
        check("--quick", "invalid option -- 'quick'");
        check("--stats 1", "invalid option -- 'stats'");
        check("--help=1", "invalid option -- 'help'");
        check("-v abc", "option -v requires a number");
        check("-v -1", "option -v requires a number");
        check("-i", "option -i requires a number");
        check("-c", "option -c requires a file name");
        check("-a", "option -a requires a string");
        check("-s 0", "option -s value 0 is not a valid port");
        check("-s 65536", "option -s value 65536 is not a valid port");
        check("-m 0", "option -m requires a non-zero number");
        check("-m 511", "mbuf chunk size must be between 512 and 16777216 bytes");
        check("-m 16777217", "mbuf chunk size must be between 512 and 16777216 bytes");
    }
}
