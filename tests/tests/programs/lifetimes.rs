//! How long connections are remembered, and what ends them.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proxyd_ebpf_common as bpf;

use super::node::{Node, PODS, UPLINK, check, check_where};
use super::packets::{Kind, Part, Protocol, Talk};
use super::services::converse;

/// Longer than anything is remembered but for connections of TCP that are established, in seconds.
pub(crate) const LONG: u64 = 120;

/// How long a client waits before it asks again, in seconds, and is taken for a new one.
const PATIENCE: u64 = 10;

pub(crate) fn is_tcp(kind: Kind) -> bool {
    kind.protocol == Protocol::Tcp
}

pub(crate) fn is_udp(kind: Kind) -> bool {
    kind.protocol == Protocol::Udp
}

/// The back ends that a client gets who calls so often.
fn chosen(times: u32, mut call: impl FnMut() -> SocketAddr) -> BTreeSet<SocketAddr> {
    (0..times).map(|_| call()).collect()
}

fn serve_two(node: &mut Node, flags: u32) -> Talk {
    let (call, backends) = (node.call(), [node.backend(), node.other_backend()]);
    node.serves(call.to, flags, &backends);
    call
}

fn ask(node: &Node, call: Talk, part: Part) -> SocketAddr {
    node.comes_in(UPLINK, call, part).unwrap().to
}

#[test]
fn who_asks_again_gets_the_same_back_end() {
    check(|node| {
        let call = serve_two(node, 0);
        assert_eq!(chosen(32, || ask(node, call, Part::Syn)).len(), 1);
    });
}

#[test]
fn who_asks_again_much_later_gets_any_back_end() {
    check_where(is_tcp, |node| {
        let call = serve_two(node, 0);
        let later = chosen(64, || {
            node.grows_older(PATIENCE);
            ask(node, call, Part::Syn)
        });
        assert_eq!(later.len(), 2);
    });
}

#[test]
fn a_connection_from_the_port_of_one_that_ended_gets_any_back_end() {
    for end in [Part::Fin, Part::Rst] {
        check_where(is_tcp, |node| {
            let call = serve_two(node, 0);
            let next = chosen(64, || {
                let backend = ask(node, call, Part::Syn);
                assert_eq!(ask(node, call, Part::Data), backend);
                assert_eq!(ask(node, call, end), backend, "{end:?}");
                backend
            });
            assert_eq!(next.len(), 2, "{end:?}");
        });
    }
}

#[test]
fn a_port_is_used_for_one_connection_after_another_masqueraded_or_not() {
    check(|node| {
        let call = node.call();
        let flags = [0, 0, bpf::MASQUERADE_ALL, bpf::MASQUERADE_ALL, 0];
        let backends = [node.backend(), node.other_backend()];
        for (i, flags) in flags.into_iter().enumerate() {
            for backend in [backends[i % 2], backends[1]] {
                node.serves(call.to, flags, &[backend]);
                let seen = converse(node, call, backend);
                assert_eq!(seen.from == call.from, flags == 0);
                node.comes_in(UPLINK, call, Part::Rst).unwrap();
                // Only then does UDP ask anew.
                if node.kind.protocol == Protocol::Udp {
                    node.grows_older(LONG);
                }
            }
        }
    });
}

#[test]
fn what_belongs_to_no_connection_is_left_alone() {
    check_where(is_tcp, |node| {
        let call = serve_two(node, bpf::MASQUERADE_ALL);
        for part in [Part::SynAck, Part::Data, Part::Fin, Part::Rst] {
            for talk in [call, call.answer(), call.to(node.backend())] {
                assert_eq!(node.comes_in(UPLINK, talk, part), Some(talk), "{part:?}");
                assert_eq!(node.goes_out(UPLINK, talk, part), Some(talk), "{part:?}");
            }
        }
        assert_eq!(node.flows(), [], "nothing is remembered");
    });
}

#[test]
fn a_client_of_udp_gets_another_back_end_when_its_own_leaves() {
    check_where(is_udp, |node| {
        for flags in [0, bpf::MASQUERADE_ALL] {
            let call = serve_two(node, flags);
            node.grows_older(LONG);
            let first = ask(node, call, Part::Data);
            assert_eq!(chosen(32, || ask(node, call, Part::Data)).len(), 1);
            let stays = if first == node.backend() {
                node.other_backend()
            } else {
                node.backend()
            };
            node.serves(call.to, flags, &[stays]);
            converse(node, call, stays);
        }
    });
}

#[test]
fn a_connection_of_tcp_outlives_its_back_ends_membership() {
    check_where(is_tcp, |node| {
        let call = serve_two(node, 0);
        let backend = ask(node, call, Part::Syn);
        let other = if backend == node.backend() {
            node.other_backend()
        } else {
            node.backend()
        };
        node.serves(call.to, 0, &[other]);
        for part in [Part::Data, Part::Fin, Part::Data] {
            assert_eq!(ask(node, call, part), backend);
            let answer = Talk {
                from: backend,
                to: call.from,
            };
            assert_eq!(node.goes_out(UPLINK, answer, part), Some(call.answer()));
        }
    });
}

/// A client and a back end shake hands, and then say nothing.
pub(crate) fn shake_hands(node: &Node, call: Talk) -> Talk {
    let inside = node.comes_in(UPLINK, call, Part::Syn).unwrap();
    let seen = node.goes_out(PODS, inside, Part::Syn).unwrap();
    answer(node, seen, Part::SynAck);
    let inside = node.comes_in(UPLINK, call, Part::Data).unwrap();
    assert_eq!(node.goes_out(PODS, inside, Part::Data), Some(seen));
    seen
}

/// The back end says something; tells what becomes of it.
pub(crate) fn answer(node: &Node, seen: Talk, part: Part) -> Talk {
    let inside = node.comes_in(PODS, seen.answer(), part).unwrap();
    node.goes_out(UPLINK, inside, part).unwrap()
}

#[test]
fn a_connection_that_says_nothing_after_its_handshake_is_remembered() {
    for flags in [0, bpf::MASQUERADE_ALL] {
        check_where(is_tcp, |node| {
            let (call, backend) = (node.call(), node.backend());
            node.serves(call.to, flags, &[backend]);
            let seen = shake_hands(node, call);
            node.grows_older(2 * LONG);
            let inside = node.comes_in(UPLINK, call, Part::Data).unwrap();
            assert_eq!(node.goes_out(PODS, inside, Part::Data), Some(seen));
            assert_eq!(answer(node, seen, Part::Data), call.answer());
            // The back end may speak first as well.
            node.grows_older(2 * LONG);
            assert_eq!(answer(node, seen, Part::Data), call.answer());
        });
    }
}

#[test]
fn a_connection_that_never_came_about_is_forgotten_and_so_is_one_that_ended() {
    check_where(is_tcp, |node| {
        let (call, backend) = (node.call(), node.backend());
        node.serves(call.to, bpf::MASQUERADE_ALL, &[backend]);
        let inside = node.comes_in(UPLINK, call, Part::Syn).unwrap();
        let seen = node.goes_out(PODS, inside, Part::Syn).unwrap();
        node.grows_older(LONG);
        let is_forgotten = |seen: Talk| {
            for talk in [call, seen.answer()] {
                assert_eq!(node.comes_in(UPLINK, talk, Part::Data), Some(talk));
            }
            for talk in [inside, inside.answer()] {
                assert_eq!(node.goes_out(UPLINK, talk, Part::Data), Some(talk));
            }
        };
        is_forgotten(seen);
        let seen = converse(node, call, backend);
        node.grows_older(LONG);
        let still = node.comes_in(UPLINK, call, Part::Data);
        assert_eq!(still, Some(call), "both sides have closed it");
        assert_eq!(
            node.comes_in(UPLINK, seen.answer(), Part::Data),
            Some(seen.answer())
        );
    });
}

#[test]
fn a_client_of_udp_that_was_silent_for_long_gets_any_back_end() {
    check_where(is_udp, |node| {
        let call = serve_two(node, 0);
        let later = chosen(64, || {
            node.grows_older(LONG);
            ask(node, call, Part::Data)
        });
        assert_eq!(later.len(), 2);
        // While it talks, it keeps it.
        let kept = chosen(32, || {
            node.grows_older(LONG - 1);
            ask(node, call, Part::Data)
        });
        assert_eq!(kept.len(), 1);
    });
}

#[test]
fn a_back_end_may_answer_after_a_long_time_in_which_only_the_client_spoke() {
    for flags in [0, bpf::MASQUERADE_ALL] {
        check(|node| {
            let (call, backend) = (node.call(), node.backend());
            node.serves(call.to, flags, &[backend]);
            let seen = shake_hands(node, call);
            for _ in 0..5 {
                node.grows_older(LONG / 2);
                let inside = node.comes_in(UPLINK, call, Part::Data).unwrap();
                assert_eq!(node.goes_out(PODS, inside, Part::Data), Some(seen));
            }
            assert_eq!(answer(node, seen, Part::Data), call.answer());
        });
    }
}

#[test]
fn a_client_keeps_its_back_end_while_only_that_speaks() {
    for flags in [0, bpf::MASQUERADE_ALL] {
        check_where(is_udp, |node| {
            let call = serve_two(node, flags);
            let seen = shake_hands(node, call);
            let kept = chosen(16, || {
                for _ in 0..5 {
                    node.grows_older(LONG / 2);
                    assert_eq!(answer(node, seen, Part::Data), call.answer());
                }
                let inside = node.comes_in(UPLINK, call, Part::Data).unwrap();
                assert_eq!(node.goes_out(PODS, inside, Part::Data), Some(seen));
                inside.to
            });
            assert_eq!(kept.len(), 1);
        });
    }
}

#[test]
fn a_connection_that_one_side_resets_is_over_for_both() {
    let ends: [&[Part]; 2] = [&[Part::Rst], &[Part::Fin, Part::Rst]];
    for (is_client, end) in [true, false]
        .into_iter()
        .flat_map(|side| ends.map(|end| (side, end)))
    {
        check_where(is_tcp, |node| {
            let (call, backend) = (node.call(), node.backend());
            node.serves(call.to, bpf::MASQUERADE_ALL, &[backend]);
            let seen = converse_open(node, call);
            for part in end {
                if is_client {
                    let inside = node.comes_in(UPLINK, call, *part).unwrap();
                    assert_eq!(node.goes_out(PODS, inside, *part), Some(seen));
                } else {
                    assert_eq!(answer(node, seen, *part), call.answer());
                }
            }
            let flows = node.flows();
            assert_eq!(flows.len(), 4);
            for (key, flow) in flows {
                assert_eq!(flow.state, bpf::CLOSING, "{key:?}");
            }
        });
    }
}

#[test]
fn a_client_that_never_answers_does_not_establish_a_connection() {
    check_where(is_tcp, |node| {
        let (call, backend) = (node.call(), node.backend());
        node.serves(call.to, bpf::MASQUERADE_ALL, &[backend]);
        let inside = node.comes_in(UPLINK, call, Part::Syn).unwrap();
        let seen = node.goes_out(PODS, inside, Part::Syn).unwrap();
        for _ in 0..3 {
            assert_eq!(answer(node, seen, Part::SynAck), call.answer());
        }
        for (key, flow) in node.flows() {
            assert_ne!(
                flow.state,
                bpf::ESTABLISHED,
                "it would keep its port for a day: {key:?}"
            );
        }
    });
}

/// Both sides have said something.
pub(crate) fn converse_open(node: &Node, call: Talk) -> Talk {
    let seen = shake_hands(node, call);
    assert_eq!(answer(node, seen, Part::Data), call.answer());
    seen
}
