//! The proxy's own users, from a file.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use fleet::spec::{
    SpecErrors,
    proxy_users::{self, ProxyUser, UserPassword},
};
use proxy::engine::{Allowance, Password, Profile, Quota, User};

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    #[error("cannot read {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Spec(#[from] SpecErrors),
}

/// Reads the file. Who has no login of his own at the servers is there what the proxy is.
pub fn read(path: &Path, own: &Profile) -> Result<Vec<User>, UsersError> {
    let failed = |source| UsersError::Io { path: path.to_owned(), source };
    let text = fs::read_to_string(path).map_err(failed)?;
    let users = proxy_users::parse(&text, &path.display().to_string())?;
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    let plain = |user: &ProxyUser| {
        matches!(user.password, UserPassword::Plain(_)) || user.server_login.is_some()
    };
    if mode & 0o077 != 0 && users.iter().any(plain) {
        let path = path.display();
        tracing::warn!(%path, "passwords that others on this machine can read: chmod 600 it");
    }
    Ok(users.into_iter().map(|user| into_user(user, own)).collect())
}

fn into_user(user: ProxyUser, own: &Profile) -> User {
    let profile = match user.server_login {
        None => own.clone(),
        Some((name, password)) => {
            Profile { user: Some(name), password: Some(password), ..own.clone() }
        }
    };
    let allowance = Allowance {
        clients_max: user.clients_max.map(|max| max as usize),
        requests_per_second: user.requests_per_second.map(u64::from),
        bytes_per_second: user.bytes_per_second,
    };
    let password = match user.password {
        UserPassword::Plain(text) => Password::new(&text),
        UserPassword::Sha256(hash) => Password::hashed(hash),
    };
    User { name: user.name, password, profile, quota: Some(Arc::new(Quota::new(allowance))) }
}
