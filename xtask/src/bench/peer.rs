//! A kube-proxy to compare with: its modes, and what it calls what it makes of a Service, so that its rules are found
//! in the kernel.
//!
//! The names of chains are kube-proxy's own: a prefix, and a hash of the Service's port and of the endpoint.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::workload::{Service, namespace};

/// How a proxy balances, and so where the kernel shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// proxyd's rules.
    Rules,
    /// proxyd's programs, with rules beside them.
    Programs,
    /// The rules of a kube-proxy.
    Peer(PeerMode),
}

/// A mode of kube-proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PeerMode {
    /// Rules of nftables.
    Nftables,
    /// Rules of iptables, by its nf_tables back end.
    Iptables,
}

impl PeerMode {
    /// What it is called on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        }
    }

    /// The table of family `ip` with its chains.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::Nftables => "kube-proxy",
            Self::Iptables => "nat",
        }
    }

    /// The chain that balances a Service.
    pub(super) fn service_chain(self, service: Service) -> String {
        let (namespace, name) = (namespace(service.number), service.name());
        match self {
            Self::Nftables => {
                let port = format!("{namespace}/{name}/tcp/http");
                format!("service-{}-{port}", hash(&port, 8))
            }
            Self::Iptables => {
                let port = format!("{namespace}/{name}:http");
                format!("KUBE-SVC-{}", hash(&format!("{port}tcp"), 16))
            }
        }
    }

    /// The chain that leads to an endpoint of a Service.
    pub(super) fn endpoint_chain(self, service: Service, endpoint: Ipv4Addr) -> String {
        let (namespace, name) = (namespace(service.number), service.name());
        match self {
            Self::Nftables => {
                let port = format!("{namespace}/{name}/tcp/http__{endpoint}/8080");
                format!("endpoint-{}-{port}", hash(&port, 8))
            }
            Self::Iptables => {
                let port = format!("{namespace}/{name}:http");
                let text = format!("{port}tcp{endpoint}:8080");
                format!("KUBE-SEP-{}", hash(&text, 16))
            }
        }
    }
}

/// What a peer is called in the results: its file, and its mode.
pub(super) fn name(binary: &Path, mode: PeerMode) -> String {
    let file = binary.file_name().unwrap_or(binary.as_os_str());
    format!("{} {}", file.display(), mode.name())
}

/// The program with each mode that it can run in here; says which it cannot.
pub(super) fn usable(binary: &Path, modes: &[PeerMode]) -> Vec<(PathBuf, PeerMode)> {
    let mut usable = Vec::new();
    for mode in modes {
        match can_run(binary, *mode) {
            Ok(()) => usable.push((binary.to_owned(), *mode)),
            Err(why) => println!("NOT RUN: {}: {why}", name(binary, *mode)),
        }
    }
    usable
}

fn can_run(binary: &Path, mode: PeerMode) -> Result<(), String> {
    if !binary.is_file() {
        return Err(format!("there is no {}", binary.display()));
    }
    if mode == PeerMode::Iptables {
        let version = Command::new("iptables").arg("--version").output();
        let version = version.map_err(|error| format!("it needs the program iptables: {error}"))?;
        // The other one's rules are not in nf_tables, where they are looked for.
        if !String::from_utf8_lossy(&version.stdout).contains("nf_tables") {
            return Err("it needs an iptables with the nf_tables back end".to_owned());
        }
    }
    Ok(())
}

/// The first characters of a text's SHA-256 in base32 (RFC 4648): five bits each.
fn hash(text: &str, length: usize) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::digest(text);
    let bit = |index: usize| digest[index / 8] >> (7 - index % 8) & 1;
    let digit = |index: usize| {
        let bits = (index * 5..index * 5 + 5).fold(0, |value, index| value << 1 | bit(index));
        char::from(ALPHABET[usize::from(bits)])
    };
    (0..length).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names that every cluster with a kube-proxy has, and those that its own documentation gives.
    #[test]
    fn hashes_are_those_of_kube_proxy() {
        for (text, length, expected) in [
            ("default/kubernetes:httpstcp", 16, "NPX46M4PTMTKRN6Y"),
            ("kube-system/kube-dns:dnsudp", 16, "TCOU7JCQXEZGVUNU"),
            ("kube-system/kube-dns:dns-tcptcp", 16, "ERIFXISQEP7F7OF4"),
            ("ns1/svc1/tcp/p80", 8, "ULMVA6XW"),
            ("ns1/svc1/tcp/p80__10.180.0.1/80", 8, "5OJB2KTY"),
        ] {
            assert_eq!(hash(text, length), expected, "{text}");
        }
    }

    #[test]
    fn peer_that_cannot_run_is_left_out() {
        let missing = Path::new("/no/such/kube-proxy");
        let modes = [PeerMode::Nftables, PeerMode::Iptables];
        assert_eq!(usable(missing, &modes), []);
        let why = can_run(missing, PeerMode::Nftables);
        assert_eq!(why, Err("there is no /no/such/kube-proxy".to_owned()));
        let program = std::env::current_exe().unwrap();
        let usable = usable(&program, &[PeerMode::Nftables]);
        assert_eq!(usable, [(program, PeerMode::Nftables)]);
    }
}
