//! Where the agent's servers listen: addresses → listening sockets.
//!
//! All servers get their socket from [`listen`], so that they agree on what "all addresses" means and their
//! errors say what to do.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 128;

/// Why nobody listens on an address.
#[derive(Debug, thiserror::Error)]
#[error("listening on {address}: {source}{}", advice(source))]
pub struct ListenError {
    /// The address, as it was asked for.
    pub address: SocketAddr,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process has this port (ss -ltnp shows which): stop it, or take another port"
        }
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has this address",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// Listens on an address. Port 0 takes a free one; [`TcpListener::local_addr`] tells which.
///
/// `0.0.0.0` and `[::]` both stand for all addresses of both families, as they do in Go and so in kube-proxy.
/// A kernel without IPv6 has those of IPv4.
///
/// # Errors
/// The kernel's refusal.
pub fn listen(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let result = if address.ip().is_unspecified() {
        let any = |ip: IpAddr| bind(SocketAddr::new(ip, address.port()));
        match any(Ipv6Addr::UNSPECIFIED.into()) {
            Err(error) if is_without_ipv6(&error) => any(Ipv4Addr::UNSPECIFIED.into()),
            result => result,
        }
    } else {
        bind(address)
    };
    result.map_err(|source| ListenError { address, source })
}

fn is_without_ipv6(error: &io::Error) -> bool {
    let without = [Errno::EAFNOSUPPORT, Errno::EADDRNOTAVAIL];
    without
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        // Else the sysctl net.ipv6.bindv6only decides; and a socket on `[::1]` has no IPv4 side to be free of.
        setsockopt(
            &socket,
            sockopt::Ipv6V6Only,
            &!address.ip().is_unspecified(),
        )?;
        socket
    };
    // A restarted agent does not wait for the old one's connections to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn all_addresses_are_those_of_both_families() {
        for any in ["0.0.0.0:0", "[::]:0"] {
            let port = listen(any.parse().unwrap())
                .map(|listener| (listener.local_addr().unwrap().port(), listener))
                .unwrap();
            for ip in ["127.0.0.1", "::1"] {
                let ip: IpAddr = ip.parse().unwrap();
                TcpStream::connect((ip, port.0)).await.expect(any);
            }
        }
    }

    #[tokio::test]
    async fn one_address_is_one_family() {
        let listener = listen("[::1]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        TcpStream::connect(("::1", port)).await.unwrap();
        TcpStream::connect(("127.0.0.1", port)).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_refusal_says_which_address_why_and_what_to_do() {
        let holder = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = holder.local_addr().unwrap();
        let error = listen(address).unwrap_err().to_string();
        assert!(
            error.contains(&format!("listening on {address}: Address")),
            "{error}"
        );
        assert!(error.contains("another process has this port"), "{error}");
        let error = listen("192.0.2.1:0".parse().unwrap())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no interface of this machine"), "{error}");
    }
}
