//! Connections that are over leave the tables, and those that are not have all that they need there.

use std::sync::atomic::{AtomicU16, Ordering};

use proxyd_ebpf_common as bpf;

use super::lifetimes::{LONG, answer, converse_open, is_tcp, is_udp, shake_hands};
use super::memory::of_tuple;
use super::node::{Node, PODS, UPLINK, check, check_where};
use super::packets::{Kind, Link, Part, Talk};
use super::services::converse;

/// Not masqueraded, and masqueraded.
const WAYS: [u32; 2] = [0, bpf::MASQUERADE_ALL];

/// After so many seconds connections are forgotten that both sides have closed.
const SOON: u64 = 1;

fn serve(node: &mut Node, flags: u32) -> Talk {
    let (call, backend) = (node.call(), node.backend());
    node.serves(call.to, flags, &[backend]);
    call
}

/// How many others called, in all tests.
static CALLERS: AtomicU16 = AtomicU16::new(0);

/// Others, who have not called before, begin connections.
fn others_begin(node: &mut Node, call: Talk) {
    for _ in 0..3 {
        let number = CALLERS.fetch_add(1, Ordering::Relaxed) % 0x0100;
        let other = call.from(node.kind.at(0x0700 + number, 40_001));
        let inside = node.comes_in(UPLINK, other, Part::Syn).unwrap();
        node.goes_out(PODS, inside, Part::Syn).unwrap();
    }
}

/// How much is remembered of a client.
fn remembered(node: &mut Node, client: Talk) -> usize {
    let client = client.from;
    let flows = node.flows().into_iter();
    let of_client = |(key, flow): &(bpf::Tuple, bpf::Flow)| {
        [key, &flow.to].into_iter().any(|tuple| {
            let (from, to) = of_tuple(tuple);
            from == client || to == client
        })
    };
    flows.filter(of_client).count()
}

/// How much there is to remember of a client.
fn whole(flags: u32) -> usize {
    if flags == 0 { 2 } else { 4 }
}

#[test]
fn what_both_sides_have_closed_is_forgotten_soon() {
    for flags in WAYS {
        check_where(is_tcp, |node| {
            let call = serve(node, flags);
            converse(node, call, node.backend());
            others_begin(node, call);
            assert_eq!(
                remembered(node, call),
                whole(flags),
                "packets may come again"
            );
            node.grows_older(SOON);
            others_begin(node, call);
            assert_eq!(remembered(node, call), 0);
        });
    }
}

#[test]
fn what_is_used_after_both_sides_have_closed_it_is_remembered() {
    for flags in WAYS {
        for is_client in [true, false] {
            check_where(is_tcp, |node| {
                let call = serve(node, flags);
                let seen = converse(node, call, node.backend());
                node.grows_older(SOON);
                if is_client {
                    node.comes_in(UPLINK, call, Part::Data).unwrap();
                } else {
                    answer(node, seen, Part::Data);
                }
                others_begin(node, call);
                assert_eq!(remembered(node, call), whole(flags));
            });
        }
    }
}

#[test]
fn what_one_side_has_closed_or_reset_is_remembered() {
    for flags in WAYS {
        for end in [Part::Fin, Part::Rst] {
            check_where(is_tcp, |node| {
                let call = serve(node, flags);
                let seen = converse_open(node, call);
                for _ in 0..2 {
                    let inside = node.comes_in(UPLINK, call, end).unwrap();
                    assert_eq!(node.goes_out(PODS, inside, end), Some(seen));
                }
                node.grows_older(LONG / 2);
                others_begin(node, call);
                assert_eq!(answer(node, seen, Part::Data), call.answer());
            });
        }
    }
}

#[test]
fn a_connection_from_the_port_of_a_closed_one_is_remembered() {
    for flags in WAYS {
        check_where(is_tcp, |node| {
            let call = serve(node, flags);
            converse(node, call, node.backend());
            node.grows_older(SOON);
            let seen = converse_open(node, call);
            node.grows_older(SOON);
            others_begin(node, call);
            assert_eq!(answer(node, seen, Part::Data), call.answer());
        });
    }
}

#[test]
fn what_was_silent_for_long_is_forgotten() {
    for flags in WAYS {
        check(|node| {
            let call = serve(node, flags);
            let inside = node.comes_in(UPLINK, call, Part::Syn).unwrap();
            node.goes_out(PODS, inside, Part::Syn).unwrap();
            node.grows_older(LONG - 1);
            others_begin(node, call);
            assert_eq!(remembered(node, call), whole(flags));
            node.grows_older(1);
            others_begin(node, call);
            assert_eq!(remembered(node, call), 0);
        });
    }
}

#[test]
fn what_is_in_use_is_looked_at_again() {
    for flags in WAYS {
        check(|node| {
            let call = serve(node, flags);
            let seen = converse_open(node, call);
            for _ in 0..3 {
                node.grows_older(LONG - 1);
                assert_eq!(answer(node, seen, Part::Data), call.answer());
                node.grows_older(1);
                others_begin(node, call);
                assert_eq!(answer(node, seen, Part::Data), call.answer());
            }
            node.comes_in(UPLINK, call, Part::Rst).unwrap();
            node.grows_older(LONG);
            others_begin(node, call);
            assert_eq!(remembered(node, call), 0);
        });
    }
}

/// There is room for 32,768 connections, and 80,000 begin and end meanwhile.
#[test]
fn a_silent_connection_outlives_more_than_there_is_room_for() {
    let is_usual = |kind: Kind| is_tcp(kind) && kind.link == Link::Ethernet && kind.is_v4;
    check_where(is_usual, |node| {
        let call = serve(node, 0);
        let seen = converse_open(node, call);
        for round in 0..8 {
            for number in 0..10_000 {
                let other = call.from(node.kind.at(0x0700 + round, 1_024 + number));
                let answers = other.to(node.backend()).answer();
                node.comes_in(UPLINK, other, Part::Syn).unwrap();
                node.comes_in(UPLINK, other, Part::Fin).unwrap();
                node.goes_out(UPLINK, answers, Part::Fin).unwrap();
            }
            node.grows_older(SOON);
        }
        assert_eq!(answer(node, seen, Part::Data), call.answer());
        let inside = node.comes_in(UPLINK, call, Part::Data).unwrap();
        assert_eq!(node.goes_out(PODS, inside, Part::Data), Some(seen));
    });
}

/// Where there is no room for all, one direction may be forgotten and not the other.
#[test]
fn a_client_that_goes_on_has_its_answers_translated_though_they_were_forgotten() {
    for flags in WAYS {
        check(|node| {
            let call = serve(node, flags);
            let seen = shake_hands(node, call);
            node.forgets(call.to(node.backend()).answer());
            node.grows_older(2);
            let inside = node.comes_in(UPLINK, call, Part::Data).unwrap();
            assert_eq!(node.goes_out(PODS, inside, Part::Data), Some(seen));
            assert_eq!(answer(node, seen, Part::Data), call.answer());
            assert_eq!(remembered(node, call), whole(flags));
        });
    }
}

#[test]
fn a_back_end_that_goes_on_has_its_client_translated_though_that_was_forgotten() {
    for flags in WAYS {
        check(|node| {
            let call = serve(node, flags);
            let seen = shake_hands(node, call);
            node.forgets(call);
            node.grows_older(2);
            assert_eq!(answer(node, seen, Part::Data), call.answer());
            assert_eq!(remembered(node, call), whole(flags));
            let inside = node.comes_in(UPLINK, call, Part::Data).unwrap();
            assert_eq!(node.goes_out(PODS, inside, Part::Data), Some(seen));
        });
    }
}

/// UDP asks anew in any case, and finds what has its answers.
#[test]
fn a_client_of_udp_that_was_forgotten_goes_on() {
    for flags in WAYS {
        check_where(is_udp, |node| {
            let call = serve(node, flags);
            let seen = shake_hands(node, call);
            node.forgets(call);
            let inside = node.comes_in(UPLINK, call, Part::Data).unwrap();
            let out = node.goes_out(PODS, inside, Part::Data).unwrap();
            assert_eq!(out.to, seen.to);
            assert_eq!(answer(node, out, Part::Data), call.answer());
        });
    }
}
