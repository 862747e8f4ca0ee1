//! Client libraries and their usual idioms.

use tests::{clients, engines::engine, server::Server};

/// The checks hold on a plain server, so that what fails through something else is its fault.
async fn check_plain(program: &str, args: &[&str]) {
    let server = Server::start(&engine("redis", "7.0").server, &[]).await.unwrap();
    clients::run(program, server.address, args).await.unwrap();
}

#[tokio::test]
async fn redis_py_on_a_plain_server() {
    check_plain("redis_py.py", &["2"]).await;
    check_plain("redis_py.py", &["3"]).await;
}

#[tokio::test]
async fn javascript_clients_on_a_plain_server() {
    check_plain("ioredis.mjs", &["--one"]).await;
    check_plain("node_redis.mjs", &["2", "--one"]).await;
    check_plain("node_redis.mjs", &["3", "--one"]).await;
}

#[tokio::test]
async fn glide_on_a_plain_server() {
    check_plain("valkey_glide.py", &["--one"]).await;
}

#[tokio::test]
async fn go_clients_on_a_plain_server() {
    check_plain("go_redis.go", &["--one"]).await;
    check_plain("redigo.go", &[]).await;
}
