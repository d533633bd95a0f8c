//! How the table comes into the kernel: what the agent sends is what nft makes of the dry run's text; and what a newer nft has made
//! beside, on which an older one crashes, does not matter.

#![expect(
    clippy::unwrap_used,
    reason = "a test panics where something is not as it must be"
)]

use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;

use proxyd::dataplane::nft::{Duty, Skeleton, SkeletonConfig, batch, render};
use proxyd::diff::{Change, Delta, Verdict};
use proxyd::model::{AffinityTimeout, Family, Frontend, PerFamily, Port, Protocol};
use proxyd::plan::{Affinity, Detector, Policy};
use proxyd_tests::agent::{Agent, nft, run_once};
use proxyd_tests::held::{Held, Kernel, attribute, message};
use proxyd_tests::netns::Netns;
use proxyd_tests::world::PATIENCE;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples");

/// `NFPROTO_IPV4`, `NFPROTO_IPV6`, `NFPROTO_INET`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const INET: u8 = 1;

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => IPV4,
        Family::V6 => IPV6,
    }
}

/// A front end of every shape that chains are made for, but for those whose rules are comments in the text: front ends with the key of
/// another one.
fn every_shape(family: Family) -> Delta {
    let address = |number: u8| -> IpAddr {
        match family {
            Family::V4 => [10, 96, 0, number].into(),
            Family::V6 => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number)].into(),
        }
    };
    let policies = [
        (Policy::Cluster, 0),
        (Policy::External, 0),
        (Policy::ExternalLocal, 0),
        (Policy::ExternalLocal, 2),
    ];
    let sticky = [None, AffinityTimeout::new(60)];
    let verdicts = policies.into_iter().flat_map(|(policy, local)| {
        let verdict = Verdict::Balance {
            policy,
            count: 3,
            local,
            affinity: None,
        };
        sticky.map(|timeout| (verdict, timeout))
    });
    let verdicts = verdicts.chain([(Verdict::Drop, None), (Verdict::Reject, None)]);
    let rules = (1_u8..)
        .zip(verdicts)
        .flat_map(|(number, (verdict, timeout))| {
            let port = Port::new(u16::from(number)).unwrap();
            let protocol = Protocol::Tcp;
            let at_address = Frontend::Address {
                ip: address(number),
                protocol,
                port,
            };
            let node_port = Frontend::NodePort {
                family,
                protocol,
                port,
            };
            [at_address, node_port].map(|key| Change {
                key,
                from: None,
                to: Some(sticky_at(key, verdict, timeout)),
            })
        });
    Delta {
        rules: rules.collect(),
        ..Delta::default()
    }
}

/// A verdict on a front end whose clients are remembered by what they call.
fn sticky_at(frontend: Frontend, verdict: Verdict, timeout: Option<AffinityTimeout>) -> Verdict {
    match (verdict, timeout) {
        (
            Verdict::Balance {
                policy,
                count,
                local,
                ..
            },
            Some(timeout),
        ) => Verdict::Balance {
            policy,
            count,
            local,
            affinity: Some(Affinity {
                timeout,
                key: frontend,
                is_mixed: frontend.address().is_none() || policy == Policy::ExternalLocal,
            }),
        },
        (verdict, _) => verdict,
    }
}

/// Takes out the differences that are meant.
fn comparable(mut held: Held, family: Family) -> Held {
    for expressions in held.rules.values_mut().flatten() {
        // nft 1.0.6 turns the one byte of a protocol around, which does nothing, and which some kernels refuse.
        expressions.retain(|expression| expression.kind != "byteorder");
    }
    if family == Family::V6 {
        // Chains that remember IPv6 clients are comments in the text.
        held.chains.retain(|name, _| !name.starts_with("remember-"));
        held.rules.retain(|name, _| !name.starts_with("remember-"));
    }
    held
}

#[test]
fn the_agents_messages_and_the_dry_runs_text_make_the_same_table() {
    let interface = |name: &str, prefix| Detector::Interface {
        name: name.to_owned(),
        prefix,
    };
    let detectors = [
        Detector::None,
        Detector::Source,
        interface("cbr0", false),
        interface("veth", true),
    ];
    let mut chains = 0;
    for family in Family::ALL {
        for (duty, masquerade_bit) in [(Duty::Balance, 14), (Duty::Balance, 31), (Duty::Refuse, 0)]
        {
            for detector in &detectors {
                let config = SkeletonConfig {
                    detector: PerFamily::from_fn(|_| detector.clone()),
                    masquerade_bit,
                    rejects_unused_ports: true,
                };
                let skeleton = Skeleton::with(duty, family, &config);
                let delta = match duty {
                    Duty::Balance => every_shape(family),
                    Duty::Refuse => Delta::default(),
                };
                let [by_agent, by_nft] = [Netns::new().unwrap(), Netns::new().unwrap()];
                let kernel = Kernel::of(&by_agent).unwrap();
                // Over another one, and over its like.
                nft(
                    &by_agent,
                    &["-f", "-"],
                    "table ip proxyd { set x { type mark; }; }",
                );
                for _ in 0..2 {
                    kernel.commit(&batch::made(&skeleton, &delta)).unwrap();
                }
                let text =
                    render::program(&skeleton, &delta) + &render::add_elements(&skeleton, &delta);
                nft(&by_nft, &["-f", "-"], &text);

                let held = |netns| {
                    let held = Kernel::of(netns).unwrap().held(number(family), "proxyd");
                    comparable(held.unwrap(), family)
                };
                let (ours, theirs) = (held(&by_agent), held(&by_nft));
                let what = format!("{family} {duty:?} {detector:?}");
                assert_eq!(ours.table, theirs.table, "{what}");
                assert_eq!(ours.sets, theirs.sets, "{what}");
                assert_eq!(ours.chains, theirs.chains, "{what}");
                assert_eq!(ours.rules, theirs.rules, "{what}");
                assert!(ours.sets.len() == 20 && !ours.rules.is_empty(), "{what}");
                chains += ours.chains.len();
            }
        }
    }
    assert!(chains > 400, "{chains} chains were compared");
}

/// No rule that the agent sends has what Linux 6.12.117 refuses.
#[test]
fn the_agent_turns_no_bytes_around() {
    for family in Family::ALL {
        let config = SkeletonConfig {
            detector: PerFamily::default(),
            masquerade_bit: 14,
            rejects_unused_ports: true,
        };
        for duty in [Duty::Balance, Duty::Refuse] {
            let netns = Netns::new().unwrap();
            let kernel = Kernel::of(&netns).unwrap();
            let skeleton = Skeleton::with(duty, family, &config);
            kernel
                .commit(&batch::made(&skeleton, &Delta::default()))
                .unwrap();
            let held = kernel.held(number(family), "proxyd").unwrap();
            let mut kinds = held.rules.values().flatten().flatten();
            assert!(kinds.clone().any(|expression| expression.kind == "lookup"));
            assert!(!kinds.any(|expression| expression.kind == "byteorder"));
        }
    }
}

/// A table `foreign` with a set of addresses, in the bytes that nft 1.1.3 sends for
/// `add set ip foreign s { type ipv4_addr; }`. It writes the type of the key as an expression, and 1.0.6 crashes on that.
fn as_newer_nft(family: u8) -> Vec<u8> {
    const BEGIN: u16 = 16;
    const END: u16 = 17;
    const NEW_TABLE: u16 = 10 << 8;
    const NEW_SET: u16 = 10 << 8 | 9;
    const CREATE: u16 = 0x400;
    const ACK: u16 = 4;
    let user_data = [
        0, 4, 2, 0, 0, 0, // the byte order of the key
        3, 8, 0, 4, 4, 0, 0, 0, 1,
        0, // what it is: an expression of kind 4, of which nothing more is said
    ];
    let set = [
        attribute(1, b"foreign\0"),
        attribute(2, b"s\0"),
        attribute(3, &0_u32.to_be_bytes()),
        attribute(4, &7_u32.to_be_bytes()),
        attribute(5, &4_u32.to_be_bytes()),
        attribute(10, &1_u32.to_be_bytes()),
        attribute(13, &user_data),
    ];
    let table = [attribute(1, b"foreign\0"), attribute(2, &[0; 4])];
    [
        message(BEGIN, 0, 0, &[]),
        message(NEW_TABLE, 0, family, &table.concat()),
        message(NEW_SET, CREATE | ACK, family, &set.concat()),
        message(END, 0, 0, &[]),
    ]
    .concat()
}

#[test]
fn tables_of_a_newer_nft_are_nothing_to_the_agent() {
    let netns = Netns::new().unwrap();
    let kernel = Kernel::of(&netns).unwrap();
    let families = [IPV4, IPV6, INET];
    for family in families {
        kernel.commit(&as_newer_nft(family)).unwrap();
    }
    let foreign = || families.map(|family| kernel.held(family, "foreign").unwrap());
    let before = foreign();
    assert!(before.iter().all(|held| held.sets.contains_key("s")));
    let version = nft(&netns, &["--version"], "");
    if version.contains("v1.0.6") {
        // So this is what would become of an agent that has nft load its rules.
        for (args, stdin) in [
            (&["list", "ruleset"][..], ""),
            (
                &["-f", "-"],
                "table ip x {\nset y { type mark; }\n}\nadd element ip x y { 1 }\n",
            ),
        ] {
            let output = netns.run("nft", args, stdin).unwrap();
            assert!(output.status.signal().is_some(), "nft {args:?}: {output:?}");
        }
    }

    let ours = |family: u8| kernel.tables(family).unwrap().contains("proxyd");
    // Another detector makes another version, which replaces the first.
    for more in [&[][..], &["--cluster-cidr", "10.244.0.0/16"]] {
        let args = [
            &["--manifests", EXAMPLES, "--hostname-override", "node-1"],
            more,
        ]
        .concat();
        let agent = Agent::start(&netns, &args);
        agent.wait_for_log("in sync", PATIENCE);
        let (status, log) = agent.terminate();
        assert!(status.success(), "{log:#?}");
        assert!(ours(IPV4) && ours(IPV6));
        assert!(!kernel.held(IPV4, "proxyd").unwrap().rules.is_empty());
    }
    let cleanup = run_once(&netns, &["--cleanup"]);
    assert!(cleanup.status.success(), "{cleanup:?}");
    assert!(!ours(IPV4) && !ours(IPV6));
    assert_eq!(foreign(), before);
}
