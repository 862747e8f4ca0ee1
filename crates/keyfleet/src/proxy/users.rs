//! The proxy's own users, from a file that may change while they are served.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, Weak},
};

use fleet::spec::{
    SpecErrors,
    proxy_users::{self, ProxyUser, UserPassword},
};
use proxy::{
    driver::Running,
    engine::{Allowance, Password, Profile, Quota, User},
};

/// Who may ask how much: by the users' names; of nobody: of all.
pub type Quotas = Arc<RwLock<Vec<(Option<String>, Arc<Quota>)>>>;

use crate::errors::with_causes;

/// The file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    #[error("cannot read {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Spec(#[from] SpecErrors),
}

/// A file of users.
pub struct UsersFile {
    path: PathBuf,
    own: Profile,
    /// What it held when it was last good.
    seen: String,
    /// The last error that was told.
    told: String,
}

impl UsersFile {
    /// Reads the file. Who has no login of his own at the servers is there what the proxy is.
    pub fn open(path: &Path, own: &Profile) -> Result<(Self, Vec<User>), UsersError> {
        let seen = text(path)?;
        let users = read(path, &seen, own)?;
        let told = String::new();
        Ok((Self { path: path.to_owned(), own: own.clone(), seen, told }, users))
    }

    /// Whom the file names now, where that has changed.
    fn look(&mut self) -> Result<Option<Vec<User>>, UsersError> {
        let now = text(&self.path)?;
        if now == self.seen {
            return Ok(None);
        }
        let users = read(&self.path, &now, &self.own)?;
        self.seen = now;
        Ok(Some(users))
    }

    /// Lets those in whom the file names now. Where it can't be read all stays as it is, which is told
    /// once, and `again` where somebody asks.
    pub fn follow(&mut self, admission: &Admission, again: bool) {
        if again {
            self.told.clear();
        }
        match self.look() {
            Ok(None) => self.told.clear(),
            Ok(Some(users)) => {
                self.told.clear();
                tracing::info!(users = users.len(), "as {} says now", self.path.display());
                admission.admit(users);
            }
            Err(error) => {
                // A file may be half written.
                let text = with_causes(&error);
                if text != self.told {
                    tracing::error!("the users stay who they are: {text}");
                }
                self.told = text;
            }
        }
    }
}

/// The users of a proxy that runs.
pub struct Admission {
    pub(super) loops: Weak<Vec<Running>>,
    pub(super) quotas: Quotas,
}

impl Admission {
    /// Has the proxy know these users of its own, and no others. See
    /// [`proxy::engine::Engine::set_users`].
    pub fn admit(&self, mut users: Vec<User>) {
        let Some(loops) = self.loops.upgrade() else { return };
        let mut quotas = self.quotas.write().unwrap_or_else(PoisonError::into_inner);
        for user in &mut users {
            let former = quotas.iter().find(|(name, _)| name.as_ref() == Some(&user.name));
            if let (Some((_, former)), Some(new)) = (former, &user.quota) {
                // His clients are counted there.
                former.allow_as(new);
                user.quota = Some(Arc::clone(former));
            }
        }
        quotas.retain(|(name, _)| name.is_none());
        let named = |user: &User| Some((Some(user.name.clone()), user.quota.clone()?));
        quotas.splice(..0, users.iter().filter_map(named));
        for each in loops.iter() {
            each.set_users(0, users.clone());
        }
    }
}

fn text(path: &Path) -> Result<String, UsersError> {
    let failed = |source| UsersError::Io { path: path.to_owned(), source };
    fs::read_to_string(path).map_err(failed)
}

fn read(path: &Path, text: &str, own: &Profile) -> Result<Vec<User>, UsersError> {
    let failed = |source| UsersError::Io { path: path.to_owned(), source };
    let users = proxy_users::parse(text, &path.display().to_string())?;
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
