//! keyfleet in twemproxy's place: same commands, same answers, same servers.

use tests::{
    differential,
    twemproxy::{Pool, Proxy, Twins, compare},
};

/// What the comparison itself is worth: twemproxy beside twemproxy shows no difference.
#[tokio::test]
async fn twemproxy_is_like_itself() {
    let pool = Pool { hash_tag: Some("{}"), weights: &[1, 2, 1], ..Pool::default() };
    let twins = Twins::start(&[pool]).await.unwrap();
    let _left = Proxy::nutcracker(&twins.files[0], &twins.side(0)).await.unwrap();
    let _right = Proxy::nutcracker(&twins.files[1], &twins.side(1)).await.unwrap();
    differential::compare(twins.listen[0], &twins.backends(), 2_000, 1).unwrap();
}

#[tokio::test]
async fn keyfleet_is_like_twemproxy() {
    compare(10_000, 1).await.unwrap();
}
