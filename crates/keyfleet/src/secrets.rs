//! Passwords: made once, kept in files of mode 0600, never printed.

use std::{
    env, fmt,
    fs::{self, File},
    io::{self, Read as _},
    path::PathBuf,
};

use fleet::model::{ClusterName, PasswordSource};
use sha2::{Digest as _, Sha256};

use crate::store::{Store, StoreError};

/// The ACL user that keyfleet itself and the nodes' replication links log in as. It has all rights.
pub const OWN_USER: &str = "keyfleet";

/// A password. It prints as `[redacted]`; only [`Secret::expose`] shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// 32 random bytes of the kernel as 64 hexadecimal digits.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(hex(&bytes)))
    }

    /// The password itself: for the wire and for files of mode 0600, nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What an ACL rule `#…` holds: the SHA-256 in hexadecimal.
    pub fn sha256(&self) -> String {
        sha256(self.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A password that can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("user {user} of {cluster}: the environment variable {variable} is not set")]
    NoVariable { cluster: ClusterName, user: String, variable: String },
    #[error("user {user} of {cluster}: the password file {path}: {source}")]
    File { cluster: ClusterName, user: String, path: PathBuf, source: io::Error },
    #[error("user {user} of {cluster}: the password is empty")]
    Empty { cluster: ClusterName, user: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A spec user's password; None where the spec wants none. Generated ones are made on the first
/// call.
pub fn resolve(
    store: &Store,
    cluster: &ClusterName,
    user: &str,
    source: &PasswordSource,
) -> Result<Option<Secret>, SecretError> {
    let named = || (cluster.clone(), user.to_owned());
    let text = match source {
        PasswordSource::None => return Ok(None),
        PasswordSource::Generated => return Ok(Some(store.secret(cluster, user)?)),
        PasswordSource::Env(variable) => env::var(variable).map_err(|_| {
            let (cluster, user) = named();
            SecretError::NoVariable { cluster, user, variable: variable.clone() }
        })?,
        PasswordSource::File(path) => fs::read_to_string(path)
            .map(|text| text.lines().next().unwrap_or_default().to_owned())
            .map_err(|source| {
                let (cluster, user) = named();
                SecretError::File { cluster, user, path: path.into(), source }
            })?,
    };
    if text.is_empty() {
        let (cluster, user) = named();
        return Err(SecretError::Empty { cluster, user });
    }
    Ok(Some(Secret::new(text)))
}

/// SHA-256 as 64 hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower case, two digits a byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_printed() {
        let secret = Secret::new("hunter2");
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Some(&secret)).matches("hunter2").count(),
            0
        );
    }

    #[test]
    fn generated_ones_differ() {
        let (one, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert!(one != other);
        assert_eq!(one.expose().len(), 64);
    }

    #[test]
    fn hashes() {
        let expected = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        assert_eq!(Secret::new("secret").sha256(), expected);
    }
}
