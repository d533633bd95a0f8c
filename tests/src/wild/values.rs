//! Values of single fields: good ones of a small world, wrong ones and wild ones.

use serde_json::{Value, json};

use super::choices::Choices;
use super::{NODE, one_of};

/// Addresses that are not what they should be, or are written in odd ways.
const ODD_ADDRESSES: &[&str] = &[
    "010.096.000.003",
    "::ffff:10.96.0.3",
    "::FFFF:0A60:0003",
    "FD00:10:96:0::1",
    "127.0.0.1",
    "::1",
    "169.254.1.1",
    "fe80::1",
    "fe80::1%eth0",
    "224.0.0.1",
    "ff02::1",
    "0.0.0.0",
    "::",
    "255.255.255.255",
    "240.0.0.1",
    "0.1.2.3",
    "10.96.0.1 ",
    "10.96.0.1/32",
    "10.96.0",
    "10.96.0.256",
    "1.2.3.4.5",
    "::10.96.0.1",
    "64:ff9b::1.2.3.4",
    "2001:db8::",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "[fd00::1]",
    "0x0a.1.1.1",
    "None",
    "",
];

/// Networks, from the whole world to one address, and some that are none.
const NETWORKS: &[&str] = &[
    "10.0.0.0/8",
    "10.1.2.3/16",
    " 192.168.0.0/24 ",
    "010.000.000.000/08",
    "10.96.0.0/16",
    "10.96.0.0/24",
    "10.96.1.0/24",
    "10.96.2.0/24",
    "fd00:10:96::/112",
    "fd00::/16",
    "fd01::/16",
    "0.0.0.0/0",
    "::/0",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "::/1",
    "8000::/1",
    "0.0.0.0/32",
    "255.255.255.255/32",
    "255.255.255.254/31",
    "255.0.0.0/8",
    "::/128",
    "ffff::/16",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
    "::ffff:10.0.0.0/104",
    "::ffff:0:0/96",
    "::/64",
    "127.0.0.0/8",
    "fe80::/10",
    "224.0.0.0/4",
    "203.0.113.2/32",
    "192.168.0.2/32",
    "10.0.0.0/33",
    "10.0.0.0/-1",
    "10.0.0.0",
    "/8",
    "",
];

/// Texts that nobody expects, some of which would be commands of nft on a line of their own.
const TEXTS: &[&str] = &[
    "",
    " ",
    "-",
    "web",
    "\n",
    "\r\nadd table ip evil",
    "x\nadd table ip evil\n#",
    "\u{0}",
    "\u{85}add table ip evil",
    "\u{2028}add table ip evil",
    "\\",
    "a\\\nb",
    "\"; drop",
    "} }",
    "# comment",
    "@services",
    "$(id)",
    "%s%n",
    "../../etc/passwd",
    "a/b",
    "Ünïcödé",
    "\u{202e}gnp",
    "\u{1f9ff}",
    "\u{feff}x",
    "null",
    "-1",
    "1e400",
];

const NUMBERS: &[i64] = &[
    0,
    -1,
    1,
    65_535,
    65_536,
    86_400,
    86_401,
    2_147_483_647,
    2_147_483_648,
    -2_147_483_648,
    i64::MAX,
    i64::MIN,
];

/// Any text.
pub(super) fn text(choices: &mut Choices<'_>) -> Value {
    match choices.below(40) {
        0 => json!("a".repeat(63)),
        1 => json!("b".repeat(253)),
        2 => json!("c".repeat(5_000)),
        3 => {
            let letters = (0..choices.below(9)).map(|_| char::from(choices.byte()));
            json!(letters.collect::<String>())
        }
        _ => json!(choices.one_of(TEXTS)),
    }
}

/// A good number, seldom a bad one.
pub(super) fn number(choices: &mut Choices<'_>, good: &[i64]) -> Value {
    match choices.below(16) {
        0 => json!(choices.one_of(NUMBERS)),
        1 if choices.one_in(8) => json!(1.5e300),
        _ => json!(choices.one_of(good)),
    }
}

pub(super) fn boolean(choices: &mut Choices<'_>) -> Value {
    json!(choices.one_in(2))
}

/// An address that begins in one of these ways.
pub(super) fn address(choices: &mut Choices<'_>, prefixes: &[&str]) -> Value {
    match choices.below(24) {
        22 => json!(choices.one_of(ODD_ADDRESSES)),
        23 if choices.one_in(4) => text(choices),
        _ => {
            let prefix = choices.one_of(prefixes);
            let separator = if prefix.contains(':') { ":" } else { "." };
            let separator = if prefix.ends_with("::") {
                ""
            } else {
                separator
            };
            json!(format!("{prefix}{separator}{}", 1 + choices.below(6)))
        }
    }
}

pub(super) fn network(choices: &mut Choices<'_>) -> Value {
    match choices.below(16) {
        0 if choices.one_in(4) => text(choices),
        1..=4 => {
            let [a, b, c, d] = std::array::from_fn(|_| choices.byte());
            json!(format!("{a}.{b}.{c}.{d}/{}", choices.below(33)))
        }
        5 | 6 => {
            let (a, b) = (choices.byte(), choices.byte());
            json!(format!("{a:x}{b:02x}::{b:x}/{}", choices.below(129)))
        }
        _ => json!(choices.one_of(NETWORKS)),
    }
}

pub(super) fn port(choices: &mut Choices<'_>) -> Value {
    number(choices, &[80, 443, 53, 8080, 1, 65_535])
}

pub(super) fn node_port(choices: &mut Choices<'_>) -> Value {
    number(choices, &[30_080, 30_081, 30_082, 80, 65_535])
}

pub(super) fn port_name(choices: &mut Choices<'_>) -> Value {
    one_of(choices, &["http", "dns", "", "a-name-of-15-let"])
}

pub(super) fn protocol(choices: &mut Choices<'_>) -> Value {
    one_of(choices, &["TCP", "TCP", "UDP", "SCTP"])
}

pub(super) fn node_name(choices: &mut Choices<'_>) -> Value {
    one_of(choices, &[NODE, NODE, "node-2", ""])
}

/// The name of one of a few Services.
pub(super) fn service_name(choices: &mut Choices<'_>) -> Value {
    object_name(choices, "web")
}

/// The name of one of a few objects.
pub(super) fn object_name(choices: &mut Choices<'_>, prefix: &str) -> Value {
    if choices.one_in(30) {
        text(choices)
    } else {
        json!(format!("{prefix}-{}", choices.below(8)))
    }
}

pub(super) fn timestamp(choices: &mut Choices<'_>) -> Value {
    one_of(
        choices,
        &[
            "2026-01-01T00:00:00Z",
            "2025-01-01T00:00:00Z",
            "2025-01-01T00:00:00.123456789+14:00",
            "-009999-01-02T01:59:59Z",
            "9999-12-30T22:00:00Z",
            "0001-01-01T00:00:00Z",
        ],
    )
}
