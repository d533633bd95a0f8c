//! proxyd: a Kubernetes service proxy. Services and EndpointSlices in, rules of the kernel out.
//!
//! Data flows one way: `source` → [`event`] → [`model`] → [`plan`] → [`diff`] → [`dataplane`], with
//! [`engine`] as the one owner of state, and [`machine`] to say when it syncs. I/O is at the edges only. ARCHITECTURE.md has the map.

pub mod cli;
mod complaints;
pub mod config;
pub mod dataplane;
pub mod diff;
pub mod dry_run;
pub mod engine;
pub mod event;
pub mod host;
pub mod http;
pub mod logging;
pub mod machine;
pub mod model;
pub mod plan;
pub mod relay;
pub mod run;
pub mod source;
pub mod status;
mod sync_loop;
mod telling;
#[cfg(test)]
mod testing;
pub mod trace;
pub mod version;
