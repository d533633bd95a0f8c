//! The packet-flow tables: what happens to a connection, for every kind of client, address and Service.
//!
//! Each table is walked by the tracer and by real connections, in both families, TCP, UDP and SCTP; see `proxyd_tests::flows`.
//! In the tables `pod` is a pod on the node under test (node-1) and `pod-3` one on a third node; `client` is outside the
//! cluster; endpoints are `here` and `here2` on node-1, `there` and `there2` on node-2. `M` is "the server sees the node".
//!
//! A row is one moment: objects, and new connections. What becomes of those that are open when objects change is in
//! `tests/tests/changes/`, and how session affinity renews, times out and moves on is in `tests/tests/affinity.rs`: the planned tables
//! that the tracer walks say who has affinity and for how long, and the kernel alone knows which clients it remembers.

mod affinity;
mod endpoints;
mod mark;
mod node_ports;
mod ports;
mod ranges;
mod truth;
mod verdicts;
