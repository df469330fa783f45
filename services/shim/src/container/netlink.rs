//! rtnetlink(7) by hand: a request of a few attributes goes out, and what the kernel says comes back. The runtime needs five
//! kinds of requests, blocks while it waits, and has one thread.
//!
//! ```text
//! nlmsghdr   length u32 · kind u16 · flags u16 · sequence u32 · port u32
//! header     ifinfomsg or ifaddrmsg, by the kind
//! attributes length u16 · kind u16 · value, each padded to 4 bytes
//! ```

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Every request is to be answered: by an acknowledgement, after what was asked for.
const REQUEST_ACK: u16 = 1 | 4;
/// NLM_F_DUMP: everything there is.
pub(super) const DUMP: u16 = 0x300;
/// NLM_F_CREATE and NLM_F_EXCL.
pub(super) const CREATE: u16 = 0x600;
/// NLM_F_DUMP_INTR: something changed meanwhile.
const INTERRUPTED: u16 = 0x10;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
/// The kernel fills at most 32 KiB at once.
const LARGEST: usize = 64 << 10;
/// How often a list is asked for that changes each time.
const ATTEMPTS: u32 = 16;

/// A request being put together.
#[derive(Debug)]
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// Its kind (`RTM_…`), flags beside the usual ones, and the header of that kind.
    pub(super) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(REQUEST_ACK | flags).to_ne_bytes());
        bytes.extend_from_slice(header);
        Self { bytes }
    }

    /// Adds an attribute. Values are names, addresses and numbers: a length always fits.
    pub(super) fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (4 + value.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a text, which ends with a null byte.
    pub(super) fn with_text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.with(kind, &value)
    }

    /// As it is sent.
    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// A message of the kernel's: the header of its kind, and attributes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    payload: Vec<u8>,
}

impl Answer {
    /// The first bytes of it, if it has as many.
    pub(super) fn header<const N: usize>(&self) -> Option<[u8; N]> {
        self.payload.get(..N)?.try_into().ok()
    }

    /// The attributes behind a header of that size.
    pub(super) fn attributes(&self, header: usize) -> impl Iterator<Item = (u16, &[u8])> {
        let mut rest = self.payload.get(header..).unwrap_or_default();
        std::iter::from_fn(move || {
            let length = usize::from(number_16(rest, 0)?);
            // The two highest bits say how a value is written, not what it is.
            let kind = number_16(rest, 2)? & 0x3fff;
            let value = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    /// One attribute.
    pub(super) fn attribute(&self, header: usize, wanted: u16) -> Option<&[u8]> {
        self.attributes(header)
            .find_map(|(kind, value)| (kind == wanted).then_some(value))
    }
}

fn number_16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes(bytes.try_into().ok()?))
}

/// A number of 32 bits somewhere in a message.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// A text attribute.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned()
}

/// A socket of the network namespace in which it was opened, wherever the process goes afterwards. It keeps that namespace.
#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
}

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None, // NETLINK_ROUTE is 0
        )?;
        Ok(Self { fd })
    }

    /// Sends a request and collects what comes before its acknowledgement.
    pub(super) fn ask(&self, request: impl Fn() -> Request) -> io::Result<Vec<Answer>> {
        for sequence in 1..=ATTEMPTS {
            let bytes = request().finish(sequence);
            rustix::net::send(&self.fd, &bytes, SendFlags::empty())?;
            if let Some(answers) = self.collect(sequence)? {
                return Ok(answers);
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// `None`: what was listed changed meanwhile.
    fn collect(&self, sequence: u32) -> io::Result<Option<Vec<Answer>>> {
        let mut answers = Vec::new();
        let mut whole = true;
        let mut buffer = vec![0; LARGEST];
        loop {
            let (length, _) = match rustix::net::recv(&self.fd, &mut buffer[..], RecvFlags::empty())
            {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            for message in messages(&buffer[..length]) {
                let message = message?;
                if message.sequence != sequence {
                    continue;
                }
                whole &= message.flags & INTERRUPTED == 0;
                match message.kind {
                    ERROR | DONE => {
                        // Minus errno; an acknowledgement is an error of 0.
                        let code = number(message.payload, 0).unwrap_or(0) as i32;
                        return match code {
                            0 => Ok(whole.then_some(answers)),
                            _ => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                        };
                    }
                    _ => answers.push(Answer {
                        payload: message.payload.to_vec(),
                    }),
                }
            }
        }
    }
}

/// One message of a datagram.
struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

fn messages(mut datagram: &[u8]) -> impl Iterator<Item = io::Result<Message<'_>>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let message = (|| {
            let length = number(datagram, 0)? as usize;
            let message = Message {
                kind: number_16(datagram, 4)?,
                flags: number_16(datagram, 6)?,
                sequence: number(datagram, 8)?,
                payload: datagram.get(HEADER..length)?,
            };
            datagram = datagram
                .get(length.next_multiple_of(4)..)
                .unwrap_or_default();
            Some(message)
        })();
        if message.is_none() {
            datagram = &[];
        }
        Some(message.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let bytes = Request::new(18, 0, &[7; 4])
            .with_text(3, "eth0")
            .with(4, &[9; 4])
            .finish(5);
        assert_eq!(number(&bytes, 0), Some(bytes.len() as u32));
        assert_eq!(number_16(&bytes, 4), Some(18));
        assert_eq!(number_16(&bytes, 6), Some(REQUEST_ACK));
        assert_eq!(number(&bytes, 8), Some(5));
        let answer = Answer {
            payload: bytes[HEADER..].to_vec(),
        };
        assert_eq!(answer.header::<4>(), Some([7; 4]));
        assert_eq!(
            answer.attributes(4).collect::<Vec<_>>(),
            [(3, &b"eth0\0"[..]), (4, &[9; 4][..])]
        );
        assert_eq!(text(answer.attribute(4, 3).unwrap()), "eth0");
    }

    #[test]
    fn what_is_cut_off_is_an_error_and_not_an_end() {
        let bytes = Request::new(18, 0, &[0; 16]).finish(1);
        assert_eq!(messages(&bytes).filter(Result::is_ok).count(), 1);
        assert!(messages(&bytes[..20]).any(|message| message.is_err()));
        let answer = Answer {
            payload: vec![200, 0, 1, 0],
        };
        assert_eq!(answer.attributes(0).count(), 0);
    }
}
