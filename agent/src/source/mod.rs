//! Where events come from. I/O: a Kubernetes API server, or files.
//!
//! A source turns API objects into the model's own types at once and drops them. It sends events and decides
//! nothing.

pub mod kube;
pub mod manifests;
pub mod reports;
