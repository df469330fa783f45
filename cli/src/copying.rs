//! Archives between this machine's files and the engine: packed and unpacked on
//! a thread of their own, a few pieces under way at a time.

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use bytes::Bytes;
use gantry_archive::arriving::Arriving;
use gantry_archive::ids::Ids;
use gantry_archive::pack::{self, PackError};
use gantry_archive::unpack::{Destination, Owner, unpack};
use gantry_archive::write::{WriteError, Writer};
use gantry_proto::gateway::v1::{CopyInOpen, CopyInRequest, CopyOutRequest, copy_in_request};
use gantry_proto::runtime::v1::CopyInEnd;
use gantry_proto::types::v1::Stream;
use rustix::fs::{CWD, Mode, OFlags};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::exit::Failure;
use crate::session::Session;
use crate::terminal;

/// Pieces under way.
const BACKLOG: usize = 4;
/// Bytes of standard input that are sent at once.
const CHUNK: usize = 256 << 10;

/// A file or a directory of this machine.
#[derive(Debug)]
pub(crate) struct Source {
    object: OwnedFd,
    directory: bool,
}

impl Source {
    /// Opens it as a place. `follow`: what it leads to, where it is a link.
    pub(crate) fn open(path: &str, follow: bool) -> Result<Self, Failure> {
        let failed = |error: rustix::io::Errno| {
            Failure::new(format!("{path:?}: {}", std::io::Error::from(error)))
        };
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        if path.ends_with('/') || path.ends_with("/.") {
            flags |= OFlags::DIRECTORY;
        } else if !follow {
            flags |= OFlags::NOFOLLOW;
        }
        let object = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(failed)?;
        let directory = pack::is_directory(&object).map_err(failed)?;
        Ok(Self { object, directory })
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.directory
    }
}

/// Writes what is inside a container to standard output, as an archive.
pub(crate) async fn to_stdout(session: &Session, request: CopyOutRequest) -> Result<u64, Failure> {
    let mut client = session.engine.containers();
    let mut answers = client.copy_out(request).await?.into_inner();
    let mut copied = 0;
    while let Some(answer) = answers.message().await? {
        copied += answer.chunk.len() as u64;
        terminal::write(Stream::Stdout, answer.chunk).await?;
    }
    Ok(copied)
}

/// Unpacks what is inside a container into a directory of this machine.
pub(crate) async fn to_directory(
    session: &Session,
    request: CopyOutRequest,
    directory: &Path,
    owner: Owner,
) -> Result<u64, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, directory, flags, Mode::empty())
        .map_err(|error| Failure::new(format!("{directory:?}: {}", std::io::Error::from(error))))?;
    let mut client = session.engine.containers();
    let mut answers = client.copy_out(request).await?.into_inner();
    let (pieces, mut received) = mpsc::channel(BACKLOG);
    let unpacking = tokio::task::spawn_blocking(move || {
        let source = Arriving::new(move || received.blocking_recv());
        // The archive is the container's work: nothing of it leads out of the directory.
        let destination = Destination::Beneath(opened.as_fd());
        unpack(destination, source, owner, &Ids::default())
    });
    let mut copied = 0;
    let broken = loop {
        let piece = match answers.message().await {
            Ok(Some(answer)) => Some(answer.chunk),
            Ok(None) => None,
            Err(status) => break Some(status),
        };
        copied += piece.as_ref().map_or(0, Bytes::len) as u64;
        let last = piece.is_none();
        if pieces.send(piece).await.is_err() || last {
            break None;
        }
    };
    drop(pieces);
    let unpacked = unpacking.await.map_err(|e| Failure::of(&e))?;
    match (broken, unpacked) {
        // What broke off is why it could not be unpacked.
        (Some(status), _) => Err(status.into()),
        (None, unpacked) => unpacked.map(|()| copied).map_err(|e| Failure::of(&e)),
    }
}

/// The pieces as the engine takes them.
struct Sender {
    requests: mpsc::Sender<CopyInRequest>,
}

impl Sender {
    fn begin(open: CopyInOpen) -> (Self, mpsc::Receiver<CopyInRequest>) {
        let (requests, waiting) = mpsc::channel(BACKLOG);
        // The queue is empty and its other end is here.
        let _sent = requests.try_send(CopyInRequest {
            message: Some(copy_in_request::Message::Open(open)),
        });
        (Self { requests }, waiting)
    }

    /// False: it is not wanted any more.
    fn send(&self, chunk: Bytes) -> bool {
        let message = Some(copy_in_request::Message::Chunk(chunk));
        self.requests
            .blocking_send(CopyInRequest { message })
            .is_ok()
    }

    /// Says that the archive is whole. One that just ends is broken off.
    fn end(self) {
        let message = Some(copy_in_request::Message::End(CopyInEnd {}));
        let _nobody_listens = self.requests.blocking_send(CopyInRequest { message });
    }
}

/// Sends what `produce` makes. How many bytes it was.
async fn send<E: Into<Failure> + Send + 'static>(
    session: &Session,
    open: CopyInOpen,
    produce: impl FnOnce(&Sender) -> Result<u64, E> + Send + 'static,
) -> Result<u64, Failure> {
    let (sender, waiting) = Sender::begin(open);
    let producing = tokio::task::spawn_blocking(move || {
        let produced = produce(&sender)?;
        sender.end();
        Ok::<u64, E>(produced)
    });
    let mut client = session.engine.containers();
    let answer = client.copy_in(ReceiverStream::new(waiting)).await;
    match answer {
        Ok(_copied) => producing
            .await
            .map_err(|e| Failure::of(&e))?
            .map_err(Into::into),
        // Standard input may never end: nobody waits for it.
        Err(status) if !producing.is_finished() => Err(status.into()),
        // What could not be made is why it broke off.
        Err(status) => match producing.await.map_err(|e| Failure::of(&e))? {
            Err(error) => Err(error.into()),
            Ok(_) => Err(status.into()),
        },
    }
}

/// Copies a file or a directory into a container, under `name`.
pub(crate) async fn from_here(
    session: &Session,
    open: CopyInOpen,
    source: Source,
    name: String,
) -> Result<u64, Failure> {
    send(session, open, move |sender| {
        let mut copied = 0;
        let take = |piece: Bytes| {
            copied += piece.len() as u64;
            sender.send(piece)
        };
        let mut writer = Writer::new(take);
        let packed = pack::pack(
            source.object.as_fd(),
            name.as_bytes(),
            &Ids::default(),
            &mut writer,
        )
        .and_then(|()| writer.finish().map_err(PackError::from));
        match packed {
            Ok(_) => Ok(copied),
            // The engine refused: it says why.
            Err(PackError::Write(WriteError::Unwanted)) => Ok(copied),
            Err(error) => Err(Failure::of(&error)),
        }
    })
    .await
}

/// Unpacks standard input into a directory of a container.
pub(crate) async fn from_stdin(session: &Session, open: CopyInOpen) -> Result<u64, Failure> {
    send(session, open, |sender| {
        let mut copied = 0;
        loop {
            let mut chunk = vec![0; CHUNK];
            let count = match std::io::stdin().lock().read(&mut chunk) {
                Ok(0) => return Ok(copied),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::from(error)),
            };
            chunk.truncate(count);
            copied += count as u64;
            if !sender.send(chunk.into()) {
                return Ok(copied);
            }
        }
    })
    .await
}
