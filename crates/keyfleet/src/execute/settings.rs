//! Steps that change what a server runs with: directives and users.

use std::collections::BTreeMap;

use fleet::model::{DirectiveValue, NodeName};
use protocol::Value;
use serde::{Deserialize, Serialize};

use super::{Context, Member, StepError};
use crate::{
    node_files::{NODE_CONF, Place, USERS_ACL, acl_digest, node_conf, users_acl},
    secrets::{OWN_USER, sha256},
    store,
};

/// In a node's directory: which users it loaded.
const ACL_RECORD: &str = "acl.json";

/// What a node's ACL file was, and what the server said of its users right after it was loaded.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct AclRecord {
    /// [`acl_digest`] of the file.
    file: String,
    /// Digest of ACL LIST.
    loaded: String,
}

/// Writes the node's `node.conf` as the spec wants it, for this place.
pub(super) fn write_conf(
    context: &Context,
    member: &Member,
    place: &Place,
) -> Result<(), StepError> {
    let cluster = context.cluster(&member.name.cluster)?;
    let engine = context.engine(&member.name.cluster)?.engine;
    let own = context.store.secret(&cluster.name, OWN_USER)?;
    let text = node_conf(place, cluster, &engine, &own)?;
    Ok(store::replace(&member.directory.join(NODE_CONF), text.as_bytes())?)
}

/// Sets directives on a running server, then writes them to its file. One that the server doesn't
/// take live is an error that names it; those before it stay set.
pub(super) async fn set_config(
    context: &Context,
    node: &NodeName,
    directives: &BTreeMap<String, DirectiveValue>,
) -> Result<(), StepError> {
    let member = context.member(node)?;
    for (name, value) in directives {
        let set = context.call(&member, &["CONFIG", "SET", name, &value.joined()]).await;
        set.map_err(|error| match error {
            StepError::Refused { node, command, source } => {
                StepError::Refused { node, command: format!("{command} {name}"), source }
            }
            error => error,
        })?;
    }
    write_conf(context, &member, &member.place)
}

/// Loads the spec's users. Where the server refuses them, its file is put back.
pub(super) async fn apply_acl(context: &Context, node: &NodeName) -> Result<(), StepError> {
    let member = context.member(node)?;
    let path = member.directory.join(USERS_ACL);
    let before = store::read(&path)?;
    let cluster = context.cluster(&node.cluster)?;
    let wanted = users_acl(&context.fleet, cluster, &context.store)?;
    store::replace(&path, wanted.as_bytes())?;
    if let Err(error) = context.call(&member, &["ACL", "LOAD"]).await {
        if let Some(before) = before {
            store::replace(&path, before.as_bytes())?;
        }
        return Err(error);
    }
    record_acl(context, &member).await
}

/// Remembers which users the server has just loaded.
pub(super) async fn record_acl(context: &Context, member: &Member) -> Result<(), StepError> {
    let file = store::read(&member.directory.join(USERS_ACL))?.unwrap_or_default();
    let list = context.call(member, &["ACL", "LIST"]).await?;
    let record = AclRecord { file: acl_digest(&file), loaded: list_digest(&list) };
    let text = serde_json::to_string(&record).unwrap_or_default();
    Ok(store::replace(&member.directory.join(ACL_RECORD), text.as_bytes())?)
}

/// The digest of the ACL file that a node loaded, if its users are still those; None where they
/// were changed or nothing is remembered.
pub(crate) fn loaded_acl(directory: &std::path::Path, list: &Value) -> Option<String> {
    let text = store::read(&directory.join(ACL_RECORD)).ok()??;
    let record: AclRecord = serde_json::from_str(&text).ok()?;
    (record.loaded == list_digest(list)).then_some(record.file)
}

/// The users' order says nothing.
fn list_digest(list: &Value) -> String {
    let lines = list.as_array().unwrap_or_default().iter().filter_map(Value::as_str);
    let mut lines: Vec<&str> = lines.collect();
    lines.sort_unstable();
    sha256(lines.join("\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_users_says_nothing() {
        let list = |lines: &[&str]| {
            Value::Array(lines.iter().map(|line| Value::Bulk((*line).into())).collect())
        };
        assert_eq!(list_digest(&list(&["a", "b"])), list_digest(&list(&["b", "a"])));
        assert_ne!(list_digest(&list(&["a", "b"])), list_digest(&list(&["a", "c"])));
    }
}
