//! The proxy's own users, from a file that may change while they are served.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak},
};

use fleet::spec::{
    SpecErrors,
    proxy_users::{self, ProxyUser, UserPassword},
};
use proxy::{
    driver::Running,
    engine::{Allowance, Password, Profile, Quota, User},
};

use crate::errors::with_causes;

/// Who may ask how much: by the users' names; of nobody: of all.
pub type Quotas = Arc<RwLock<Vec<(Option<String>, Arc<Quota>)>>>;

/// A user of the proxy's own, whatever it serves.
#[derive(Clone)]
pub struct OwnUser {
    name: String,
    password: Password,
    /// His name and password at the servers; None: what the proxy is there.
    login: Option<(String, String)>,
    quota: Arc<Quota>,
}

impl OwnUser {
    fn new(user: ProxyUser) -> Self {
        let allowance = Allowance {
            clients_max: user.clients_max.map(|max| max as usize),
            requests_per_second: user.requests_per_second.map(u64::from),
            bytes_per_second: user.bytes_per_second,
        };
        let password = match user.password {
            UserPassword::Plain(text) => Password::new(&text),
            UserPassword::Sha256(hash) => Password::hashed(hash),
        };
        let quota = Arc::new(Quota::new(allowance));
        Self { name: user.name, password, login: user.server_login, quota }
    }

    /// At servers where the proxy itself logs in so.
    pub(crate) fn at(&self, own: &Profile) -> User {
        let (user, password) = match &self.login {
            None => (own.user.clone(), own.password.clone()),
            Some((name, password)) => (Some(name.clone()), Some(password.clone())),
        };
        User {
            name: self.name.clone(),
            password: self.password.clone(),
            profile: Profile { user, password, ..own.clone() },
            quota: Some(Arc::clone(&self.quota)),
        }
    }
}

impl std::fmt::Debug for OwnUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnUser").field("name", &self.name).finish_non_exhaustive()
    }
}

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
    /// What it held when it was last good.
    seen: String,
    /// The last error that was told.
    told: String,
}

impl UsersFile {
    /// Reads the file.
    pub fn open(path: &Path) -> Result<(Self, Vec<OwnUser>), UsersError> {
        let seen = text(path)?;
        let users = read(path, &seen)?;
        let told = String::new();
        Ok((Self { path: path.to_owned(), seen, told }, users))
    }

    /// Whom the file names now, where that has changed.
    fn look(&mut self) -> Result<Option<Vec<OwnUser>>, UsersError> {
        let now = text(&self.path)?;
        if now == self.seen {
            return Ok(None);
        }
        let users = read(&self.path, &now)?;
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
#[derive(Clone)]
pub struct Admission {
    loops: Weak<Vec<Running>>,
    quotas: Quotas,
    members: Arc<Mutex<Members>>,
}

/// Who they are, and where.
#[derive(Default)]
pub(crate) struct Members {
    pub users: Vec<OwnUser>,
    /// Pools that they are users of, with how the proxy logs in to the servers there.
    pub pools: Vec<(usize, Profile)>,
}

impl Admission {
    /// Of loops that know these users already; `of_all` is what all clients together may ask.
    pub(crate) fn new(
        loops: &Arc<Vec<Running>>,
        members: Members,
        of_all: Option<Arc<Quota>>,
    ) -> Self {
        let quotas = named(&members.users).chain(of_all.map(|quota| (None, quota)));
        Self {
            loops: Arc::downgrade(loops),
            quotas: Arc::new(RwLock::new(quotas.collect())),
            members: Arc::new(Mutex::new(members)),
        }
    }

    /// What of them is known to Prometheus.
    pub(crate) fn quotas(&self) -> Quotas {
        Arc::clone(&self.quotas)
    }

    /// The members, who stay the same for as long.
    pub(crate) fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the proxy know these users of its own, and no others. See
    /// [`proxy::engine::Engine::set_users`].
    pub fn admit(&self, mut users: Vec<OwnUser>) {
        let Some(loops) = self.loops.upgrade() else { return };
        let mut members = self.members();
        let mut quotas = self.quotas.write().unwrap_or_else(PoisonError::into_inner);
        for user in &mut users {
            let former = quotas.iter().find(|(name, _)| name.as_ref() == Some(&user.name));
            if let Some((_, former)) = former {
                // His clients are counted there.
                former.allow_as(&user.quota);
                user.quota = Arc::clone(former);
            }
        }
        quotas.retain(|(name, _)| name.is_none());
        quotas.splice(..0, named(&users));
        for (pool, profile) in &members.pools {
            let users: Vec<User> = users.iter().map(|user| user.at(profile)).collect();
            loops.iter().for_each(|each| each.set_users(*pool, users.clone()));
        }
        members.users = users;
    }
}

fn named(users: &[OwnUser]) -> impl Iterator<Item = (Option<String>, Arc<Quota>)> {
    users.iter().map(|user| (Some(user.name.clone()), Arc::clone(&user.quota)))
}

fn text(path: &Path) -> Result<String, UsersError> {
    let failed = |source| UsersError::Io { path: path.to_owned(), source };
    fs::read_to_string(path).map_err(failed)
}

fn read(path: &Path, text: &str) -> Result<Vec<OwnUser>, UsersError> {
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
    Ok(users.into_iter().map(OwnUser::new).collect())
}
