//! The distribution's packages that tasks need, installed where we may.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::command::{is_here, output, run};

/// Where Debian's packages ask whether they may start services: policy-rc.d(8) says.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs the packages of those programs that are not on PATH, without starting services.
/// Each pair is a program and its package.
pub fn need(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| !is_here(program))
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() { Ok(()) } else { install(&missing) }
}

/// Installs packages without starting services.
pub fn install(missing: &[&str]) -> Result<()> {
    let packages = missing.join(" ");
    if output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("the tests need packages: run `sudo apt-get install -y {packages}`");
    }
    eprintln!("installing {packages}");
    let _quiet = NoServices::new()?;
    let attempt = || {
        let mut command = Command::new("apt-get");
        command.args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(missing);
        output(command.env("DEBIAN_FRONTEND", "noninteractive"))
    };
    if attempt().is_err() {
        // The package lists may be missing or old.
        run(Command::new("apt-get").args(["update", "--quiet"]))?;
        attempt()?;
    }
    Ok(())
}

/// While it lives, packages that are installed start no services.
struct NoServices {
    ours: bool,
}

impl NoServices {
    /// A policy that is there already is left alone.
    fn new() -> Result<Self> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n").context(POLICY)?;
            fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}
