//! Sizes, ages, ids and times as Docker shows them.

use gantry_proto::network::v1::PortMapping;
use jiff::Timestamp;

use crate::parse::ports::protocol_name;

/// Characters of a short id.
const SHORT_ID: usize = 12;

const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];

/// "1.23GB": three digits, units of 1000.
pub(crate) fn size(bytes: u64) -> String {
    with_units(bytes as f64, 1000.0, &UNITS, 3)
}

/// "1.234GB": four digits, as Docker shows what is taken and freed.
pub(crate) fn exact_size(bytes: u64) -> String {
    with_units(bytes as f64, 1000.0, &UNITS, 4)
}

/// "1.205GiB": four digits, units of 1024.
pub(crate) fn binary_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    with_units(bytes as f64, 1024.0, &units, 4)
}

fn with_units(mut value: f64, base: f64, units: &[&str], digits: usize) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let whole = (value.max(1.0).log10() as usize) + 1;
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{}", units[unit])
}

/// "5 minutes", "About an hour", from seconds.
pub(crate) fn age(seconds: i64) -> String {
    let hours = (seconds + 1800) / 3600;
    match seconds {
        ..1 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{} minutes", seconds / 60),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 14 => format!("{} days", hours / 24),
        _ if hours < 24 * 60 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// The age of a point in time; nothing where there is none.
pub(crate) fn age_of(time: Option<&prost_types::Timestamp>) -> Option<String> {
    time.map(|time| age(Timestamp::now().as_second() - time.seconds))
}

/// "5 minutes ago", or "N/A" where the time is not known.
pub(crate) fn ago(time: Option<&prost_types::Timestamp>) -> String {
    age_of(time).map_or_else(|| "N/A".to_owned(), |age| format!("{age} ago"))
}

fn point(time: &prost_types::Timestamp) -> Timestamp {
    Timestamp::new(time.seconds, time.nanos).unwrap_or_default()
}

/// "2006-01-02T15:04:05.999999999Z"; year 1 where there is no time.
pub(crate) fn rfc3339(time: Option<&prost_types::Timestamp>) -> String {
    time.map_or_else(
        || "0001-01-01T00:00:00Z".to_owned(),
        |time| point(time).to_string(),
    )
}

/// "2006-01-02T15:04:05Z"; year 1 where there is no time.
pub(crate) fn rfc3339_seconds(time: Option<&prost_types::Timestamp>) -> String {
    rfc3339(
        time.map(|time| prost_types::Timestamp { nanos: 0, ..*time })
            .as_ref(),
    )
}

/// "2006-01-02T15:04:05.000000000Z": always nine digits, so that lines align.
pub(crate) fn rfc3339_nanos(time: &prost_types::Timestamp) -> String {
    format!("{:.9}", point(time))
}

/// "2006-01-02 15:04:05 +0000 UTC"
pub(crate) fn date_time(time: Option<&prost_types::Timestamp>) -> String {
    time.map_or_else(
        || "N/A".to_owned(),
        |time| {
            point(time)
                .strftime("%Y-%m-%d %H:%M:%S +0000 UTC")
                .to_string()
        },
    )
}

/// The first twelve characters of an id, without "sha256:".
pub(crate) fn short_id(id: &str) -> String {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.chars().take(SHORT_ID).collect()
}

/// `text` of at most `width` characters, the last of them "…" where it is cut.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// Whether a terminal shows a character, and does nothing else with it: neither a
/// control character nor one that changes the direction or place of others.
fn is_shown(character: char) -> bool {
    !character.is_control()
        && !matches!(
            character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// As Go's `%q` writes a character that is not shown.
fn push_escaped(text: &mut String, character: char) {
    match character {
        '\u{7}' => text.push_str("\\a"),
        '\u{8}' => text.push_str("\\b"),
        '\u{c}' => text.push_str("\\f"),
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        '\u{b}' => text.push_str("\\v"),
        _ => text.push_str(&match u32::from(character) {
            code @ ..0x80 => format!("\\x{code:02x}"),
            code @ ..0x10000 => format!("\\u{code:04x}"),
            code => format!("\\U{code:08x}"),
        }),
    }
}

/// Text of a user, an image or a program for a table or a line: what would act on
/// the terminal, or break the line, is escaped. All else stays as it is, so that
/// escaping twice changes nothing.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match is_shown(character) {
            true => escaped.push(character),
            false => push_escaped(&mut escaped, character),
        }
    }
    escaped
}

/// Text in quotes, as Go's `%q` and so Docker writes it.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            _ if is_shown(character) => quoted.push(character),
            _ => push_escaped(&mut quoted, character),
        }
    }
    quoted.push('"');
    quoted
}

/// Ports that follow each other: exposed, or published under their own numbers.
struct PortRange {
    /// Address of the host. Empty: they are exposed only.
    outside: String,
    protocol: &'static str,
    first: u32,
    last: u32,
}

impl PortRange {
    fn shown(&self) -> String {
        let Self {
            outside,
            protocol,
            first,
            last,
        } = self;
        let numbers = match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        match outside.as_str() {
            "" => format!("{numbers}/{protocol}"),
            ip => format!("{}->{numbers}/{protocol}", host_port(ip, &numbers)),
        }
    }
}

/// "443/tcp, 0.0.0.0:80-81->80-81/tcp, 0.0.0.0:8080->80/tcp": ranges, and then what
/// has another number outside.
pub(crate) fn ports(published: &[PortMapping], exposed: &[String]) -> String {
    let mut all: Vec<(u32, String, u32, &'static str)> = published
        .iter()
        .map(|port| {
            let ip = match port.host_ip.as_str() {
                "" => "0.0.0.0",
                ip => ip,
            };
            let protocol = protocol_name(port.protocol());
            (port.container_port, ip.to_owned(), port.host_port, protocol)
        })
        .collect();
    for text in exposed {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol {
            "udp" => "udp",
            "sctp" => "sctp",
            _ => "tcp",
        };
        let number: u32 = number.parse().unwrap_or_default();
        if !all
            .iter()
            .any(|port| port.0 == number && port.3 == protocol)
        {
            all.push((number, String::new(), number, protocol));
        }
    }
    all.sort();
    // Of each address and protocol the range that may go on.
    let mut open: Vec<PortRange> = Vec::new();
    let (mut shown, mut others) = (Vec::new(), Vec::new());
    for (number, outside, host, protocol) in all {
        if host != number {
            let outside = host_port(&outside, &host.to_string());
            others.push(format!("{outside}->{number}/{protocol}"));
            continue;
        }
        let alike = |range: &&mut PortRange| range.outside == outside && range.protocol == protocol;
        match open.iter_mut().find(alike) {
            Some(range) if range.last + 1 == number => range.last = number,
            Some(range) => {
                shown.push(range.shown());
                (range.first, range.last) = (number, number);
            }
            None => open.push(PortRange {
                outside,
                protocol,
                first: number,
                last: number,
            }),
        }
    }
    shown.extend(open.iter().map(PortRange::shown));
    shown.extend(others);
    shown.join(", ")
}

/// "0.0.0.0:8080", "[::1]:8080"
fn host_port(ip: &str, port: &str) -> String {
    match ip.contains(':') {
        true => format!("[{ip}]:{port}"),
        false => format!("{ip}:{port}"),
    }
}

/// "0.0.0.0:8080", "[::1]:8080"
pub(crate) fn host_side(port: &PortMapping) -> String {
    let ip = match port.host_ip.as_str() {
        "" => "0.0.0.0",
        ip => ip,
    };
    host_port(ip, &port.host_port.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (1234, "1.23kB"),
            (7_800_000, "7.8MB"),
            (124_600_000, "125MB"),
            (1_230_000_000, "1.23GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(exact_size(1_982_345), "1.982MB");
        assert_eq!(binary_size(1 << 20), "1MiB");
        assert_eq!(binary_size(1_294_000_000), "1.205GiB");
        assert_eq!(binary_size(0), "0B");
    }

    #[test]
    fn what_would_act_on_the_terminal_is_escaped() {
        assert_eq!(escaped("a b é 漢 \\ \"q\""), "a b é 漢 \\ \"q\"");
        let hostile = "\x1b[31m\u{9b}0m\r\n\t\x07\x7f\u{202e}\u{e0041}\0";
        let shown = r"\x1b[31m\u009b0m\r\n\t\a\x7f\u202e\U000e0041\x00";
        assert_eq!(escaped(hostile), shown);
        assert_eq!(escaped(shown), shown);
        assert_eq!(quoted("sh \"x\\\x1b"), r#""sh \"x\\\x1b""#);
    }

    #[test]
    fn ages_are_rounded_as_docker_does() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (47 * 3600, "47 hours"),
            (72 * 3600, "3 days"),
            (21 * 24 * 3600, "3 weeks"),
            (90 * 24 * 3600, "3 months"),
            (3 * 365 * 24 * 3600, "3 years"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn times_are_utc() {
        let time = prost_types::Timestamp {
            seconds: 1_136_214_245,
            nanos: 500_000_000,
        };
        assert_eq!(rfc3339(Some(&time)), "2006-01-02T15:04:05.5Z");
        assert_eq!(rfc3339_nanos(&time), "2006-01-02T15:04:05.500000000Z");
        assert_eq!(date_time(Some(&time)), "2006-01-02 15:04:05 +0000 UTC");
    }

    #[test]
    fn a_published_port_is_not_listed_as_exposed_again() {
        let published = [PortMapping {
            host_port: 8080,
            container_port: 80,
            ..PortMapping::default()
        }];
        let exposed = ["80/tcp".to_owned(), "443/tcp".to_owned()];
        assert_eq!(ports(&published, &exposed), "443/tcp, 0.0.0.0:8080->80/tcp");
    }
    #[test]
    fn ports_that_follow_each_other_are_a_range() {
        let port = |host_ip: &str, host_port, container_port| PortMapping {
            host_ip: host_ip.to_owned(),
            host_port,
            container_port,
            ..PortMapping::default()
        };
        let published = [
            port("", 82, 82),
            port("", 80, 80),
            port("", 81, 81),
            port("::1", 85, 85),
            port("", 9000, 90),
        ];
        let exposed = ["81/udp", "100/tcp", "101/tcp", "103/tcp"].map(str::to_owned);
        assert_eq!(
            ports(&published, &exposed),
            "100-101/tcp, 0.0.0.0:80-82->80-82/tcp, 81/udp, [::1]:85->85/tcp, 103/tcp, 0.0.0.0:9000->90/tcp"
        );
    }
}
