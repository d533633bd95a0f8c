//! The packet-flow tables: what happens to a connection, for every kind of client, address and Service.
//!
//! Each table is walked by the tracer and by real connections, in both families, TCP and UDP; see `proxyd_tests::flows`.
//! In the tables `pod` is a pod on the node under test (node-1) and `pod-3` one on a third node; `client` is outside the
//! cluster; endpoints are `here` and `here2` on node-1, `there` and `there2` on node-2. `M` is "the server sees the node".

mod endpoints;
mod node_ports;
mod ranges;
mod truth;
mod verdicts;
