//! What an unpacked layer consists of, line by line, so that damage is found and named.
//!
//! `layers/<hex>/tree` has a line for each file below `layers/<hex>/fs`, and
//! `layer.json` has the SHA-256 of these lines. A line is
//!
//! ```text
//! KIND MODE UID GID LINKS SIZE MTIME CONTENT XATTRS PATH[ TARGET]
//! d 755 0 0 - - 1700000000.000000000 - - usr
//! f 644 0 0 1 1234 1700000000.000000000 6c78e0e3bd51d358d01e758642b85fb8 - usr/a%20b
//! l 777 0 0 1 - 1700000000.000000000 - - usr/link a
//! ```
//!
//! KIND is `d`, `f`, `l`, `c`, `b`, `p` or `s`; MODE is octal; SIZE is in bytes,
//! of a device its number; MTIME is seconds and nanoseconds; CONTENT is a
//! XXH3-128 of the file (see [`ContentFormat`]) and XATTRS the SHA-256 of all its extended attributes, both
//! in hexadecimal; `-` is for what there is none of. In a path all but visible
//! ASCII, and `%`, is written as `%` and two hexadecimal digits. The root's
//! path is `.`. A directory comes before what is in it, names in the order of
//! their bytes.
//!
//! Content is hashed as it is unpacked; a fast hash, since it is to find what a
//! disk does to files, and not what an attacker who is root does. Blocks of
//! zeros take no part in it, so that a hole costs nothing, whatever its size,
//! and a file is the same whether its file system keeps it as one or not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gantry_archive::write::next_region;
use gantry_oci::{Algorithm, Digest, Hasher};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_128;

use crate::unpack::tree::{get_xattr, list_xattrs};

/// Bytes of a file that are read at once.
const READ_BYTES: usize = 128 << 10;
/// Extended attributes that are the host's own, and come and go with its policy.
const HOST_XATTRS: [&[u8]; 4] = [
    b"security.SMACK64",
    b"security.evm",
    b"security.ima",
    b"security.selinux",
];
/// Levels of directories; no unpacked layer has more (see `Limits::path_depth`).
const DEPTH_MAX: usize = 4_096;
/// Differences that are told of one layer.
const DIFFERENCES_MAX: usize = 100;

/// Bytes of a block that is left out of a hash when it is all zeros.
const BLOCK: usize = 4 << 10;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What is hashed of a file's content.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ContentFormat {
    /// All of it: what older versions recorded.
    #[default]
    Whole,
    /// Each run of blocks that are not all zeros, with its offset before it (8
    /// bytes, the lowest first), and last the length.
    Blocks,
}

impl ContentFormat {
    pub(crate) fn is_whole(&self) -> bool {
        *self == Self::Whole
    }
}

/// Hashes a file's content as it passes.
pub(crate) struct ContentHasher {
    hash: XxHash3_128,
    format: ContentFormat,
    /// Bytes that were hashed or left out; whole blocks, until the end.
    position: u64,
    /// The beginning of the block at `position`.
    partial: Vec<u8>,
    /// The last block was hashed.
    in_run: bool,
}

impl ContentHasher {
    pub(crate) fn new(format: ContentFormat) -> Self {
        Self {
            hash: XxHash3_128::new(),
            format,
            position: 0,
            partial: Vec::new(),
            in_run: false,
        }
    }

    pub(crate) fn update(&mut self, mut bytes: &[u8]) {
        if self.format == ContentFormat::Whole {
            self.hash.write(bytes);
            return;
        }
        if !self.partial.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK - self.partial.len()));
            self.partial.extend_from_slice(now);
            if self.partial.len() < BLOCK {
                return;
            }
            bytes = rest;
            self.take_partial();
        }
        let (whole, rest) = bytes.split_at(bytes.len() / BLOCK * BLOCK);
        self.blocks(whole);
        self.partial.extend_from_slice(rest);
    }

    /// Takes so many zeros, without looking at each.
    pub(crate) fn skip(&mut self, count: u64) {
        let mut left = count;
        if self.format == ContentFormat::Whole || !self.partial.is_empty() {
            let most = match self.format {
                ContentFormat::Whole => left,
                ContentFormat::Blocks => left.min((BLOCK - self.partial.len()) as u64),
            };
            left -= most;
            self.update_zeros(most);
        }
        let whole = left / BLOCK as u64 * BLOCK as u64;
        if whole > 0 {
            self.position += whole;
            self.in_run = false;
        }
        self.update_zeros(left - whole);
    }

    fn update_zeros(&mut self, mut count: u64) {
        while count > 0 {
            let now = usize::try_from(count).unwrap_or(BLOCK).min(BLOCK);
            self.update(&ZEROS[..now]);
            count -= now as u64;
        }
    }

    fn take_partial(&mut self) {
        let mut block = std::mem::take(&mut self.partial);
        self.blocks(&block);
        block.clear();
        self.partial = block;
    }

    /// Takes whole blocks; the last of a file may be shorter.
    fn blocks(&mut self, bytes: &[u8]) {
        let mut run_from = 0;
        let mut at = 0;
        for block in bytes.chunks(BLOCK) {
            let zeros = *block == ZEROS[..block.len()];
            if zeros {
                if self.in_run {
                    self.hash.write(&bytes[run_from..at]);
                }
                self.in_run = false;
            } else if !self.in_run {
                let offset = self.position + at as u64;
                self.hash.write(&offset.to_le_bytes());
                self.in_run = true;
                run_from = at;
            }
            at += block.len();
        }
        if self.in_run {
            self.hash.write(&bytes[run_from..]);
        }
        self.position += bytes.len() as u64;
    }

    pub(crate) fn finish(mut self) -> ContentHash {
        if self.format == ContentFormat::Blocks {
            self.take_partial();
            self.hash.write(&self.position.to_le_bytes());
        }
        ContentHash(self.hash.finish_128().to_be_bytes())
    }
}

impl std::fmt::Debug for ContentHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ContentHasher")
    }
}

/// The hash of a file's content.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ContentHash([u8; 16]);

/// The hashes of contents that passed while a layer was unpacked, by inode.
#[derive(Clone, Debug, Default)]
pub(crate) struct KnownContent {
    /// `None`: a file whose content did not pass.
    hashes: Vec<(u64, Option<ContentHash>)>,
    /// No file of the layer has extended attributes.
    no_xattrs: bool,
}

impl KnownContent {
    pub(crate) fn add(&mut self, inode: u64, hash: ContentHash) {
        self.hashes.push((inode, Some(hash)));
    }

    /// The inode is another file's now, whose content did not pass.
    pub(crate) fn forget(&mut self, inode: u64) {
        self.hashes.push((inode, None));
    }

    /// To be called once all are there. `no_xattrs`: no file was given any.
    pub(crate) fn settle(&mut self, no_xattrs: bool) {
        // Of an inode that was used twice the last is true: the first file is gone.
        self.hashes.reverse();
        self.hashes.sort_by_key(|(inode, _)| *inode);
        self.hashes.dedup_by_key(|(inode, _)| *inode);
        self.no_xattrs = no_xattrs;
    }

    fn get(&self, inode: u64) -> Option<ContentHash> {
        let found = self
            .hashes
            .binary_search_by_key(&inode, |(known, _)| *known);
        found.ok().and_then(|at| self.hashes[at].1)
    }
}

/// Where a walk failed.
#[derive(Debug, thiserror::Error)]
#[error("{path:?}: {step} failed")]
pub(crate) struct WalkError {
    path: String,
    step: &'static str,
    #[source]
    source: io::Error,
}

/// Writes the record of a tree, in the format [`ContentFormat::Blocks`]; the
/// digest of what was written.
pub(crate) fn write(
    root: BorrowedFd<'_>,
    known: &KnownContent,
    out: &mut dyn Write,
) -> Result<Digest, WalkError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    walk(root, known, ContentFormat::Blocks, &mut |line| {
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")
    })?;
    Ok(hasher.finish())
}

/// The digest of a record.
pub(crate) fn digest_of(record: &mut dyn Read) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match record.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// What a comparison of a tree with its record found.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    /// Each a path and what is wrong with it; at most a hundred.
    pub(crate) differences: Vec<String>,
    /// Whether there were more.
    pub(crate) more: bool,
    /// Bytes of content that were read.
    pub(crate) bytes: u64,
}

/// Compares a tree with its record, reading all content. Both are walked side
/// by side, so that memory does not grow with the layer.
pub(crate) fn compare(
    root: BorrowedFd<'_>,
    record: &mut dyn BufRead,
    format: ContentFormat,
) -> Result<Compared, WalkError> {
    let mut compared = Compared::default();
    let mut lines = record.lines();
    let mut missing: BTreeMap<String, String> = BTreeMap::new();
    let mut unexpected: BTreeMap<String, String> = BTreeMap::new();
    let mut bytes = 0;
    walk(root, &KnownContent::default(), format, &mut |line| {
        let field = |n| line.split(' ').nth(n);
        if field(0) == Some("f") {
            bytes += field(5).and_then(|size| size.parse().ok()).unwrap_or(0);
        }
        let expected = lines.next().transpose()?;
        if expected.as_deref() == Some(line) {
            return Ok(());
        }
        // Out of step: each side keeps what the other has not shown yet.
        if let Some(expected) = expected {
            settle(
                &mut unexpected,
                &mut missing,
                &expected,
                &mut compared,
                true,
            );
        }
        settle(&mut missing, &mut unexpected, line, &mut compared, false);
        Ok(())
    })?;
    let rest = |source| WalkError {
        path: "tree".into(),
        step: "reading the record",
        source,
    };
    for expected in lines {
        let expected = expected.map_err(rest)?;
        settle(
            &mut unexpected,
            &mut missing,
            &expected,
            &mut compared,
            true,
        );
    }
    for path in missing.keys() {
        note(&mut compared, format!("{path} is missing"));
    }
    for path in unexpected.keys() {
        note(&mut compared, format!("{path} does not belong there"));
    }
    compared.bytes = bytes;
    Ok(compared)
}

/// Looks for a line's path among those that only the other side has shown, and
/// compares; keeps it where it is not there.
fn settle(
    others: &mut BTreeMap<String, String>,
    own: &mut BTreeMap<String, String>,
    line: &str,
    compared: &mut Compared,
    is_record: bool,
) {
    let path = line.split(' ').nth(9).unwrap_or_default();
    match others.remove(path) {
        Some(other) if other == line => {}
        Some(other) => {
            let (expected, found) = if is_record {
                (line, other.as_str())
            } else {
                (other.as_str(), line)
            };
            note(
                compared,
                format!("{path} has {}", differing(expected, found)),
            );
        }
        None => _ = own.insert(path.to_owned(), line.to_owned()),
    }
}

fn note(compared: &mut Compared, difference: String) {
    if compared.differences.len() < DIFFERENCES_MAX {
        compared.differences.push(difference);
    } else {
        compared.more = true;
    }
}

/// The fields of two lines that differ, in words.
fn differing(expected: &str, found: &str) -> String {
    const FIELDS: [&str; 11] = [
        "kind",
        "mode",
        "owner",
        "group",
        "number of links",
        "size",
        "modification time",
        "content",
        "extended attributes",
        "path",
        "link target",
    ];
    let pairs = expected.split(' ').zip(found.split(' '));
    let differing: Vec<&str> = FIELDS
        .iter()
        .zip(pairs)
        .filter(|(_, (expected, found))| expected != found)
        .map(|(field, _)| *field)
        .collect();
    if differing.is_empty() {
        return "another link target".to_owned();
    }
    format!("another {}", differing.join(", "))
}

type Visit<'a> = dyn FnMut(&str) -> io::Result<()> + 'a;

/// Visits the lines of a tree.
fn walk(
    root: BorrowedFd<'_>,
    known: &KnownContent,
    format: ContentFormat,
    visit: &mut Visit<'_>,
) -> Result<(), WalkError> {
    let mut walker = Walker {
        known,
        format,
        visit,
        path: Vec::new(),
        line: String::new(),
        buffer: Vec::new(),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(root, ".", flags, Mode::empty())
        .map_err(|e| walker.failed("opening it", e.into()))?;
    let stat =
        rustix::fs::fstat(&directory).map_err(|e| walker.failed("looking at it", e.into()))?;
    walker.entry(root, b".", &stat)?;
    walker.directory(directory, 0)
}

struct Walker<'a, 'v> {
    known: &'a KnownContent,
    format: ContentFormat,
    visit: &'a mut Visit<'v>,
    /// From the root to the entry at hand; empty for the root.
    path: Vec<u8>,
    line: String,
    buffer: Vec<u8>,
}

impl Walker<'_, '_> {
    fn failed(&self, step: &'static str, source: io::Error) -> WalkError {
        let path = if self.path.is_empty() {
            "/".to_owned()
        } else {
            crate::unpack::shown(&self.path)
        };
        WalkError { path, step, source }
    }

    fn directory(&mut self, directory: OwnedFd, depth: usize) -> Result<(), WalkError> {
        if depth > DEPTH_MAX {
            return Err(self.failed("walking so deep", Errno::NAMETOOLONG.into()));
        }
        let mut names = Vec::new();
        let entries = Dir::read_from(&directory);
        for entry in entries.map_err(|e| self.failed("listing it", e.into()))? {
            let entry = entry.map_err(|e| self.failed("listing it", e.into()))?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        }
        names.sort_unstable();
        for name in names {
            let length = self.path.len();
            if length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&name);
            let stat = rustix::fs::statat(&directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| self.failed("looking at it", e.into()))?;
            self.entry(directory.as_fd(), &name, &stat)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = rustix::fs::openat(&directory, name.as_slice(), flags, Mode::empty())
                    .map_err(|e| self.failed("opening it", e.into()))?;
                self.directory(below, depth + 1)?;
            }
            self.path.truncate(length);
        }
        Ok(())
    }

    /// Makes an entry's line and shows it.
    fn entry(&mut self, parent: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<(), WalkError> {
        use std::fmt::Write as _;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        let letter = match kind {
            FileType::Directory => 'd',
            FileType::RegularFile => 'f',
            FileType::Symlink => 'l',
            FileType::CharacterDevice => 'c',
            FileType::BlockDevice => 'b',
            FileType::Fifo => 'p',
            _ => 's',
        };
        // Writing to a String does not fail.
        let _ = write!(
            line,
            "{letter} {:o} {} {} ",
            stat.st_mode & 0o7777,
            stat.st_uid,
            stat.st_gid
        );
        let _ = match kind {
            FileType::Directory => write!(line, "- - "),
            FileType::RegularFile => write!(line, "{} {} ", stat.st_nlink, stat.st_size),
            FileType::CharacterDevice | FileType::BlockDevice => {
                write!(line, "{} {} ", stat.st_nlink, stat.st_rdev)
            }
            _ => write!(line, "{} - ", stat.st_nlink),
        };
        let _ = write!(line, "{}.{:09} ", stat.st_mtime, stat.st_mtime_nsec);
        match kind {
            FileType::RegularFile => {
                let hash = match self.known.get(stat.st_ino) {
                    Some(hash) => hash,
                    None => self.hash_content(parent, name, stat)?,
                };
                line.push_str(&hex::encode(hash.0));
            }
            _ => line.push('-'),
        }
        line.push(' ');
        match self.xattrs(parent, name)? {
            Some(digest) => line.push_str(digest.hex()),
            None => line.push('-'),
        }
        line.push(' ');
        if self.path.is_empty() {
            line.push('.');
        } else {
            push_escaped(&mut line, &self.path);
        }
        if kind == FileType::Symlink {
            let target = rustix::fs::readlinkat(parent, name, Vec::new())
                .map_err(|e| self.failed("reading the link", e.into()))?;
            line.push(' ');
            push_escaped(&mut line, target.as_bytes());
        }
        let shown = (self.visit)(&line);
        self.line = line;
        shown.map_err(|e| self.failed("recording it", e))
    }

    fn hash_content(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
    ) -> Result<ContentHash, WalkError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::empty())
            .map_err(|e| self.failed("opening it", e.into()))?;
        let mut file = File::from(file);
        self.buffer.resize(READ_BYTES, 0);
        let mut hasher = ContentHasher::new(self.format);
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let hashed = if allocated < size {
            hash_regions(&file, size, &mut self.buffer, &mut hasher)
        } else {
            hash_all(&mut file, &mut self.buffer, &mut hasher)
        };
        hashed.map_err(|e| self.failed("reading it", e))?;
        Ok(hasher.finish())
    }

    /// The digest of all extended attributes; `None` when there is none.
    fn xattrs(&self, parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Digest>, WalkError> {
        if self.known.no_xattrs {
            return Ok(None);
        }
        let failed = |e: Errno| self.failed("reading its extended attributes", e.into());
        let mut keys = list_xattrs(parent, name).map_err(failed)?;
        keys.retain(|key| !HOST_XATTRS.contains(&key.as_slice()));
        if keys.is_empty() {
            return Ok(None);
        }
        keys.sort_unstable();
        let mut hasher = Hasher::new(Algorithm::Sha256);
        for key in keys {
            let value = get_xattr(parent, name, &key)
                .map_err(failed)?
                .unwrap_or_default();
            for part in [&key, &value] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
        }
        Ok(Some(hasher.finish()))
    }
}

/// Hashes a source to its end.
fn hash_all(
    mut source: impl Read,
    buffer: &mut [u8],
    hasher: &mut ContentHasher,
) -> io::Result<()> {
    loop {
        match source.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Hashes the regions of a file that have content; its holes are not read.
fn hash_regions(
    file: &File,
    size: u64,
    buffer: &mut [u8],
    hasher: &mut ContentHasher,
) -> io::Result<()> {
    let mut position = 0;
    while position < size {
        let region = next_region(file, position, size)?;
        let (data, end) = region.unwrap_or((size, size));
        hasher.skip(data - position);
        if data < end {
            rustix::fs::seek(file, SeekFrom::Start(data))?;
            hash_all(file.take(end - data), buffer, hasher)?;
        }
        position = end;
    }
    Ok(())
}

fn push_escaped(line: &mut String, path: &[u8]) {
    use std::fmt::Write as _;
    for &byte in path {
        if byte.is_ascii_graphic() && byte != b'%' {
            line.push(char::from(byte));
        } else {
            // Writing to a String does not fail.
            let _ = write!(line, "%{byte:02x}");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "tree_record_tests.rs"]
mod tests;
