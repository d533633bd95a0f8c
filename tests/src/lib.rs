//! What the integration tests stand on: clusters of network namespaces, traffic, the agent under test, an API server.

pub mod agent;
pub mod apiserver;
pub mod cluster;
pub mod envtest;
pub mod flows;
pub mod generation;
pub mod held;
pub mod http;
pub mod inject;
pub mod live;
pub mod load;
pub mod model;
pub mod netns;
pub mod objects;
pub mod random;
pub mod served;
pub mod sockets;
pub mod tables;
pub mod traffic;
pub mod wait;
pub mod web;
pub mod wild;
pub mod world;
pub mod written;
