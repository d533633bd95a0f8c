//! Single settings: what was given → what it stands for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use super::LogFormat;
use super::duration;
use super::given::{ConfigError, Given, Place};
use crate::dataplane::Backend;
use crate::dry_run::Output;

/// How the dry run is printed. JSON of the rules is not on offer: what nft calls JSON holds less than the rules (it has no
/// `typeof` of a map's key), so nobody could load it.
pub(super) fn output(output: Output, backend: Backend) -> Result<Output, ConfigError> {
    match (output, backend) {
        (Output::Json, Backend::Nftables) => Err(Place::Flag("output").refuse(
            "json",
            "it shows the BPF maps, and --backend nftables has none; its rules are text, for nft -f (-o text)",
        )),
        _ => Ok(output),
    }
}

/// The name of this node: trimmed and in lower case, as kubelet and kube-proxy have it.
pub(super) fn node_name(hostname_override: Option<&Given<String>>) -> Result<String, ConfigError> {
    let tidy = |name: &str| {
        let name = name.trim().to_lowercase();
        let empty = || "the node's name is empty".to_owned();
        (!name.is_empty()).then_some(name).ok_or_else(empty)
    };
    if let Some(given) = hostname_override {
        return given.parse(|name| tidy(name));
    }
    let place = Place::Flag("hostname-override");
    let host = nix::unistd::gethostname().map_err(|errno| {
        place.refuse(
            "",
            format!("the host's name cannot be read ({errno}); give the node's name"),
        )
    })?;
    let host = host.to_string_lossy();
    tidy(&host).map_err(|reason| place.refuse(&host, reason))
}

/// What a line of the log looks like.
pub(super) fn log_format(given: Option<&Given<String>>) -> Result<LogFormat, ConfigError> {
    given.map_or(Ok(LogFormat::Text), |given| {
        given.parse(|format| match format.as_str() {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err("write text or json".to_owned()),
        })
    })
}

/// How much to log.
pub(super) fn verbosity(given: Option<&Given<i64>>) -> Result<u8, ConfigError> {
    const DEFAULT: u8 = 2;
    given.map_or(Ok(DEFAULT), |given| {
        given.parse(|level| u8::try_from(*level).map_err(|_| "not a level, 0 to 255".to_owned()))
    })
}

/// The URL of an API server. One without a scheme is taken for http, as client-go does.
pub(super) fn url(given: &Given<String>) -> Result<http::Uri, ConfigError> {
    given.parse(|value| {
        let with_scheme = if value.contains("://") {
            value.clone()
        } else {
            format!("http://{value}")
        };
        with_scheme
            .parse()
            .map_err(|error| format!("not a URL ({error}); write it as https://host:6443"))
    })
}

/// Networks of pods.
pub(super) fn networks(given: Option<&Given<Vec<String>>>) -> Result<Vec<IpNet>, ConfigError> {
    given.map_or(Ok(Vec::new()), |given| given.parse_each(network))
}

/// A network, without the bits after its prefix.
pub(super) fn network(value: &str) -> Result<IpNet, String> {
    let network: IpNet = value.trim().parse().map_err(|_| {
        "not a network; write an address and a prefix length, such as 10.244.0.0/16".to_owned()
    })?;
    Ok(network.trunc())
}

/// A boolean as Go's flags take it: `--flag=true`, `--flag=F` and so on.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}

/// The bit of the mark.
pub(super) fn masquerade_bit(given: Option<&Given<i64>>) -> Result<u8, ConfigError> {
    const DEFAULT: u8 = 14;
    given.map_or(Ok(DEFAULT), |given| {
        given.parse(|bit| {
            let bit = u8::try_from(*bit).ok().filter(|bit| *bit < 32);
            bit.ok_or_else(|| "not a bit of the packet mark, 0 to 31".to_owned())
        })
    })
}

/// A number of connections.
pub(super) fn count(given: Option<&Given<i64>>, default: u32) -> Result<u32, ConfigError> {
    given.map_or(Ok(default), |given| {
        given.parse(|count| {
            // The kernel takes no more.
            let count = u32::try_from(*count).ok();
            let count = count.filter(|count| *count <= i32::MAX.unsigned_abs());
            count.ok_or_else(|| format!("not a number from 0 to {}", i32::MAX))
        })
    })
}

/// A time after which the kernel forgets a connection; `None` to leave it as it is.
pub(super) fn timeout(
    given: Option<&Given<String>>,
    default: Duration,
) -> Result<Option<Duration>, ConfigError> {
    let timeout = given.map_or(Ok(default), |given| {
        given.parse(|text| duration::parse(text))
    })?;
    Ok((!timeout.is_zero()).then_some(timeout))
}

/// The period of synchronisation; above zero.
pub(super) fn sync_period(given: Option<&Given<String>>) -> Result<Duration, ConfigError> {
    const DEFAULT: Duration = Duration::from_secs(30);
    given.map_or(Ok(DEFAULT), |given| {
        given.parse(|text| match duration::parse(text)? {
            Duration::ZERO => Err("must be above zero, such as 30s".to_owned()),
            period => Ok(period),
        })
    })
}

/// A server that others ask.
#[derive(Debug)]
pub(super) struct Server<'a> {
    /// The flag that names its address, without dashes.
    pub(super) flag: &'static str,
    /// Its address, with or without a port; empty for no server.
    pub(super) address: Option<&'a Given<String>>,
    /// Its port, where the address says none; 0 for no server.
    pub(super) port: Option<&'a Given<i64>>,
    /// Whether it is for this machine alone, if nothing else is said.
    pub(super) local: bool,
    /// Its port if nothing else is said.
    pub(super) default_port: u16,
}

impl Server<'_> {
    /// Where its address was set, or which flag would.
    pub(super) fn place(&self) -> String {
        let address = self.address.map(|given| &given.place);
        let place = address.or(self.port.map(|given| &given.place));
        place.map_or_else(
            || format!("the default of --{}", self.flag),
            ToString::to_string,
        )
    }

    /// Where it listens. `bind_address` says the family of the default, as in kube-proxy.
    pub(super) fn address(&self, bind_address: IpAddr) -> Result<Option<SocketAddr>, ConfigError> {
        let port = self.port.map(|given| {
            given
                .parse(|port| u16::try_from(*port).map_err(|_| "not a port, 0 to 65535".to_owned()))
        });
        let port = port.transpose()?;
        if port == Some(0) {
            return Ok(None);
        }
        let Some(given) = self.address else {
            let ip = match (bind_address, self.local) {
                (IpAddr::V4(_), true) => Ipv4Addr::LOCALHOST.into(),
                (IpAddr::V4(_), false) => Ipv4Addr::UNSPECIFIED.into(),
                (IpAddr::V6(_), true) => Ipv6Addr::LOCALHOST.into(),
                (IpAddr::V6(_), false) => Ipv6Addr::UNSPECIFIED.into(),
            };
            return Ok(Some(SocketAddr::new(ip, port.unwrap_or(self.default_port))));
        };
        if given.value.is_empty() {
            return Ok(None);
        }
        given
            .parse(|text| {
                if let Ok(ip) = text.parse() {
                    return Ok(SocketAddr::new(ip, port.unwrap_or(self.default_port)));
                }
                let mut address: SocketAddr = text.parse().map_err(|_| {
                    format!(
                        "not an address with a port; write it as 0.0.0.0:{0} or [::]:{0}",
                        self.default_port
                    )
                })?;
                // A port by flag goes before one in a file, and behind one in an address by flag.
                if let (Some(port), Place::Field { .. }) = (port, &given.place) {
                    address.set_port(port);
                }
                if address.port() == 0 {
                    return Err(format!(
                        "port 0; write a port such as {}",
                        self.default_port
                    ));
                }
                Ok(address)
            })
            .map(Some)
    }
}

/// The address of `--bind-address`; only its family matters.
pub(super) fn bind_address(given: Option<&Given<String>>) -> Result<IpAddr, ConfigError> {
    const DEFAULT: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    given.map_or(Ok(DEFAULT), |given| {
        given.parse(|text| {
            text.parse()
                .map_err(|_| "not an address; write it as 0.0.0.0 or ::".to_owned())
        })
    })
}
