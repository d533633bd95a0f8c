//! What the configuration keeps of a Service from being served at all.

use super::PlanConfig;
use crate::model::{Complaint, Parsed, Service};

impl PlanConfig {
    /// A Service without what is not to be served of it, which becomes a complaint: with the feature gate
    /// `AllowServiceExternalIPs` off, it is as if there were no `externalIPs` (KEP-5707).
    pub fn admit(&self, mut parsed: Parsed<Service>) -> Parsed<Service> {
        let refused = match &mut parsed.object {
            Some(service) if !self.external_ips => std::mem::take(&mut service.external_ips),
            _ => Default::default(),
        };
        if !refused.is_empty() {
            let addresses: Vec<_> = refused.iter().map(ToString::to_string).collect();
            let reason = format!(
                "{} not served, since the feature gate AllowServiceExternalIPs is false",
                addresses.join(", ")
            );
            let complaint = Complaint::new("spec.externalIPs", reason);
            parsed.complaints.push(complaint);
        }
        parsed
    }
}
