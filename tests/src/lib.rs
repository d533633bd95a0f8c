//! Tests.

pub mod agent;
pub mod apiserver;
pub mod cluster;
pub mod envtest;
pub mod generation;
pub mod netns;
pub mod traffic;
pub mod wait;
