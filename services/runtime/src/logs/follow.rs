//! Going on with what is logged from now on.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;

use super::segment::{self, Segment};
use super::{Batches, Entry, Query, Reader};
use crate::error::{Error, Result};
use crate::process::watched;

/// Sends what is logged, and goes on until `ended` resolves: then all that was
/// logged before it has been sent.
pub async fn follow(
    directory: PathBuf,
    query: Query,
    batches: Batches,
    ended: impl Future<Output = ()>,
) {
    tokio::select! {
        // The reader went away.
        () = batches.closed() => {}
        outcome = send_all(directory, query, &batches, ended) => {
            if let Err(error) = outcome {
                let _gone = batches.send(Err(error)).await;
            }
        }
    }
}

async fn send_all(
    directory: PathBuf,
    query: Query,
    batches: &Batches,
    ended: impl Future<Output = ()>,
) -> Result<()> {
    // Watched before it is read: what comes in between is seen twice, not missed.
    let changes = watch(&directory)?;
    let opened = directory.clone();
    let mut reader = blocking(move || Reader::open(&opened, &query)).await?;
    let mut ended = std::pin::pin!(ended);
    let mut has_ended = false;
    let mut last = reader.segments.back().map_or(0, |segment| segment.number);
    loop {
        let entries;
        (reader, entries) = read(reader).await?;
        match entries {
            None => return Ok(()),
            Some(entries) if !entries.is_empty() => {
                // A rotation meanwhile must not pass unseen: hold its segments open.
                let permit = loop {
                    tokio::select! {
                        permit = batches.reserve() => break permit,
                        change = changed(&changes) => {
                            change.map_err(|e| Error::file("cannot watch", &directory, e))?;
                            open_new(&directory, &mut reader, &mut last)?;
                        }
                    }
                };
                let Ok(permit) = permit else {
                    return Ok(());
                };
                permit.send(Ok(entries));
                open_new(&directory, &mut reader, &mut last)?;
                continue;
            }
            Some(_) => {}
        }
        if open_new(&directory, &mut reader, &mut last)? {
            continue;
        }
        if has_ended {
            return Ok(());
        }
        tokio::select! {
            change = changed(&changes) => change.map_err(|e| Error::file("cannot watch", &directory, e))?,
            () = &mut ended => has_ended = true,
        }
    }
}

/// Opens segments that are new; false where none is.
fn open_new(directory: &Path, reader: &mut Reader, last: &mut u64) -> Result<bool> {
    let mut opened = false;
    for number in segment::numbers(directory)? {
        if number > *last
            && let Some(segment) = Segment::open(directory, number)?
        {
            reader.push(segment)?;
            *last = number;
            opened = true;
        }
    }
    Ok(opened)
}

async fn read(mut reader: Reader) -> Result<(Reader, Option<Vec<Entry>>)> {
    blocking(move || {
        let entries = reader.next()?;
        Ok((reader, entries))
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::file("cannot read", "", io::Error::other(error))))
}

fn watch(directory: &Path) -> Result<AsyncFd<OwnedFd>> {
    let make = || -> io::Result<AsyncFd<OwnedFd>> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(
            &fd,
            directory,
            WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::DELETE_SELF,
        )?;
        watched(fd)
    };
    make().map_err(|source| Error::file("cannot watch", directory, source))
}

/// Returns after a change. What changed is found by looking.
async fn changed(changes: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut ready = changes.readable().await?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(changes.get_ref(), &mut buffer);
    loop {
        match events.next() {
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    ready.clear_ready();
    Ok(())
}
