//! The fast path: what goes from device to device at once, and what only the kernel can answer.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use proxyd_ebpf_common as bpf;
use proxyd_tests::wait::eventually;
use proxyd_tests::world::PATIENCE;

use super::node::{
    BACKEND, CLIENT, Fate, Node, POD, PODS, SERVICE, UPLINK, address_of, check_where,
};
use super::packets::{HOPS, Kind, Link, Part, Shape, Talk};

fn is_ethernet(kind: Kind) -> bool {
    kind.link == Link::Ethernet
}

/// Whoever sends frames to the node here.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A packet for the node, as it comes in at a device.
fn arriving(node: &Node, device: u32, talk: Talk, part: Part, shape: &Shape) -> Vec<u8> {
    let segment = node.kind.segment(talk, part);
    let packet = node.kind.shaped(talk, &segment, shape);
    let mut frame = node.kind.framed(&packet);
    frame[..6].copy_from_slice(&address_of(device));
    frame
}

/// What becomes of a packet that comes in, as usual or in another shape.
fn fate(node: &Node, device: u32, talk: Talk, part: Part, shape: &Shape) -> Fate {
    node.packet_in(device, &arriving(node, device, talk, part, shape))
}

/// What is handed to a pod: the packet has passed a router, and comes from its device.
fn handed(node: &Node, talk: Talk, part: Part) -> Vec<u8> {
    let mut frame = arriving(node, PODS, talk, part, &passed(1));
    frame.copy_within(..6, 6);
    frame[..6].copy_from_slice(&SENDER);
    frame
}

fn passed(routers: u8) -> Shape {
    Shape {
        routers,
        ..Shape::default()
    }
}

/// The first packet there, by the kernel, and the first one back, which shows where the back end is.
fn begin(node: &Node, call: Talk) -> Talk {
    wait_for_a_new_tick();
    let inside = call.to(node.backend());
    let usual = Shape::default();
    let became = fate(node, UPLINK, call, Part::Syn, &usual);
    let expected = arriving(node, UPLINK, inside, Part::Syn, &usual);
    assert_eq!(became, Fate::Became(expected));
    let answer = fate(node, PODS, inside.answer(), Part::SynAck, &usual);
    assert_eq!(answer, Fate::Left);
    let out = node.goes_out(UPLINK, inside.answer(), Part::SynAck);
    assert_eq!(out, Some(call.answer()));
    inside
}

/// Waits until the kernel is not asked for a way again that is seen now, but after half a second or more.
fn wait_for_a_new_tick() {
    let now = || Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap());
    let half_a_second = Duration::from_millis(500);
    let tick = |time: Duration| bpf::ticks(time.as_nanos() as u64);
    eventually("a tick has just begun", PATIENCE, || {
        tick(now()) == tick(now() + half_a_second)
    });
}

/// Runs a test with a connection that has begun: what the client calls, and what the back end sees of it.
fn check_begun(test: impl Fn(&mut Node, Talk, Talk) + Send + Sync) {
    check_where(is_ethernet, |node| {
        node.has_fast_path();
        let call = node.call();
        node.serves(call.to, 0, &[node.backend()]);
        let inside = begin(node, call);
        test(node, call, inside);
    });
}

#[test]
fn packets_but_the_first_are_handed_to_the_pod_and_sent_to_the_client() {
    check_begun(|node, call, inside| {
        for part in [Part::Data, Part::Fin, Part::Rst] {
            let usual = Shape::default();
            let there = fate(node, UPLINK, call, part, &usual);
            assert_eq!(there, Fate::Sent(handed(node, inside, part)));
            let back = fate(node, PODS, inside.answer(), part, &usual);
            let expected = arriving(node, PODS, call.answer(), part, &passed(1));
            assert_eq!(back, Fate::Sent(expected));
        }
    });
}

#[test]
fn where_the_device_of_a_pod_is_gone_the_kernel_is_asked() {
    check_begun(|node, call, inside| {
        node.loses_device(PODS);
        let usual = Shape::default();
        let there = fate(node, UPLINK, call, Part::Data, &usual);
        let expected = arriving(node, UPLINK, inside, Part::Data, &usual);
        assert_eq!(there, Fate::Became(expected));
    });
}

#[test]
fn pods_are_answered_at_once() {
    check_where(is_ethernet, |node| {
        node.has_fast_path();
        let from = node.kind.at(POD, 40_001);
        let call = node.call().from(from);
        node.serves(call.to, 0, &[node.backend()]);
        let usual = Shape::default();
        assert!(matches!(
            fate(node, PODS, call, Part::Syn, &usual),
            Fate::Became(_)
        ));
        let answer = call.to(node.backend()).answer();
        let back = fate(node, PODS, answer, Part::SynAck, &usual);
        assert_eq!(back, Fate::Sent(handed(node, call.answer(), Part::SynAck)));
    });
}

#[test]
fn what_a_router_may_have_to_answer_is_left_to_the_kernel() {
    check_begun(|node, call, inside| {
        let options = Shape {
            has_options: true,
            extensions: vec![60],
            ..Shape::default()
        };
        for shape in [passed(HOPS - 1), options] {
            let there = fate(node, UPLINK, call, Part::Data, &shape);
            let expected = arriving(node, UPLINK, inside, Part::Data, &shape);
            assert_eq!(there, Fate::Became(expected), "{shape:?}");
            let back = fate(node, PODS, inside.answer(), Part::Data, &shape);
            assert_eq!(back, Fate::Left, "{shape:?}");
        }
        let enough = fate(node, UPLINK, call, Part::Data, &passed(HOPS - 2));
        assert!(matches!(enough, Fate::Sent(_)), "{enough:?}");
    });
}

/// Towards others than pods a packet has to fit the device.
#[test]
fn answers_that_are_too_long_are_left_to_the_kernel() {
    check_begun(|node, _, inside| {
        let answer = inside.answer();
        let of_length = |length: usize| {
            let headers = node.kind.packet(answer, Part::Data).len() - node.kind.link.length();
            let headers = headers - node.kind.payload(Part::Data).len();
            let payload = vec![7; length - headers];
            let segment = node.kind.segment_with(answer, Part::Data, &payload);
            let packet = node.kind.shaped(answer, &segment, &Shape::default());
            let mut frame = node.kind.framed(&packet);
            frame[..6].copy_from_slice(&address_of(PODS));
            node.packet_in(PODS, &frame)
        };
        assert!(matches!(of_length(1_500), Fate::Sent(_)));
        assert_eq!(of_length(1_501), Fate::Left);
    });
}

#[test]
fn the_kernel_is_asked_again_where_a_client_is_that_is_no_pod() {
    check_begun(|node, _, inside| {
        let answer = inside.answer();
        let back = |node: &Node| fate(node, PODS, answer, Part::Data, &Shape::default());
        node.grows_older(3);
        assert_eq!(back(node), Fate::Left);
        node.goes_out(UPLINK, answer, Part::Data).unwrap();
        assert!(matches!(back(node), Fate::Sent(_)));
    });
}

#[test]
fn a_packet_that_is_masqueraded_or_not_for_the_node_goes_the_usual_way() {
    check_where(is_ethernet, |node| {
        node.has_fast_path();
        let call = node.call();
        node.serves(call.to, bpf::MASQUERADE_ALL, &[node.backend()]);
        super::services::converse(node, call, node.backend());

        let other = node.kind.at(CLIENT, 40_002);
        let call = call.from(other).to(node.kind.at(SERVICE, 81));
        node.serves(call.to, 0, &[node.backend()]);
        begin(node, call);
        // These frames are for somebody else, of whom a bridge may know.
        let inside = node.comes_in(UPLINK, call, Part::Data).unwrap();
        assert_eq!(inside, call.to(node.kind.at(BACKEND, 8_080)));
    });
}
