//! Directives that a spec's `config` may not set, and what stands for them.

use super::read::{Place, Reader};

/// Report a directive that keyfleet itself sets or that a cluster can't have; was it one?
pub fn refuse(name: &str, place: &Place, reader: &mut Reader) -> bool {
    let Some((why, instead)) = refusal(name) else { return false };
    reader.error(place, format!("{name:?} {why}")).hint(instead);
    true
}

const SET: &str = "is set by keyfleet";
const NODE_FILES: &str = "remove it: each node has a directory of its own";
const USERS: &str = "give users and their passwords under users";

/// (why, what to do instead)
fn refusal(name: &str) -> Option<(&'static str, &'static str)> {
    if name.starts_with("cluster-announce-") {
        return Some((SET, "remove it: a node announces its host's address and its own ports"));
    }
    if name.starts_with("tls-") {
        return Some(("needs TLS, which is not supported yet", "remove it"));
    }
    Some(match name {
        "port" => (SET, "give the first node's port as ports.tcp"),
        "cluster-port" => (SET, "give the first node's port as ports.bus"),
        "bind" | "bind-source-addr" => {
            (SET, "remove it: a node listens on its host's address, hosts.NAME.address")
        }
        "unixsocket" | "unixsocketperm" => {
            (SET, "remove it: the nodes of a host would share the one socket")
        }
        "protected-mode" => (SET, "remove it: access is decided by users and addresses"),
        "cluster-enabled" => (SET, "remove it: every node is part of a cluster"),
        "cluster-config-file" | "dir" | "logfile" | "pidfile" => (SET, NODE_FILES),
        "cluster-node-timeout" => (SET, "give it as node-timeout"),
        "cluster-allow-replica-migration" => {
            (SET, "remove it: replicas are placed by keyfleet, never by the servers")
        }
        "daemonize" | "supervised" => (SET, "remove it: keyfleet starts and watches the servers"),
        "requirepass" | "masterauth" | "masteruser" | "aclfile" | "user" => (SET, USERS),
        "rename-command" => {
            ("hides commands from keyfleet too", "deny commands in a user's rules instead")
        }
        "replicaof" | "slaveof" => (SET, "remove it: shards and replicas say who follows whom"),
        "replica-announce-ip"
        | "replica-announce-port"
        | "slave-announce-ip"
        | "slave-announce-port" => {
            (SET, "remove it: a node announces its host's address and its own ports")
        }
        "include" => ("is not followed", "put the file's lines here"),
        "active-replica" | "multi-master" => (
            "is refused in a cluster",
            "remove it: with it two nodes take writes for the same slots, and they diverge",
        ),
        _ => return None,
    })
}
