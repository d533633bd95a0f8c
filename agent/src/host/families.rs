//! Which families the kernel lacks. I/O: files of the kernel, a netlink socket.

use std::path::Path;

use tracing::debug;

use super::nf_tables::NfTables;
use crate::model::{Family, PerFamily};

/// A file that the kernel has in every network namespace.
const DEVICES: &str = "/proc/self/net/dev";

/// A file that a kernel with IPv6 has in every network namespace, where `net.ipv6.conf.all.disable_ipv6` is set too.
const IPV6_ADDRESSES: &str = "/proc/self/net/if_inet6";

/// Why the kernel can have no rules of a family, of each that it lacks. What cannot be told is there: the kernel's refusals tell more.
pub fn lacking() -> PerFamily<Option<&'static str>> {
    PerFamily::from_fn(|family| {
        if family == Family::V6
            && Path::new(DEVICES).exists()
            && !Path::new(IPV6_ADDRESSES).exists()
        {
            return Some("it was started with ipv6.disable=1, or built without CONFIG_IPV6");
        }
        let can_have = NfTables::open().and_then(|tables| tables.can_have(family));
        match can_have {
            Ok(false) => Some(
                "its nf_tables do not have this family (CONFIG_NF_TABLES_IPV4, CONFIG_NF_TABLES_IPV6)",
            ),
            Ok(true) => None,
            Err(error) => {
                debug!("whether nf_tables have {family}: {error}");
                None
            }
        }
    })
}
