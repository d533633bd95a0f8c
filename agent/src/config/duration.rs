//! Durations as Go writes them: `24h0m0s`, `1m30s`, `500ms`, `1.5h`, `0`.

use std::time::Duration;

/// The units, longest name first where one begins another, in nanoseconds.
const UNITS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3_600 * 1_000_000_000),
];

/// Parses a duration as Go's `time.ParseDuration` does, but for negative ones.
///
/// # Errors
/// What is wrong with it, and how to write it.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || "not a duration; write it as 24h0m0s, 90s or 500ms".to_owned();
    if text.starts_with('-') {
        return Err("a duration below zero; write it as 24h0m0s, 90s or 500ms".to_owned());
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut nanoseconds: u128 = 0;
    while !rest.is_empty() {
        let (part, behind) = part(rest).ok_or_else(wrong)?;
        nanoseconds = nanoseconds.checked_add(part).ok_or_else(wrong)?;
        rest = behind;
    }
    // Go's durations end at 2^63 nanoseconds, some 292 years.
    let nanoseconds = i64::try_from(nanoseconds).map_err(|_| "longer than 292 years".to_owned())?;
    Ok(Duration::from_nanos(nanoseconds.unsigned_abs()))
}

/// One number with its unit, in nanoseconds, and what is behind it.
fn part(text: &str) -> Option<(u128, &str)> {
    let (whole, behind) = digits(text);
    let (fraction, behind) = match behind.strip_prefix('.') {
        Some(behind) => digits(behind),
        None => ("", behind),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let (unit, behind) = UNITS
        .iter()
        .find_map(|(name, unit)| Some((*unit, behind.strip_prefix(name)?)))?;
    // No unit has more than 13 digits of nanoseconds; what is behind them is less than one.
    let fraction = &fraction[..fraction.len().min(13)];
    let mut nanoseconds = number(whole)?.checked_mul(unit)?;
    nanoseconds += number(fraction)? * unit / 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    Some((nanoseconds, behind))
}

fn digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit());
    text.split_at(end.unwrap_or(text.len()))
}

fn number(digits: &str) -> Option<u128> {
    if digits.is_empty() {
        Some(0)
    } else {
        digits.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let check = |text: &str, milliseconds: u64| {
            assert_eq!(
                parse(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        };
        check("24h0m0s", 86_400_000);
        check("1m30s", 90_000);
        check("500ms", 500);
        check("0s", 0);
        check("0", 0);
        check("+5s", 5_000);
        check("1.5h", 5_400_000);
        check(".5s", 500);
        check("1.s", 1_000);
        check("1h15m30.918s", 4_530_918);
        check("2000us", 2);
        check("2000µs", 2);
        check("1s1s", 2_000);
        assert_eq!(parse("7ns"), Ok(Duration::from_nanos(7)));
        assert_eq!(
            parse("0.123456789012345678901234567890h").map(|d| d.as_secs()),
            Ok(444)
        );
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "5",
            "s",
            ".s",
            "1x",
            "1 s",
            "1s ",
            "-1",
            "-1s",
            "1h-1s",
            "1d",
            "s1",
            "9999999h",
            "99999999999999999999999999999999999999999h",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(
            parse("-1s")
                .unwrap_err()
                .starts_with("a duration below zero")
        );
    }
}
