//! Writes tar archives member by member, the hostile ones too: nothing is
//! checked, made relative or put in order. A writer of our own, so that a
//! misunderstanding of the format in the engine is not repeated here.
//!
//! The format is POSIX ustar (IEEE Std 1003.1, "pax Interchange Format"), with
//! a pax header before a member where a field does not fit.

const BLOCK: usize = 512;

/// What a member is: its type flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Directory,
    Fifo,
}

/// One member of an archive.
#[derive(Clone, Debug)]
pub struct Member {
    pub path: String,
    pub kind: Kind,
    /// Target of a link; empty otherwise.
    pub link: String,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since the Unix epoch.
    pub mtime: u64,
    pub data: Vec<u8>,
    /// pax records: key and value, in their order ("SCHILY.xattr.user.note").
    pub pax: Vec<(String, Vec<u8>)>,
}

impl Member {
    #[must_use]
    pub fn new(path: &str, kind: Kind) -> Self {
        Self {
            path: path.to_owned(),
            kind,
            link: String::new(),
            mode: if kind == Kind::Directory {
                0o755
            } else {
                0o644
            },
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            data: Vec::new(),
            pax: Vec::new(),
        }
    }

    #[must_use]
    pub fn file(path: &str, data: impl Into<Vec<u8>>) -> Self {
        Self {
            data: data.into(),
            ..Self::new(path, Kind::File)
        }
    }

    /// A file that may be executed.
    #[must_use]
    pub fn program(path: &str, data: impl Into<Vec<u8>>) -> Self {
        Self::file(path, data).mode(0o755)
    }

    #[must_use]
    pub fn directory(path: &str) -> Self {
        Self::new(path, Kind::Directory)
    }

    #[must_use]
    pub fn symlink(path: &str, target: &str) -> Self {
        Self {
            link: target.to_owned(),
            mode: 0o777,
            ..Self::new(path, Kind::Symlink)
        }
    }

    #[must_use]
    pub fn hard_link(path: &str, target: &str) -> Self {
        Self {
            link: target.to_owned(),
            ..Self::new(path, Kind::HardLink)
        }
    }

    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    #[must_use]
    pub fn owner(self, uid: u64, gid: u64) -> Self {
        Self { uid, gid, ..self }
    }

    #[must_use]
    pub fn mtime(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }

    #[must_use]
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.pax
            .push((format!("SCHILY.xattr.{name}"), value.to_owned()));
        self
    }
}

/// The archive of `members`, with its two closing blocks.
#[must_use]
pub fn archive(members: &[Member]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in members {
        append(&mut bytes, member);
    }
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

/// Appends one member to an archive that is not closed yet.
pub fn append(archive: &mut Vec<u8>, member: &Member) {
    let mut records = member.pax.clone();
    if member.path.len() > 100 {
        records.push(("path".to_owned(), member.path.clone().into_bytes()));
    }
    if member.link.len() > 100 {
        records.push(("linkpath".to_owned(), member.link.clone().into_bytes()));
    }
    if !records.is_empty() {
        let body: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| record(key, value))
            .collect();
        let header = Member::new("pax", Kind::File);
        block(archive, &header, b'x', body.len());
        archive.extend_from_slice(&body);
        pad(archive);
    }
    let flag = match member.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice { .. } => b'3',
        Kind::BlockDevice { .. } => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    };
    block(archive, member, flag, member.data.len());
    archive.extend_from_slice(&member.data);
    pad(archive);
}

/// A pax record: its own length in decimal, key and value.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut bytes = format!("{length} {key}=").into_bytes();
    bytes.extend_from_slice(value);
    bytes.push(b'\n');
    bytes
}

fn block(archive: &mut Vec<u8>, member: &Member, flag: u8, size: usize) {
    let mut header = [0_u8; BLOCK];
    let mut field = |at: usize, width: usize, value: &[u8]| {
        let take = value.len().min(width);
        header[at..at + take].copy_from_slice(&value[..take]);
    };
    let octal = |value: u64, width: usize| format!("{value:0width$o}").into_bytes();
    field(0, 100, member.path.as_bytes());
    field(100, 8, &octal(u64::from(member.mode), 7));
    field(108, 8, &octal(member.uid, 7));
    field(116, 8, &octal(member.gid, 7));
    field(124, 12, &octal(size as u64, 11));
    field(136, 12, &octal(member.mtime, 11));
    field(148, 8, b"        ");
    field(156, 1, &[flag]);
    field(157, 100, member.link.as_bytes());
    field(257, 8, b"ustar\x0000");
    if let Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } = member.kind {
        field(329, 8, &octal(u64::from(major), 7));
        field(337, 8, &octal(u64::from(minor), 7));
    }
    let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    archive.extend_from_slice(&header);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(BLOCK), 0);
}
