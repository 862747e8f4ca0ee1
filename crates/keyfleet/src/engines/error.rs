//! What can go wrong while looking for an engine, and the one command that mends it.

use std::fs;

use fleet::model::EngineWant;
use protocol::{Engine, EngineKind};

use super::{EngineBinary, debian::ProvisionError};

/// No engine to run. [`EngineError::hint`] is what the reader should do about it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The spec names a program that cannot be used.
    #[error("engine.path: {path} {reason}")]
    Path { path: String, reason: String },
    /// Neither this machine nor its package sources have what the spec asks for.
    #[error("no {want} on this machine{}", present(.found))]
    NotFound {
        /// The wanted engine in words.
        want: String,
        /// What is here but does not match.
        found: Vec<Engine>,
        /// One command, or one sentence where no command would do.
        hint: String,
        /// Why the distribution's packages could not be used instead.
        source: Box<ProvisionError>,
    },
}

impl EngineError {
    pub(super) fn not_found(
        want: &EngineWant,
        found: &[EngineBinary],
        source: ProvisionError,
    ) -> Self {
        let os_release = ["/etc/os-release", "/usr/lib/os-release"]
            .iter()
            .find_map(|path| fs::read_to_string(path).ok())
            .unwrap_or_default();
        Self::NotFound {
            want: want.to_string(),
            found: found.iter().map(|binary| binary.engine).collect(),
            hint: hint(&os_release, want, &source, rustix::process::geteuid().is_root()),
            source: Box::new(source),
        }
    }

    /// The command that mends it, or what to change in the spec.
    pub fn hint(&self) -> &str {
        match self {
            Self::Path { .. } => "name a server program that runs, or leave engine.path out",
            Self::NotFound { hint, .. } => hint,
        }
    }
}

fn present(found: &[Engine]) -> String {
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    if found.is_empty() { String::new() } else { format!(", only {}", found.join(", ")) }
}

fn hint(os_release: &str, want: &EngineWant, source: &ProvisionError, root: bool) -> String {
    match source {
        ProvisionError::NoSuchVersion { available, .. } => {
            let available: Vec<String> = available.iter().map(ToString::to_string).collect();
            return format!(
                "ask for what this distribution has ({}), or set engine.path to the program",
                available.join(", ")
            );
        }
        ProvisionError::NoPackage(package) => {
            return format!("ask for another engine, or set engine.path to a {package} program");
        }
        _ => {}
    }
    install_command(os_release, want.kind, root).unwrap_or_else(|| {
        let kind = want.kind.unwrap_or(EngineKind::Redis);
        format!("install {kind}-server, or set engine.path to the program")
    })
}

/// The command that installs the engine on the distribution that an os-release(5) file
/// describes; where the spec leaves the product open, the one that the distribution carries.
/// None where no package of it is known; only Fedora's family carries KeyDB.
fn install_command(os_release: &str, kind: Option<EngineKind>, root: bool) -> Option<String> {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
    };
    let names = format!("{} {}", value("ID"), value("ID_LIKE"));
    let (installer, default, suffix) = names.split_whitespace().find_map(|name| match name {
        "debian" | "ubuntu" => Some(("apt-get install -y", EngineKind::Redis, "-server")),
        "fedora" | "rhel" | "centos" => Some(("dnf install -y", EngineKind::Valkey, "")),
        "alpine" => Some(("apk add", EngineKind::Valkey, "")),
        "arch" => Some(("pacman -S --noconfirm", EngineKind::Valkey, "")),
        "suse" | "opensuse" => Some(("zypper --non-interactive install", EngineKind::Valkey, "")),
        _ => None,
    })?;
    let kind = kind.unwrap_or(default);
    let sudo = if root { "" } else { "sudo " };
    let carried = kind != EngineKind::KeyDb || installer.starts_with("dnf");
    carried.then(|| format!("{sudo}{installer} {kind}{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_command_for_each_distribution() {
        let check = |os_release: &str, kind: Option<EngineKind>, expected: Option<&str>| {
            let command = install_command(os_release, kind, false);
            assert_eq!(command.as_deref(), expected, "{os_release} {kind:?}");
        };
        let (redis, valkey) = (Some(EngineKind::Redis), Some(EngineKind::Valkey));
        check("ID=debian\n", None, Some("sudo apt-get install -y redis-server"));
        check("ID=debian\n", valkey, Some("sudo apt-get install -y valkey-server"));
        check("ID=ubuntu\nID_LIKE=debian", None, Some("sudo apt-get install -y redis-server"));
        check(
            "ID=pop\nID_LIKE=\"ubuntu debian\"",
            redis,
            Some("sudo apt-get install -y redis-server"),
        );
        check("NAME=Fedora\nID=fedora", None, Some("sudo dnf install -y valkey"));
        check(
            "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"",
            redis,
            Some("sudo dnf install -y redis"),
        );
        check("ID=alpine", None, Some("sudo apk add valkey"));
        check("ID=arch", None, Some("sudo pacman -S --noconfirm valkey"));
        check(
            "ID=opensuse-leap\nID_LIKE=\"suse opensuse\"",
            None,
            Some("sudo zypper --non-interactive install valkey"),
        );
        check("ID=debian", Some(EngineKind::KeyDb), None);
        check("ID=fedora", Some(EngineKind::KeyDb), Some("sudo dnf install -y keydb"));
        check("ID=nixos", None, None);
        check("", None, None);
        let as_root = install_command("ID=alpine", None, true);
        assert_eq!(as_root.as_deref(), Some("apk add valkey"));
    }
    #[test]
    fn hints_fit_the_reason() {
        let check = |source: ProvisionError, expected: &str| {
            assert_eq!(hint("ID=debian", &EngineWant::default(), &source, false), expected);
        };
        check(ProvisionError::NoApt, "sudo apt-get install -y redis-server");
        let available = ["7.0.15", "8.0.2"]
            .map(|version| Engine { kind: EngineKind::Redis, version: version.parse().unwrap() });
        check(
            ProvisionError::NoSuchVersion {
                package: "redis-server".into(),
                available: available.into(),
            },
            "ask for what this distribution has (redis 7.0.15, redis 8.0.2), or set engine.path to the program",
        );
        check(
            ProvisionError::NoPackage("keydb-server".into()),
            "ask for another engine, or set engine.path to a keydb-server program",
        );
    }
}
