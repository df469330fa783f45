//! One archive entry, with everything resolved that formats spell differently.

use rustix::fs::Timespec;
use tar_core::parse::ParsedEntry;
use tar_core::{EntryType, PaxExtensions, SparseEntry};

use super::error::{UnpackError, shown};
use super::limits::Limits;
use super::path::LayerPath;
use super::tree::Ownership;

/// What an entry is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharacterDevice,
    BlockDevice,
    Fifo,
}

/// An entry to be made.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) path: LayerPath,
    pub(super) link_target: Vec<u8>,
    pub(super) owner: Ownership,
    pub(super) mtime: Timespec,
    /// Bytes of content that follow in the archive.
    pub(super) size: u64,
    pub(super) device: u64,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The regions that have content and the whole size of the file.
    pub(super) sparse: Option<(Vec<SparseEntry>, u64)>,
}

impl Entry {
    /// Reads an entry as tar-core resolved it.
    pub(super) fn read(
        parsed: &ParsedEntry<'_>,
        sparse: Option<(Vec<SparseEntry>, u64)>,
        limits: &Limits,
    ) -> Result<Self, UnpackError> {
        let name = parsed.path.as_ref();
        let bad = |field: &'static str, value: String| UnpackError::BadValue {
            path: shown(name),
            field,
            value,
        };
        let path = LayerPath::parse(name, limits).map_err(|fault| fault.of_entry(name))?;
        let kind = kind_of(parsed)?;
        let pax = parsed
            .pax
            .map(read_pax)
            .transpose()
            .map_err(|(key, value)| bad(key, value))?;
        let pax = pax.unwrap_or_default();
        let owner = |field: &'static str, value: u64| match u32::try_from(value) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(bad(field, value.to_string())),
        };
        let header_time = i64::try_from(parsed.mtime).unwrap_or(i64::MAX);
        let mut entry = Self {
            kind,
            path,
            link_target: parsed.link_target.as_deref().unwrap_or_default().to_vec(),
            owner: Ownership {
                uid: owner("owner", parsed.uid)?,
                gid: owner("group", parsed.gid)?,
                mode: parsed.mode & 0o7777,
            },
            mtime: pax.mtime.unwrap_or(Timespec {
                tv_sec: header_time,
                tv_nsec: 0,
            }),
            // Links, nodes and directories have no content whatever their size says (POSIX, and Go's reader).
            size: if kind == Kind::File { parsed.size } else { 0 },
            device: 0,
            xattrs: Vec::new(),
            sparse,
        };
        if entry.size > limits.unpacked_bytes {
            return Err(UnpackError::Limit {
                what: "bytes once inflated",
                limit: limits.unpacked_bytes,
            });
        }
        if matches!(kind, Kind::CharacterDevice | Kind::BlockDevice) {
            let major = parsed.dev_major.unwrap_or(0);
            let minor = parsed.dev_minor.unwrap_or(0);
            entry.device = rustix::fs::makedev(major, minor);
        }
        for (key, value) in &parsed.xattrs {
            // These would speak to overlayfs itself: redirects, opaque marks, metadata-only files.
            if key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.") {
                continue;
            }
            if key.is_empty() || key.contains(&0) {
                return Err(bad("extended attribute", shown(key)));
            }
            entry.xattrs.push((key.to_vec(), value.to_vec()));
        }
        if let Some((map, real_size)) = &entry.sparse {
            check_sparse(map, *real_size, entry.size)
                .map_err(|why| bad("sparse map", why.to_owned()))?;
        }
        Ok(entry)
    }
}

fn kind_of(parsed: &ParsedEntry<'_>) -> Result<Kind, UnpackError> {
    Ok(match parsed.entry_type {
        // Before there was a type for directories, a trailing slash said it.
        EntryType::Regular
            if parsed.header.as_old().linkflag[0] == 0 && parsed.path.ends_with(b"/") =>
        {
            Kind::Directory
        }
        EntryType::Regular | EntryType::Continuous | EntryType::GnuSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Char => Kind::CharacterDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Fifo => Kind::Fifo,
        other => {
            return Err(UnpackError::UnsupportedType {
                path: shown(&parsed.path),
                kind: char::from(other.to_byte()),
            });
        }
    })
}

/// What tar-core does not resolve, or resolves by leaving it out.
#[derive(Default)]
struct Pax {
    mtime: Option<Timespec>,
}

/// Numbers that do not parse are refused here: falling back to the header,
/// which holds something else, would be a silent mistake.
fn read_pax(data: &[u8]) -> Result<Pax, (&'static str, String)> {
    let mut pax = Pax::default();
    for extension in PaxExtensions::new(data) {
        let extension = extension.map_err(|e| ("extended header", e.to_string()))?;
        let value = extension.value_bytes();
        let text = || std::str::from_utf8(value).ok();
        let field = match extension.key_bytes() {
            b"mtime" => {
                let time = text().and_then(parse_time);
                pax.mtime = Some(time.ok_or_else(|| ("modification time", shown(value)))?);
                continue;
            }
            b"size" => "size",
            b"uid" => "owner",
            b"gid" => "group",
            _ => continue,
        };
        if text().and_then(|t| t.parse::<u64>().ok()).is_none() {
            return Err((field, shown(value)));
        }
    }
    Ok(pax)
}

/// Seconds with an optional sign and fraction (POSIX pax, "mtime").
fn parse_time(text: &str) -> Option<Timespec> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok().filter(|s| *s >= 0)?;
    let nanos: i64 = format!("{fraction:0<9.9}").parse().ok()?;
    Some(match (negative, nanos) {
        (false, _) => Timespec {
            tv_sec: seconds,
            tv_nsec: nanos,
        },
        (true, 0) => Timespec {
            tv_sec: -seconds,
            tv_nsec: 0,
        },
        (true, _) => Timespec {
            tv_sec: -seconds - 1,
            tv_nsec: 1_000_000_000 - nanos,
        },
    })
}

fn check_sparse(map: &[SparseEntry], real_size: u64, stored: u64) -> Result<(), &'static str> {
    let mut end = 0;
    let mut sum: u64 = 0;
    for region in map {
        if region.offset < end {
            return Err("its regions overlap or are out of order");
        }
        end = region
            .offset
            .checked_add(region.length)
            .filter(|end| *end <= real_size)
            .ok_or("a region is outside of the file")?;
        sum += region.length;
    }
    if sum != stored {
        return Err("its regions do not add up to the content");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Option<(i64, i64)> {
        parse_time(text).map(|t| (t.tv_sec, t.tv_nsec))
    }

    #[test]
    fn times_are_read_with_sign_and_fraction() {
        assert_eq!(time("1700000000"), Some((1_700_000_000, 0)));
        assert_eq!(time("1700000000.5"), Some((1_700_000_000, 500_000_000)));
        assert_eq!(time("1.123456789999"), Some((1, 123_456_789)));
        assert_eq!(time("-1"), Some((-1, 0)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        for bad in ["", "-", ".5", "1.x", "--1", "1e3", "99999999999999999999"] {
            assert_eq!(time(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_sparse_map_must_fit_its_file() {
        let region = |offset, length| SparseEntry { offset, length };
        assert!(check_sparse(&[region(0, 4), region(8, 4)], 16, 8).is_ok());
        assert!(check_sparse(&[region(16, 0)], 16, 0).is_ok());
        assert!(check_sparse(&[region(0, 4)], 16, 8).is_err());
        assert!(check_sparse(&[region(8, 4), region(0, 4)], 16, 8).is_err());
        assert!(check_sparse(&[region(14, 4)], 16, 4).is_err());
        assert!(check_sparse(&[region(u64::MAX, 4)], 16, 4).is_err());
    }
}
