//! Names of chains tell what they are for.

use super::*;

#[test]
fn a_name_tells_its_chain() {
    let kinds = [
        Kind::Plain,
        Kind::Cluster,
        Kind::External,
        Kind::ExternalLocal { local: 0 },
        Kind::ExternalLocal { local: 7 },
    ];
    for at in [At::Address, At::NodePort] {
        for kind in kinds {
            for recall in Recall::ALL.map(Some).into_iter().chain([None]) {
                let chain = Chain::Balance {
                    at,
                    kind,
                    count: 32_768,
                    recall,
                };
                assert_eq!(Chain::parse(&chain.to_string()), Some(chain));
            }
        }
    }
    let names = KeyOf::ALL.map(|key| {
        let timeout = AffinityTimeout::DEFAULT;
        let remember = Chain::Remember { key, timeout };
        assert_eq!(Chain::parse(&remember.to_string()), Some(remember));
        remember.to_string()
    });
    assert_eq!(
        names,
        [
            "remember-address-10800",
            "remember-node-port-10800",
            "remember-10800"
        ]
    );
    for other in [
        "balance",
        "cluster-0",
        "lb-x",
        "remember-0",
        "remember-other-3",
        "cluster-3-mixed",
        "external-local-3",
    ] {
        assert_eq!(Chain::parse(other), None, "{other}");
    }
}

#[test]
fn what_a_chain_leads_to_comes_before_it() {
    let chain = Chain::parse("external-local-3-1-sticky").unwrap();
    let names = |detector| -> Vec<String> {
        let chains = chain.with_needed(&detector);
        chains.iter().map(ToString::to_string).collect()
    };
    let all = [
        "lb-3-sticky",
        "external-3-sticky",
        "external-local-3-1-sticky",
    ];
    assert_eq!(names(Detector::Source), all);
    assert_eq!(names(Detector::None), all[1..]);
}
