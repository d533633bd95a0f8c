//! What tells pods from other sources (kube-proxy's `LocalTrafficDetector`).

/// What tells whether a packet comes from a pod (`--detect-local-mode`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Detector {
    /// Nothing: no traffic to a ClusterIP is masqueraded but the hairpin, and pods have no short circuit.
    #[default]
    None,
    /// Its source is in the planned networks of pods.
    Source,
    /// It comes from an interface.
    Interface {
        /// The interface's name.
        name: String,
        /// Whether the name is only what it begins with.
        prefix: bool,
    },
}

impl Detector {
    /// Whether it is known which packets come from pods.
    pub fn knows_pods(&self) -> bool {
        *self != Self::None
    }
}
