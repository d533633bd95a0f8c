//! What this program is: the fields of Kubernetes' `version.Info` (`k8s.io/apimachinery/pkg/version`).
//!
//! The commit and the date are those that the build was told in `PROXYD_GIT_COMMIT` and `PROXYD_BUILD_DATE`.

use serde::Serialize;

/// A version of the program, as `/version` and `kubernetes_build_info` tell it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Info {
    /// The first number of the version.
    pub major: &'static str,
    /// The second number.
    pub minor: &'static str,
    /// The version, with a `v` in front.
    pub git_version: &'static str,
    /// The commit that was built; empty where the build was not told.
    pub git_commit: &'static str,
    /// `clean` for a build of exactly that commit; empty where the build was not told.
    pub git_tree_state: &'static str,
    /// When it was built, in RFC 3339; empty where the build was not told.
    pub build_date: &'static str,
    /// Empty: there is no Go in it.
    pub go_version: &'static str,
    /// What compiled it.
    pub compiler: &'static str,
    /// The operating system and the architecture, in Go's words.
    pub platform: &'static str,
}

/// The version of this program.
pub const INFO: Info = Info {
    major: env!("CARGO_PKG_VERSION_MAJOR"),
    minor: env!("CARGO_PKG_VERSION_MINOR"),
    git_version: concat!("v", env!("CARGO_PKG_VERSION")),
    git_commit: or_empty(option_env!("PROXYD_GIT_COMMIT")),
    git_tree_state: match option_env!("PROXYD_GIT_COMMIT") {
        Some(_) => "clean",
        None => "",
    },
    build_date: or_empty(option_env!("PROXYD_BUILD_DATE")),
    go_version: "",
    compiler: "rustc",
    platform: PLATFORM,
};

/// The operating system and the architecture, in Go's words.
const PLATFORM: &str = if cfg!(target_arch = "x86_64") {
    "linux/amd64"
} else if cfg!(target_arch = "aarch64") {
    "linux/arm64"
} else if cfg!(target_arch = "riscv64") {
    "linux/riscv64"
} else if cfg!(target_arch = "s390x") {
    "linux/s390x"
} else {
    "linux/unknown"
};

const fn or_empty(told: Option<&'static str>) -> &'static str {
    match told {
        Some(told) => told,
        None => "",
    }
}
