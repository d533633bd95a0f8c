//! What the demo needs to know from the manifests: the pods to make, and the Services' addresses to ask.
//!
//! It reads the same files as the agent, but only here to build the world that they describe. They are ours, so a mistake
//! in them is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::Value;

/// The label that says which Service a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The manifests' content.
#[derive(Debug, Default)]
pub(crate) struct Examples {
    /// The pods that the EndpointSlices name.
    pub(crate) pods: Vec<PodSpec>,
    services: BTreeMap<String, Service>,
    endpoints: BTreeMap<String, BTreeSet<String>>,
}

/// A pod to make.
#[derive(Debug)]
pub(crate) struct PodSpec {
    /// Its name.
    pub(crate) name: String,
    /// Its node's name.
    pub(crate) node: String,
    /// One address of each family that a slice has.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// What it listens on.
    pub(crate) ports: BTreeSet<u16>,
}
