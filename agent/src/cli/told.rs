//! Flags as `/flagz` tells them: each one, with the value that it has.

use std::ffi::OsString;

use clap::CommandFactory as _;

use super::Cli;

/// The flags with an effect and their values on a command line, by name; those that were not given and have no
/// default of their own are empty. No flag on a command line that is refused.
pub fn flags(line: impl IntoIterator<Item = OsString>) -> Vec<(String, String)> {
    let mut command = Cli::command();
    let Ok(matches) = command.try_get_matches_from_mut(line) else {
        return Vec::new();
    };
    let shown = command.get_arguments().filter(|flag| !flag.is_hide_set());
    let mut flags: Vec<_> = shown
        .filter(|flag| !["help", "version"].contains(&flag.get_id().as_str()))
        .filter_map(|flag| {
            let values = matches.get_raw(flag.get_id().as_str());
            let values = values.into_iter().flatten();
            let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
            Some((flag.get_long()?.to_owned(), values.join(",")))
        })
        .collect();
    flags.sort();
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_has_its_value() {
        let line = "proxyd --masquerade-all --cluster-cidr 10.0.0.0/8,fd00::/8 --oom-score-adj 1";
        let told = flags(line.split(' ').map(OsString::from));
        let value = |name: &str| {
            let mut found = told.iter().filter(|(flag, _)| flag == name);
            found.next().map(|(_, value)| value.as_str())
        };
        assert_eq!(value("masquerade-all"), Some("true"));
        assert_eq!(value("cluster-cidr"), Some("10.0.0.0/8,fd00::/8"));
        assert_eq!(value("backend"), Some("nftables"));
        assert_eq!(value("kubeconfig"), Some(""));
        assert_eq!(value("oom-score-adj"), None);
        assert!(told.is_sorted());
        assert_eq!(flags(["proxyd", "--nonsense"].map(OsString::from)), []);
    }
}
