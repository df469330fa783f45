//! Gzip (RFC 1952): its members one after the other, as one stream.
//!
//! What comes out is hashed with SHA-256 and compared with the layer's diff ID.
//! Where that is known beforehand, the checksum of each member says nothing
//! more and costs a sixth of the time, so that only its length is compared.

use std::io::{self, BufRead, Read};

use flate2::{Crc, Decompress, FlushDecompress, Status};

/// Longest name or comment of a header that is skipped.
const TEXT_MAX: usize = 64 << 10;

const FLAG_HEADER_CRC: u8 = 2;
const FLAG_EXTRA: u8 = 4;
const FLAG_NAME: u8 = 8;
const FLAG_COMMENT: u8 = 16;
const FLAGS_RESERVED: u8 = 0xe0;

/// Whether the checksum of each member is compared.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Checksum {
    Compared,
    /// A better one is compared by the caller.
    Left,
}

/// Inflates all members of a source.
#[derive(Debug)]
pub(super) struct Members<R> {
    source: R,
    inflate: Decompress,
    /// Present where checksums are compared.
    crc: Option<Crc>,
    /// Bytes that came of the member so far.
    length: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// Before the first member, where one must follow.
    First,
    Body,
    /// Between two members, where the end may be.
    Between,
    End,
}

fn damaged(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl<R: BufRead> Members<R> {
    pub(super) fn new(source: R, checksum: Checksum) -> Self {
        Self {
            source,
            inflate: Decompress::new(false),
            crc: (checksum == Checksum::Compared).then(Crc::new),
            length: 0,
            state: State::First,
        }
    }

    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.source.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn skip_text(&mut self) -> io::Result<()> {
        for _ in 0..TEXT_MAX {
            if self.byte()? == 0 {
                return Ok(());
            }
        }
        Err(damaged("a gzip header has a name without an end"))
    }

    /// RFC 1952, section 2.3.
    fn read_header(&mut self) -> io::Result<()> {
        let mut head = [0; 10];
        self.source.read_exact(&mut head)?;
        if head[..3] != [0x1f, 0x8b, 8] {
            return Err(damaged("what follows is no gzip header"));
        }
        let flags = head[3];
        if flags & FLAGS_RESERVED != 0 {
            return Err(damaged("a gzip header has flags that mean nothing"));
        }
        if flags & FLAG_EXTRA != 0 {
            let mut length = [0; 2];
            self.source.read_exact(&mut length)?;
            for _ in 0..u16::from_le_bytes(length) {
                self.byte()?;
            }
        }
        if flags & FLAG_NAME != 0 {
            self.skip_text()?;
        }
        if flags & FLAG_COMMENT != 0 {
            self.skip_text()?;
        }
        if flags & FLAG_HEADER_CRC != 0 {
            self.byte()?;
            self.byte()?;
        }
        self.inflate.reset(false);
        if let Some(crc) = &mut self.crc {
            crc.reset();
        }
        self.length = 0;
        self.state = State::Body;
        Ok(())
    }

    fn read_trailer(&mut self) -> io::Result<()> {
        let mut trailer = [0; 8];
        self.source.read_exact(&mut trailer)?;
        let [c0, c1, c2, c3, l0, l1, l2, l3] = trailer;
        let sum = u32::from_le_bytes([c0, c1, c2, c3]);
        if self.crc.as_ref().is_some_and(|crc| crc.sum() != sum) {
            return Err(damaged("a gzip member does not have its checksum"));
        }
        let length = u64::from(u32::from_le_bytes([l0, l1, l2, l3]));
        if self.length & u64::from(u32::MAX) != length {
            return Err(damaged("a gzip member does not have its length"));
        }
        self.state = State::Between;
        Ok(())
    }

    /// Some bytes of the body; 0 at its end.
    fn read_body(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let input = self.source.fill_buf()?;
            let at_end = input.is_empty();
            let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(input, buffer, FlushDecompress::None)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let taken = self.inflate.total_in() - before_in;
            let given = self.inflate.total_out() - before_out;
            // Neither is more than the slices it was given.
            self.source.consume(usize::try_from(taken).unwrap_or(0));
            let given = usize::try_from(given).unwrap_or(0);
            self.length += given as u64;
            if let Some(crc) = &mut self.crc {
                crc.update(&buffer[..given]);
            }
            match status {
                Status::StreamEnd if given == 0 => return Ok(0),
                Status::Ok | Status::BufError if given == 0 => {
                    if at_end {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    if taken == 0 {
                        return Err(damaged("the deflated data makes no progress"));
                    }
                }
                _ => return Ok(given),
            }
        }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.state {
                State::First => self.read_header()?,
                State::Between => {
                    if self.source.fill_buf()?.is_empty() {
                        self.state = State::End;
                    } else {
                        self.read_header()?;
                    }
                }
                State::Body => match self.read_body(buffer)? {
                    0 => self.read_trailer()?,
                    count => return Ok(count),
                },
                State::End => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use flate2::{Compression, GzBuilder};
    use std::io::Write as _;

    fn member(content: &[u8], name: Option<&str>) -> Vec<u8> {
        let mut builder = GzBuilder::new();
        if let Some(name) = name {
            builder = builder.filename(name).comment("c").extra("xy");
        }
        let mut encoder = builder.write(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn inflate(packed: &[u8], checksum: Checksum) -> io::Result<Vec<u8>> {
        // One byte at a time, so that every part of a header straddles reads.
        let source = io::BufReader::with_capacity(1, packed);
        let mut content = Vec::new();
        Members::new(source, checksum).read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn members_with_and_without_names_are_one_stream() {
        let packed = [
            member(b"one ", Some("a name")),
            member(b"", None),
            member(b"two", None),
        ]
        .concat();
        for checksum in [Checksum::Compared, Checksum::Left] {
            assert_eq!(inflate(&packed, checksum).unwrap(), b"one two");
        }
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let good = member(b"content content content", None);
        let altered = |at: usize| {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            bytes
        };
        let sum = good.len() - 8;
        assert!(inflate(&altered(sum), Checksum::Compared).is_err());
        assert!(inflate(&altered(sum), Checksum::Left).is_ok());
        for checksum in [Checksum::Compared, Checksum::Left] {
            assert!(inflate(&altered(sum + 4), checksum).is_err());
            assert!(inflate(&altered(0), checksum).is_err());
            for end in 0..good.len() {
                assert!(inflate(&good[..end], checksum).is_err(), "cut at {end}");
            }
            let garbage = [good.as_slice(), b"garbage"].concat();
            assert!(inflate(&garbage, checksum).is_err());
        }
    }
}
