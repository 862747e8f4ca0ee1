//! A spec that was read, with everything that is needed to look at its fleet and to act on it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use fleet::{
    model::{ClusterName, Fleet},
    spec::{self, Machine, SpecError, SpecErrors},
};

use crate::{
    admin_client::Pool,
    engines::{self, EngineBinary, EngineError},
    execute::Context,
    runtimes::process,
    store::{Store, StoreError},
};

/// See the module.
#[derive(Debug)]
pub struct Session {
    pub fleet: Arc<Fleet>,
    pub store: Arc<Store>,
    /// The text of the spec, for messages and for guard.
    pub text: String,
    /// There is no file: the fleet is the built-in one.
    pub built_in: bool,
    pub warnings: Vec<SpecError>,
    parsed: spec::Parsed,
}

/// The spec can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("can't read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}", errors)]
    Spec {
        /// What was parsed, to show the lines.
        text: String,
        errors: SpecErrors,
    },
    #[error("cluster {cluster}: {source}")]
    Engine { cluster: ClusterName, source: EngineError },
    #[error("no directory for unpacked engines: neither HOME nor XDG_CACHE_HOME is set")]
    NoCache,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Session {
    /// Reads the spec. A file that isn't there means the built-in fleet, unless it was `named`.
    pub fn open(file: &Path, named: bool) -> Result<Self, SessionError> {
        let store = Store::beside(file)?;
        match fs::read_to_string(file) {
            Ok(text) => Self::parse(text, &file.display().to_string(), store, false),
            Err(source) if source.kind() == io::ErrorKind::NotFound && !named => {
                Self::parse(spec::BUILT_IN.to_owned(), "(built in)", store, true)
            }
            Err(source) => Err(SessionError::Read { path: file.to_owned(), source }),
        }
    }

    /// What the last `up` applied: what guard keeps. None: nothing is to be kept.
    pub fn applied(file: &Path) -> Result<Option<Self>, SessionError> {
        let store = Store::beside(file)?;
        let Some(text) = store.applied()? else { return Ok(None) };
        Self::parse(text, "applied.yaml", store, false).map(Some)
    }

    fn parse(text: String, name: &str, store: Store, built_in: bool) -> Result<Self, SessionError> {
        let machine = Machine { addresses: process::addresses() };
        let parsed = match spec::parse(&text, name, &machine) {
            Ok(parsed) => parsed,
            Err(errors) => return Err(SessionError::Spec { text, errors }),
        };
        let mut fleet = parsed.fleet.clone();
        for (name, cluster) in &mut fleet.clusters {
            cluster.stopped = store.is_stopped(name);
        }
        Ok(Self {
            fleet: Arc::new(fleet),
            store: Arc::new(store),
            text,
            built_in,
            warnings: parsed.warnings.clone(),
            parsed,
        })
    }

    /// Finds every cluster's engine, and refuses directives that it doesn't know.
    pub async fn engines(&self) -> Result<BTreeMap<ClusterName, EngineBinary>, SessionError> {
        let cache = engines::default_cache().ok_or(SessionError::NoCache)?;
        let mut found = BTreeMap::new();
        let mut unknown = Vec::new();
        for (name, cluster) in &self.fleet.clusters {
            let binary = engines::find(&cluster.engine, &cache)
                .await
                .map_err(|source| SessionError::Engine { cluster: name.clone(), source })?;
            unknown.extend(self.parsed.unknown_directives(name, binary.engine));
            found.insert(name.clone(), binary);
        }
        if unknown.is_empty() {
            Ok(found)
        } else {
            Err(SessionError::Spec { text: self.text.clone(), errors: SpecErrors(unknown) })
        }
    }

    /// What steps are done with.
    pub async fn context(&self) -> Result<Context, SessionError> {
        let engines = Arc::new(self.engines().await?);
        let (fleet, store) = (Arc::clone(&self.fleet), Arc::clone(&self.store));
        Ok(Context { fleet, store, engines, pool: Pool::new() })
    }
}
