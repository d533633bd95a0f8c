//! Ports that the kernel gives to no socket that does not ask for one: those that programs masquerade with.

use std::fs;
use std::io;
use std::path::Path;

/// The list, of the network namespace of the calling thread.
const LIST: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Reserves ports, besides those that are reserved.
///
/// # Errors
/// That the list cannot be read or written.
pub fn reserve(first: u16, last: u16) -> io::Result<()> {
    change(Path::new(LIST), |list| with(list, first, last))
}

/// Takes ports off the list, if they are there as [`reserve`] writes them.
///
/// # Errors
/// That the list cannot be read or written.
pub fn release(first: u16, last: u16) -> io::Result<()> {
    change(Path::new(LIST), |list| without(list, first, last))
}

fn change(path: &Path, to: impl FnOnce(&str) -> String) -> io::Result<()> {
    let list = fs::read_to_string(path)?;
    let wanted = to(list.trim());
    if wanted == list.trim() {
        return Ok(());
    }
    // An empty write would be none.
    fs::write(path, wanted + "\n")
}

fn ranges(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').filter(|range| !range.is_empty())
}

fn with(list: &str, first: u16, last: u16) -> String {
    let ours = format!("{first}-{last}");
    if ranges(list).any(|range| range == ours) {
        return list.to_owned();
    }
    ranges(list).chain([&*ours]).collect::<Vec<_>>().join(",")
}

fn without(list: &str, first: u16, last: u16) -> String {
    let ours = format!("{first}-{last}");
    let others = ranges(list).filter(|range| *range != ours);
    others.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_added_once_and_taken_off_alone() {
        for (list, added) in [
            ("", "5-9"),
            ("80,443", "80,443,5-9"),
            ("1-2,5-9", "1-2,5-9"),
        ] {
            assert_eq!(with(list, 5, 9), added);
        }
        for (list, rest) in [("5-9", ""), ("80,5-9,443", "80,443"), ("5-8", "5-8")] {
            assert_eq!(without(list, 5, 9), rest);
        }
    }
}
