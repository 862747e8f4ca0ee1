//! fleet.yaml: from its text to the typed [`Fleet`], with every error at once, each with its line,
//! column and what mends it.
//!
//! The text becomes a tree that knows where each part stands ([`tree`]); the tree is read into the keys
//! of the spec ([`raw`]), whose doc comments are their reference and whose types give the JSON Schema;
//! defaults and limits make a draft of the model ([`lower`]); what must hold between its parts is
//! checked last ([`check`]). A part that is bad is left out of the later stages and never stops them.
//!
//! Deliberately absent: anything that must be looked up (names, environment, files, engines).

mod check;
mod config;
mod error;
mod lower;
pub mod nutcracker;
mod owned;
mod profile;
mod proxies;
pub mod proxy_users;
mod quantity;
mod raw;
mod read;
mod tree;

use std::{collections::BTreeMap, net::IpAddr};

use protocol::Engine;

pub use error::{SpecError, SpecErrors};
pub use profile::profile_defaults;
pub use quantity::parse_size;

use self::{
    config::unknown_directive,
    raw::FleetSpec,
    read::{Decode, Place, Reader},
    tree::Mark,
};
use crate::model::{ClusterName, Fleet};

/// The fleet that is meant where there is no fleet.yaml: three shards with a replica each, and a proxy
/// for plain clients.
pub const BUILT_IN: &str = "\
clusters:
  main:
    shards: 3
    replicas: 1
proxies:
  main:
    cluster: main
";

/// A fleet.yaml to start from.
pub const STARTER: &str = include_str!("spec/starter.yaml");

/// Where a text begins.
const START: Mark = Mark { line: 1, column: 1, width: 1 };

/// What must be known of the machine, since nothing is looked up here.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Its addresses; loopback ones needn't be among them.
    pub addresses: Vec<IpAddr>,
}

/// A spec that is sound.
#[derive(Clone, Debug)]
pub struct Parsed {
    pub fleet: Fleet,
    /// What is probably not meant.
    pub warnings: Vec<SpecError>,
    /// The file's name as it was given.
    file: String,
    /// Where each directive of a cluster's own `config` stands.
    places: BTreeMap<ClusterName, BTreeMap<String, Place>>,
}

impl Parsed {
    /// The directives of a cluster's own `config` that this engine doesn't know, and would refuse to
    /// start with.
    pub fn unknown_directives(&self, cluster: &ClusterName, engine: Engine) -> Vec<SpecError> {
        let own = self.places.get(cluster).into_iter().flatten();
        own.filter_map(|(name, place)| unknown_directive(engine, name, &self.file, place)).collect()
    }
}

/// Read a spec. `file` is its name for messages.
pub fn parse(text: &str, file: &str, machine: &Machine) -> Result<Parsed, SpecErrors> {
    let mut reader = Reader::new(file);
    let parts = read_parts(text, machine, &mut reader);
    let (errors, warnings) = reader.finish();
    match parts {
        Some((fleet, places)) if errors.is_empty() => {
            Ok(Parsed { fleet, warnings, file: file.to_owned(), places })
        }
        _ => Err(SpecErrors(errors)),
    }
}

type Places = BTreeMap<ClusterName, BTreeMap<String, Place>>;

/// None only where an error was reported.
fn read_parts(text: &str, machine: &Machine, reader: &mut Reader) -> Option<(Fleet, Places)> {
    let start = Place { mark: START, path: String::new() };
    let root = match tree::read(text) {
        Ok(Some(root)) => root,
        Ok(None) => {
            reader
                .error(&start, "the file says nothing")
                .hint("begin with \"clusters:\"; keyfleet init writes a file to start from");
            return None;
        }
        Err(bad) => {
            let place = Place { mark: bad.mark, path: String::new() };
            reader.error(&place, bad.message).hint = bad.hint;
            return None;
        }
    };
    let spec = FleetSpec::decode(&root, reader)?;
    let draft = lower::lower(spec, machine, reader);
    check::check(&draft, reader);
    let mut places = Places::new();
    let mut clusters = BTreeMap::new();
    for cluster in draft.clusters {
        let name = cluster.name.value.clone();
        let own = cluster.config.iter().flatten();
        places
            .insert(name.clone(), own.map(|(name, at)| (name.clone(), at.place.clone())).collect());
        clusters.insert(name, cluster.into_cluster()?);
    }
    let hosts = draft.hosts.by_id.into_iter();
    let hosts =
        hosts.map(|(id, host)| Some((id.clone(), host.into_host(id)?))).collect::<Option<_>>()?;
    let proxies = draft.proxies.into_iter();
    let proxies = proxies
        .map(|proxy| Some((proxy.name.clone(), proxy.into_proxy()?)))
        .collect::<Option<_>>()?;
    Some((Fleet { hosts, clusters, proxies, guard: draft.guard? }, places))
}

/// The JSON Schema of fleet.yaml, for editors; every key with its reference text.
pub fn json_schema() -> serde_json::Value {
    schemars::schema_for!(FleetSpec).to_value()
}
