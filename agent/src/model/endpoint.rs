//! EndpointSlices: which addresses stand behind a Service, and in which condition they are.

use std::net::IpAddr;

use super::{ObjectName, Port, Protocol};

/// What proxyd keeps of an EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// The slice's own namespace and name.
    pub name: ObjectName,
    /// The Service it belongs to (label `kubernetes.io/service-name`).
    pub service: ObjectName,
    /// The ports that every endpoint of the slice has.
    pub ports: Box<[SlicePort]>,
    /// The endpoints.
    pub endpoints: Box<[Endpoint]>,
}

/// A port of a slice; joins the Service port of the same name and protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// The name, empty for the only port of a Service without port names.
    pub name: Box<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port at the endpoint.
    pub port: Port,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its first address; the others have no meaning.
    pub address: IpAddr,
    /// Whether it runs on this node.
    pub place: Place,
    /// It takes new connections.
    pub ready: bool,
    /// It answers, though it may be terminating.
    pub serving: bool,
    /// It is being shut down.
    pub terminating: bool,
    /// Who should use it, if the slice says so. Boxed since most do not.
    pub hints: Option<Box<Hints>>,
}

/// Who should use an endpoint (KEP-2433, KEP-3015).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hints {
    /// Whether `forNodes` names this node; `None` if it names none.
    pub this_node: Option<bool>,
    /// The zones in `forZones`.
    pub zones: Box<[Box<str>]>,
}

/// Where an endpoint runs, as seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// `nodeName` is this node's name.
    Here,
    /// `nodeName` is another node's name.
    Elsewhere,
    /// There is no `nodeName`; it may be here.
    Unknown,
}
