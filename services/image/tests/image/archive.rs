//! Builds archives, honest and otherwise.

use std::io::Write as _;

/// A tar in the making.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
}

/// One entry's header; the defaults are those of a root-owned file of mode 0644.
#[derive(Clone)]
pub(crate) struct Head {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: u64,
    pub(crate) link: Vec<u8>,
    pub(crate) device: (u32, u32),
    pub(crate) pax: Vec<(Vec<u8>, Vec<u8>)>,
    /// What the header says, where it is not the content's length.
    pub(crate) size: Option<u64>,
}

impl Head {
    pub(crate) fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 1_600_000_000,
            link: Vec::new(),
            device: (0, 0),
            pax: Vec::new(),
            size: None,
        }
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.uid = uid;
        self.gid = gid;
        self
    }

    pub(crate) fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    pub(crate) fn link(mut self, target: impl AsRef<[u8]>) -> Self {
        self.link = target.as_ref().to_vec();
        self
    }

    pub(crate) fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax
            .push((key.as_bytes().to_vec(), value.as_ref().to_vec()));
        self
    }
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn file(self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        self.entry(Head::new(b'0', name), content)
    }

    pub(crate) fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.entry(Head::new(b'5', name), b"")
    }

    pub(crate) fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(Head::new(b'2', name).link(target), b"")
    }

    pub(crate) fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(Head::new(b'1', name).link(target), b"")
    }

    pub(crate) fn entry(mut self, head: Head, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        let mut pax = Vec::new();
        for (key, value) in &head.pax {
            pax.extend(pax_record(key, value));
        }
        if head.name.len() > 100 {
            pax.extend(pax_record(b"path", &head.name));
        }
        if head.link.len() > 100 {
            pax.extend(pax_record(b"linkpath", &head.link));
        }
        if !pax.is_empty() {
            self.header(&Head::new(b'x', "PaxHeaders/x"), pax.len() as u64);
            self.content(&pax);
        }
        self.header(&head, head.size.unwrap_or(content.len() as u64));
        self.content(content);
        self
    }

    /// Bytes as they are.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn content(&mut self, content: &[u8]) {
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }

    fn header(&mut self, head: &Head, size: u64) {
        let mut block = header_block(head, size);
        seal(&mut block);
        self.bytes.extend_from_slice(&block);
    }

    /// The archive with its end mark.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }

    /// The archive without its end mark.
    pub(crate) fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

/// A ustar header block without its checksum.
pub(crate) fn header_block(head: &Head, size: u64) -> [u8; 512] {
    let mut block = [0u8; 512];
    let put = |block: &mut [u8; 512], at: usize, bytes: &[u8], room: usize| {
        let n = bytes.len().min(room);
        block[at..at + n].copy_from_slice(&bytes[..n]);
    };
    let octal = |value: u64, width: usize| format!("{value:0width$o}").into_bytes();
    put(&mut block, 0, &head.name, 100);
    put(&mut block, 100, &octal(head.mode.into(), 7), 7);
    put(&mut block, 108, &octal(head.uid.into(), 7), 7);
    put(&mut block, 116, &octal(head.gid.into(), 7), 7);
    put(&mut block, 124, &octal(size, 11), 11);
    put(&mut block, 136, &octal(head.mtime, 11), 11);
    block[156] = head.kind;
    put(&mut block, 157, &head.link, 100);
    put(&mut block, 257, b"ustar\x0000", 8);
    put(&mut block, 329, &octal(head.device.0.into(), 7), 7);
    put(&mut block, 337, &octal(head.device.1.into(), 7), 7);
    block
}

/// Puts the checksum into a header block.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn pax_record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} ").into_bytes();
    record.extend_from_slice(key);
    record.push(b'=');
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}
