use super::*;

#[test]
fn the_texts_here_parse() {
    for text in [BUILT_IN, STARTER, "clusters: {main: }"] {
        let parsed = parse(text, "fleet.yaml", &Machine::default());
        let parsed = parsed.unwrap_or_else(|errors| panic!("{}", errors.render(text)));
        assert_eq!(parsed.warnings, []);
        let cluster = parsed.fleet.clusters.values().next().unwrap();
        assert_eq!((cluster.shards, cluster.replicas), (3, 1));
    }
}
