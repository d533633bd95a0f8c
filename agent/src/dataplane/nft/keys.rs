//! The bytes of a key → what its element is about.
//!
//! Pure. The other way is in `encode`, which says how the kernel keeps them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::elements::Set;
use crate::diff::Slot;
use crate::model::{Family, Frontend, Port, Protocol};
use crate::plan::{Backend, Member};

/// What an element is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    /// A front end.
    Frontend(Frontend),
    /// The place of a back end.
    Slot(Slot),
    /// A member of a set.
    Member(Member),
}

/// What the element of a key is about. `None` if proxyd writes no such key, or if the set is one of intervals.
pub(super) fn subject(set: Set, key: &[u8], family: Family) -> Option<Subject> {
    let mut key = Reader::new(key, family);
    let subject = match set {
        Set::Services | Set::NoEndpoints | Set::Affinities | Set::AffinityKeys => {
            Subject::Frontend(key.frontend(true)?)
        }
        Set::NodePorts
        | Set::NoEndpointNodePorts
        | Set::NodePortAffinities
        | Set::NodePortAffinityKeys => Subject::Frontend(key.frontend(false)?),
        Set::Endpoints | Set::NodePortEndpoints => {
            let frontend = key.frontend(set == Set::Endpoints)?;
            let index = key.index()?;
            Subject::Slot(Slot { frontend, index })
        }
        Set::Hairpin => {
            let (from, to) = (key.ip()?, key.ip()?);
            Subject::Member(Member::Hairpin((from == to).then_some(from)?))
        }
        Set::NodePortAddresses => Subject::Member(Member::NodePortAddress(key.ip()?)),
        Set::ClusterIps => Subject::Member(Member::ClusterIp(key.ip()?)),
        Set::Guarded => Subject::Member(Member::Guarded(key.frontend(true)?)),
        Set::OuterAddresses => Subject::Member(Member::OuterAddress(key.ip()?)),
        Set::ServiceNetworks | Set::PodNetworks | Set::AllowedSources => return None,
    };
    Some(subject)
}

/// Takes the fields of a key apart, from the front.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    family: Family,
}

impl<'a> Reader<'a> {
    /// Begins at the front of a key.
    pub(super) const fn new(bytes: &'a [u8], family: Family) -> Self {
        Self { bytes, family }
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>()?;
        self.bytes = rest;
        Some(*taken)
    }

    /// An IP address of the family.
    pub(super) fn ip(&mut self) -> Option<IpAddr> {
        Some(match self.family {
            Family::V4 => Ipv4Addr::from(self.take::<4>()?).into(),
            Family::V6 => Ipv6Addr::from(self.take::<16>()?).into(),
        })
    }

    /// A transport protocol.
    pub(super) fn protocol(&mut self) -> Option<Protocol> {
        let [number, ..] = self.take::<4>()?;
        Protocol::ALL
            .into_iter()
            .find(|protocol| protocol.number() == number)
    }

    /// A port.
    pub(super) fn port(&mut self) -> Option<Port> {
        let [high, low, ..] = self.take::<4>()?;
        Port::new(u16::from_be_bytes([high, low]))
    }

    /// The index of a back end.
    pub(super) fn index(&mut self) -> Option<u16> {
        u16::try_from(u32::from_ne_bytes(self.take::<4>()?)).ok()
    }

    /// A back end.
    pub(super) fn backend(&mut self) -> Option<Backend> {
        Some(Backend {
            ip: self.ip()?,
            port: self.port()?,
        })
    }

    /// A front end at an address, or a NodePort.
    pub(super) fn frontend(&mut self, with_address: bool) -> Option<Frontend> {
        Some(if with_address {
            Frontend::Address {
                ip: self.ip()?,
                protocol: self.protocol()?,
                port: self.port()?,
            }
        } else {
            Frontend::NodePort {
                family: self.family,
                protocol: self.protocol()?,
                port: self.port()?,
            }
        })
    }
}
