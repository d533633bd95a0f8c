//! What proxyd knows of the cluster: its own slim types, and the snapshot that joins them.
//!
//! The data comes from `source/` through [`crate::event::Event`]; `plan/` reads the snapshot. Nothing
//! here does I/O or reads a clock. Only [`translate`] sees Kubernetes API types.

mod address;
mod device;
mod endpoint;
mod name;
mod nearest;
mod node;
mod parsed;
mod service;
mod service_cidr;
mod snapshot;
pub mod translate;

pub use address::{Family, PerFamily, Port, Protocol};
pub use device::Device;
pub use endpoint::{Endpoint, Hints, Place, Slice, SlicePort};
pub use name::ObjectName;
pub use nearest::nearest;
pub use node::Node;
pub use parsed::{Complaint, Parsed, Trigger};
pub use service::{
    AffinityTimeout, Claimed, Exposure, Frontend, Service, ServicePort, ServiceType, TrafficPolicy,
};
pub use service_cidr::ServiceCidr;
pub use snapshot::{Scope, Snapshot, Touched};
