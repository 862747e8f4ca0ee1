//! keyfleet in twemproxy's place.

use tests::{
    differential::compare,
    twemproxy::{Pool, Proxy, Twins},
};

/// What the comparison itself is worth: twemproxy beside twemproxy shows no difference.
#[tokio::test]
async fn twemproxy_is_like_itself() {
    let pool = Pool {
        hash: "fnv1a_64",
        distribution: "ketama",
        hash_tag: Some("{}"),
        weights: &[1, 2, 1],
        named: true,
    };
    let twins = Twins::start(&pool).await.unwrap();
    let _left = Proxy::nutcracker(&twins.files[0], twins.listen[0]).await.unwrap();
    let _right = Proxy::nutcracker(&twins.files[1], twins.listen[1]).await.unwrap();
    compare(twins.listen, &twins.backends(), 20_000, 1).unwrap();
}
