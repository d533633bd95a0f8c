//! What proxyd asks of the machine it runs on. I/O: rtnetlink, connection tracking.

pub mod addresses;
pub mod conntrack;
pub mod reconciler;
