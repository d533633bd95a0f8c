//! Flags of kube-proxy that proxyd has no use for.
//!
//! They are accepted, so that the command line of a kube-proxy DaemonSet works unchanged, and left out of
//! `--help`. The names are those of kube-proxy 1.36 (`cmd/kube-proxy/app/options.go` and the logging flags of
//! `component-base` and `klog`), with some that older releases had.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

/// Those that take a value.
const VALUES: &[&str] = &[
    "config-sync-period",
    "iptables-min-sync-period",
    "ipvs-exclude-cidrs",
    "ipvs-min-sync-period",
    "ipvs-scheduler",
    "ipvs-sync-period",
    "ipvs-tcp-timeout",
    "ipvs-tcpfin-timeout",
    "ipvs-udp-timeout",
    "kube-api-burst",
    "kube-api-content-type",
    "kube-api-qps",
    "log-backtrace-at",
    "log-dir",
    "log-file",
    "log-file-max-size",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-text-info-buffer-size",
    "oom-score-adj",
    "proxy-port-range",
    "resource-container",
    "show-hidden-metrics-for-version",
    "stderrthreshold",
    "udp-timeout",
    "vmodule",
];

/// Those that are true or false.
const BOOLEANS: &[&str] = &[
    "add-dir-header",
    "alsologtostderr",
    "cleanup-ipvs",
    "ipvs-strict-arp",
    "log-json-split-stream",
    "log-text-split-stream",
    "logtostderr",
    "one-output",
    "skip-headers",
    "skip-log-headers",
];

/// klog's own flags have underscores; kube-proxy takes both ways.
const UNDERSCORED: &[(&str, &str)] = &[
    ("add-dir-header", "add_dir_header"),
    ("log-backtrace-at", "log_backtrace_at"),
    ("log-dir", "log_dir"),
    ("log-file", "log_file"),
    ("log-file-max-size", "log_file_max_size"),
    ("one-output", "one_output"),
    ("skip-headers", "skip_headers"),
    ("skip-log-headers", "skip_log_headers"),
];

/// Which of the flags without effect were given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignored {
    /// Their names, without the dashes before them, in alphabetical order.
    pub given: Vec<&'static str>,
}

impl Args for Ignored {
    fn augment_args(command: Command) -> Command {
        let argument = |name: &&'static str| {
            let underscored = UNDERSCORED.iter().find(|(dashed, _)| dashed == name);
            Arg::new(*name)
                .long(*name)
                .aliases(underscored.map(|(_, underscored)| *underscored))
                .hide(true)
        };
        let values = VALUES.iter().map(|name| {
            argument(name)
                .action(ArgAction::Append)
                .allow_hyphen_values(true)
        });
        let booleans = BOOLEANS.iter().map(|name| {
            argument(name)
                .action(ArgAction::Append)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
        });
        command.args(values).args(booleans)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Ignored {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let all = VALUES.iter().chain(BOOLEANS).copied();
        let was_given = |name: &&str| matches.value_source(name) == Some(ValueSource::CommandLine);
        let mut given: Vec<_> = all.filter(was_given).collect();
        given.sort_unstable();
        Ok(Self { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
