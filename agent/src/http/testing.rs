//! A small HTTP client, and servers on free ports of the loopback interface, for the tests of `http/`.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::listen::listen;
use super::serve::{Listening, serve};

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: u16,
    head: String,
    pub(super) body: String,
}

impl Answer {
    /// The value of a header, which must be there.
    pub(super) fn header(&self, name: &str) -> &str {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut found = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        found.next().expect(name).1
    }

    /// The body as JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Asks, on a connection of its own, and waits for the whole answer.
pub(super) async fn get(address: SocketAddr, path: &str) -> Answer {
    try_get(address, path).await.unwrap()
}

/// As [`get`], with more headers.
pub(super) async fn get_with(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Answer {
    ask(address, path, headers).await.unwrap()
}

/// As [`get`], where nobody may listen.
pub(super) async fn try_get(address: SocketAddr, path: &str) -> io::Result<Answer> {
    ask(address, path, &[]).await
}

/// Asks with PUT.
pub(super) async fn put(address: SocketAddr, path: &str, body: &str) -> Answer {
    request(address, "PUT", path, body).await
}

/// Asks with any method.
pub(super) async fn request(address: SocketAddr, method: &str, path: &str, body: &str) -> Answer {
    let length = format!("content-length: {}\r\n", body.len());
    let head = format!("{method} {path}");
    send(address, &head, &length, body).await.unwrap()
}

async fn ask(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
    let headers = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    let headers: String = headers.collect();
    send(address, &format!("GET {path}"), &headers, "").await
}

async fn send(address: SocketAddr, what: &str, headers: &str, body: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    let request =
        format!("{what} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{headers}\r\n{body}");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    Ok(Answer {
        code: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// Asks again and again until the answer, or that there is none, is as it should be.
pub(super) async fn ask_until(
    address: SocketAddr,
    is_right: impl Fn(&io::Result<Answer>) -> bool,
) -> io::Result<Answer> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = try_get(address, "/").await;
        if is_right(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "the last answer: {answer:?}");
        tokio::task::yield_now().await;
    }
}

/// Serves on a free port until dropped.
pub(super) fn serve_here(router: Router) -> (SocketAddr, Listening) {
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    (address, Listening::start(serve(listener, router)))
}

/// An address that nobody listens on. It may be taken by another test, but the kernel gives the same port again
/// only when it has been through all others.
pub(super) fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}
