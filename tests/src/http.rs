//! A small HTTP client inside a network namespace: one question, one connection.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::netns::Netns;

/// How long a server may take to be reached, and to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// The body.
    pub body: String,
    head: String,
}

impl Answer {
    /// The value of a header; empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = fields.find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// If it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Asks with GET for a path, with more headers.
///
/// # Errors
/// That nobody listens there, or breaks off.
pub fn get_with(
    from: &Netns,
    to: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> io::Result<Answer> {
    let headers = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    let headers: String = headers.collect();
    let head = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{headers}\r\n");
    send(from, to, &head)
}

/// Sends a body with any method.
///
/// # Errors
/// That nobody listens there, or breaks off.
pub fn request(
    from: &Netns,
    to: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> io::Result<Answer> {
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    send(from, to, &request)
}

fn send(from: &Netns, to: SocketAddr, request: &str) -> io::Result<Answer> {
    let text = from.enter(|| -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?;
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, text.clone());
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(wrong)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer {
        code: code.ok_or_else(wrong)?,
        body: body.to_owned(),
        head: head.to_owned(),
    })
}

/// As [`get_with`], without more headers.
///
/// # Errors
/// That nobody listens there, or breaks off.
pub fn get(from: &Netns, to: SocketAddr, path: &str) -> io::Result<Answer> {
    get_with(from, to, path, &[])
}
