//! The records of the sandboxes: a journal below the run directory.
//!
//! What a record describes (a namespace, a link, rules) lives in this kernel
//! and ends with it, so a record needs to outlive the service but not the boot.
//! A line that is handed to the kernel with one write(2) does that, and takes a
//! microsecond; a flush of the index that other services use takes a hundred
//! times as long, more than all the rest of giving a container its endpoint.
//!
//! ```text
//! <run>/network/journal      a JSON value per line
//!   {"boot":"<boot id>","version":1}          first; another boot: all is void
//!   {"pool":{"last":A,"released":[A,…]}}      the address pool's order so far
//!   {"put":{"id":…,"address":A,"life":…}}     the sandbox is now this
//!   {"drop":"<id>"}                           the sandbox is gone, its address
//!                                             released
//! ```
//! A line that cannot be read (a torn last one, say) is skipped and reported, and
//! the journal it was in is kept as `journal.damaged` until the next boot. The
//! line may have been an endpoint in use, so that as long as that file is there
//! nothing is removed for want of a record.
//! The journal is written anew when it is opened, and when most of it is about
//! sandboxes that are gone.
//!
//! # Locking
//! One lock, held for a write(2). One process at a time has the journal open:
//! flock(2) on `<run>/network/lock` holds that, which has its process id.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use gantry_kit::directories;
use gantry_kit::durable;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::ownership::LOCK;
use crate::sandbox::{Sandbox, SandboxId};

const VERSION: u32 = 1;

/// Mode of the journal, before the umask.
const MODE: u32 = 0o666;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Fewer dead lines than this are not worth a rewrite.
const DEAD_LINES_MAX: usize = 8192;

/// Records that cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("another network service uses {path:?}; stop it first")]
    InUse { path: PathBuf },
    #[error("cannot open the records {path:?}")]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot write the records {path:?}")]
    Write { path: PathBuf, source: io::Error },
}

/// The records of the sandboxes of one network.
pub(crate) trait Records: Send + Sync + std::fmt::Debug {
    /// Sets a sandbox's record. It survives the end of this process.
    fn put(&self, sandbox: &Sandbox) -> Result<(), StoreError>;
    /// Removes a sandbox's record, which releases its address.
    fn forget(&self, sandbox: &SandboxId) -> Result<(), StoreError>;
}

/// What was on record.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Past {
    pub(crate) sandboxes: Vec<Sandbox>,
    pub(crate) pool: PoolOrder,
    /// Lines that could not be read.
    pub(crate) unreadable: usize,
    /// Lines could not be read, now or earlier in this boot: what is on no record
    /// may be in use.
    pub(crate) incomplete: bool,
}

/// What the address pool needs to go on where it was.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PoolOrder {
    /// The highest address that had its turn.
    pub(crate) last: Option<Ipv4Addr>,
    /// Released addresses, the longest ago first.
    pub(crate) released: VecDeque<Ipv4Addr>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Pool(PoolOrder),
    Put(Sandbox),
    Drop(SandboxId),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    boot: String,
    version: u32,
}

/// [`Records`] on disk.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// Held locked for the life of the journal.
    lock: File,
    contents: Mutex<Contents>,
}

#[derive(Debug)]
struct Contents {
    file: File,
    live: BTreeMap<SandboxId, Sandbox>,
    pool: PoolOrder,
    lines: usize,
}

impl Journal {
    /// Opens the journal in `directory`, which need not exist.
    pub(crate) fn open(directory: &Path) -> Result<(Self, Past), StoreError> {
        let path = directory.join("journal");
        let failed = |source| StoreError::Open {
            path: path.clone(),
            source,
        };
        directories::make(directory).map_err(|error| failed(error.into()))?;
        let mut lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(directory.join(LOCK))
            .map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StoreError::InUse { path });
            }
            outcome => outcome.map_err(|errno| failed(errno.into()))?,
        }
        // For engines that meet with this one's bridge (see `ownership`).
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(failed)?;
        let header = Header {
            boot: fs::read_to_string(BOOT_ID)
                .map_err(failed)?
                .trim()
                .to_owned(),
            version: VERSION,
        };
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            outcome => outcome.map_err(failed)?,
        };
        let (live, pool, unreadable) = replay(&String::from_utf8_lossy(&text), &header);
        let damaged = directory.join("journal.damaged");
        if unreadable > 0 {
            durable::replace_volatile(&damaged, MODE, &text)
                .map_err(|error| failed(error.source))?;
        } else if live.is_empty() && is_of_another_boot(&text, &header) {
            match fs::remove_file(&damaged) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        let file = rewrite(&path, &header, &live, &pool).map_err(failed)?;
        let past = Past {
            sandboxes: live.values().cloned().collect(),
            pool: pool.clone(),
            unreadable,
            incomplete: damaged.exists(),
        };
        let journal = Self {
            path,
            lock,
            contents: Mutex::new(Contents {
                lines: live.len() + 2,
                file,
                live,
                pool,
            }),
        };
        Ok((journal, past))
    }

    fn append(&self, line: &Line) -> Result<(), StoreError> {
        let failed = |source| StoreError::Write {
            path: self.path.clone(),
            source,
        };
        let mut text = serde_json::to_vec(line).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        let mut contents = self.lock();
        contents.file.write_all(&text).map_err(failed)?;
        contents.lines += 1;
        let Contents { live, pool, .. } = &mut *contents;
        change(line, live, pool);
        if contents.lines > 2 * contents.live.len() + DEAD_LINES_MAX {
            let header = Header {
                boot: fs::read_to_string(BOOT_ID)
                    .map_err(failed)?
                    .trim()
                    .to_owned(),
                version: VERSION,
            };
            contents.file =
                rewrite(&self.path, &header, &contents.live, &contents.pool).map_err(failed)?;
            contents.lines = contents.live.len() + 2;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if let Err(error) = self.lock.set_len(0) {
            tracing::debug!(%error, "the lock keeps the process id");
        }
    }
}

impl Records for Journal {
    fn put(&self, sandbox: &Sandbox) -> Result<(), StoreError> {
        self.append(&Line::Put(sandbox.clone()))
    }

    fn forget(&self, sandbox: &SandboxId) -> Result<(), StoreError> {
        self.append(&Line::Drop(sandbox.clone()))
    }
}

fn replay(text: &str, header: &Header) -> (BTreeMap<SandboxId, Sandbox>, PoolOrder, usize) {
    let mut live = BTreeMap::new();
    let mut pool = PoolOrder::default();
    let mut unreadable = 0;
    let mut lines = text.lines();
    match lines.next().map(serde_json::from_str::<Header>) {
        None => return (live, pool, unreadable),
        Some(Ok(found)) if found != *header => return (live, pool, unreadable),
        Some(Ok(_)) => {}
        // What the other lines say is compared with the kernel.
        Some(Err(_)) => unreadable += 1,
    }
    for line in lines {
        match serde_json::from_str(line) {
            Ok(line) => change(&line, &mut live, &mut pool),
            Err(_) => unreadable += 1,
        }
    }
    (live, pool, unreadable)
}

fn is_of_another_boot(text: &[u8], header: &Header) -> bool {
    let first = text.split(|byte| *byte == b'\n').next();
    let found = first.and_then(|line| serde_json::from_slice::<Header>(line).ok());
    found.is_some_and(|found| found != *header)
}

fn change(line: &Line, live: &mut BTreeMap<SandboxId, Sandbox>, pool: &mut PoolOrder) {
    match line {
        Line::Pool(order) => *pool = order.clone(),
        Line::Put(sandbox) => {
            let former = live.insert(sandbox.id.clone(), sandbox.clone());
            if former.is_some() {
                return;
            }
            if pool.released.front() == Some(&sandbox.address) {
                pool.released.pop_front();
            } else {
                pool.released.retain(|address| *address != sandbox.address);
            }
            if !sandbox.chosen {
                pool.last = pool.last.max(Some(sandbox.address));
            }
        }
        Line::Drop(id) => {
            if let Some(sandbox) = live.remove(id) {
                pool.released.push_back(sandbox.address);
            }
        }
    }
}

/// Writes the journal anew beside the old one, and puts it in its place. It is
/// void after a power cut, so that nothing is synced.
fn rewrite(
    path: &Path,
    header: &Header,
    live: &BTreeMap<SandboxId, Sandbox>,
    pool: &PoolOrder,
) -> io::Result<File> {
    let mut text = serde_json::to_vec(header)?;
    text.push(b'\n');
    let lines =
        std::iter::once(Line::Pool(pool.clone())).chain(live.values().cloned().map(Line::Put));
    for line in lines {
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
    }
    durable::replace_volatile(path, MODE, &text).map_err(|error| error.source)?;
    OpenOptions::new().append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Life;

    fn sandbox(last: u8) -> Sandbox {
        Sandbox {
            own_users: false,
            id: SandboxId::try_from(format!("{last:08x}")).unwrap(),
            address: Ipv4Addr::new(10, 66, 0, last),
            chosen: false,
            mac: None,
            life: Life::Ready,
        }
    }

    #[test]
    fn what_was_put_is_there_again_and_what_was_dropped_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, past) = Journal::open(directory.path()).unwrap();
        assert_eq!(past, Past::default());
        for last in [2, 3, 4] {
            journal.put(&sandbox(last)).unwrap();
        }
        journal.forget(&sandbox(3).id).unwrap();
        journal.forget(&sandbox(2).id).unwrap();
        drop(journal);
        for _ in 0..2 {
            let (_, past) = Journal::open(directory.path()).unwrap();
            assert_eq!(past.sandboxes, [sandbox(4)]);
            assert_eq!(past.pool.released, [sandbox(3).address, sandbox(2).address]);
            assert_eq!(past.pool.last, Some(sandbox(4).address));
        }
    }

    #[test]
    fn a_torn_line_is_skipped_and_counted() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path()).unwrap();
        journal.put(&sandbox(2)).unwrap();
        drop(journal);
        let path = directory.path().join("journal");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"put\":{\"id\":\"0000").unwrap();
        let (_, past) = Journal::open(directory.path()).unwrap();
        assert_eq!((past.sandboxes.len(), past.unreadable), (1, 1));
        // The journal is written anew, and it is not forgotten what it lost.
        assert!(past.incomplete);
        let (_, past) = Journal::open(directory.path()).unwrap();
        assert_eq!((past.unreadable, past.incomplete), (0, true));
        // The next boot ends it.
        let text = fs::read_to_string(&path).unwrap();
        let boot = fs::read_to_string(BOOT_ID).unwrap();
        fs::write(&path, text.replace(boot.trim(), "another")).unwrap();
        let (_, past) = Journal::open(directory.path()).unwrap();
        assert!(!past.incomplete);
    }

    #[test]
    fn a_damaged_header_voids_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path()).unwrap();
        journal.put(&sandbox(2)).unwrap();
        drop(journal);
        let path = directory.path().join("journal");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"version\"", "\0\0")).unwrap();
        let (_, past) = Journal::open(directory.path()).unwrap();
        assert_eq!(past.sandboxes, [sandbox(2)]);
        assert!(past.incomplete);
    }

    #[test]
    fn records_of_another_boot_are_void() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path()).unwrap();
        journal.put(&sandbox(2)).unwrap();
        drop(journal);
        let path = directory.path().join("journal");
        let text = fs::read_to_string(&path).unwrap();
        let boot = fs::read_to_string(BOOT_ID).unwrap();
        fs::write(&path, text.replace(boot.trim(), "another")).unwrap();
        let (_, past) = Journal::open(directory.path()).unwrap();
        assert_eq!(past, Past::default());
    }

    #[test]
    fn a_leftover_of_a_rewrite_does_not_keep_the_journal_from_being_opened() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path()).unwrap();
        journal.put(&sandbox(2)).unwrap();
        drop(journal);
        fs::create_dir_all(directory.path().join("journal.new/inside")).unwrap();
        let (_, past) = Journal::open(directory.path()).unwrap();
        assert_eq!(past.sandboxes, [sandbox(2)]);
    }

    #[test]
    fn a_journal_in_use_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let _first = Journal::open(directory.path()).unwrap();
        assert!(matches!(
            Journal::open(directory.path()),
            Err(StoreError::InUse { .. })
        ));
    }

    #[test]
    fn a_long_life_does_not_make_a_long_journal() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path()).unwrap();
        journal.put(&sandbox(2)).unwrap();
        for _ in 0..DEAD_LINES_MAX {
            journal.put(&sandbox(3)).unwrap();
            journal.forget(&sandbox(3).id).unwrap();
        }
        let text = fs::read_to_string(directory.path().join("journal")).unwrap();
        assert!(text.lines().count() <= DEAD_LINES_MAX + 3);
        drop(journal);
        let (_, past) = Journal::open(directory.path()).unwrap();
        assert_eq!(past.sandboxes, [sandbox(2)]);
    }
}
