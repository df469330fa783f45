//! One archive entry, with everything resolved that formats spell differently.

pub(super) use gantry_archive::read::Kind;
use gantry_archive::read::{check_sparse, kind_of, pax_time};
use rustix::fs::Timespec;
use tar_core::SparseEntry;
use tar_core::parse::ParsedEntry;

use super::error::{UnpackError, shown};
use super::limits::Limits;
use super::path::LayerPath;
use super::tree::Ownership;

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
        let kind = kind_of(parsed).map_err(|kind| UnpackError::UnsupportedType {
            path: shown(name),
            kind,
        })?;
        let pax = parsed.pax.map(pax_time).transpose();
        let modified = pax.map_err(|(key, value)| bad(key, value))?.flatten();
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
            mtime: modified.unwrap_or(Timespec {
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
            if *real_size > limits.unpacked_bytes {
                return Err(UnpackError::holes(limits));
            }
            check_sparse(map, *real_size, entry.size)
                .map_err(|why| bad("sparse map", why.to_owned()))?;
        }
        Ok(entry)
    }
}
