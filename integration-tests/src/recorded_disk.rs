//! A disk that records every write and every flush, so that a test can see what
//! a power cut at any of these points would have left.
//!
//! ```text
//! file system under test            ext4, XFS
//!   on a loop device                turns its flushes into fsync(2)
//!     over the file `disk`          of a FUSE file system in this process,
//!       over two ordinary files     the content now, and all writes in order
//! ```
//!
//! A real disk has a volatile cache: what was written since the last flush may
//! be on the platter or not, in any order, down to single sectors. [`Recording::cut`]
//! makes such an image: everything up to the last flush before the cut, and
//! some of what came after it.
//!
//! The disk lives in this process. A program that is stopped by force while a
//! disk is mounted leaves the mounts behind.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use tempfile::TempDir;

use crate::command;

/// What a disk writes at once or not at all, in bytes.
const SECTOR: usize = 512;
/// Size of the disk in bytes; XFS takes no less than 300 MiB.
const SIZE: u64 = 512 << 20;
/// The only file of the FUSE file system.
const NAME: &str = "disk";
const INODE: INodeNo = INodeNo(2);
/// For how long the kernel may keep attributes: they never change.
const KEEP: Duration = Duration::from_secs(3600);
/// Longest run of a tool of the file system.
const TOOL_DEADLINE: Duration = Duration::from_secs(60);

/// A file system that the disk is formatted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Ext4,
    Xfs,
}

impl Format {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    fn format(self, image: &Path) -> Result<()> {
        let mut tool = match self {
            Self::Ext4 => {
                let mut tool = Command::new("mkfs.ext4");
                // The kernel would initialize the rest behind the test's back.
                tool.args(["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
                tool
            }
            Self::Xfs => {
                let mut tool = Command::new("mkfs.xfs");
                tool.arg("-q");
                tool
            }
        };
        command::run(tool.arg(image), b"", TOOL_DEADLINE)?.text()?;
        Ok(())
    }

    fn options(self) -> &'static str {
        match self {
            Self::Ext4 => "loop",
            Self::Xfs => "loop,nouuid",
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// `length` bytes for `offset` of the disk, kept from `kept` of the recording.
    Write {
        offset: u64,
        length: usize,
        kept: u64,
    },
    Flush,
}

/// What the disk holds, and how it came to.
#[derive(Debug)]
struct Platter {
    content: File,
    kept: File,
    kept_bytes: u64,
    events: Vec<Event>,
}

/// The FUSE side.
#[derive(Debug)]
struct Disk(Arc<Mutex<Platter>>);

impl Disk {
    fn platter(&self) -> std::sync::MutexGuard<'_, Platter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn attributes(inode: INodeNo) -> FileAttr {
    let is_disk = inode == INODE;
    FileAttr {
        ino: inode,
        size: if is_disk { SIZE } else { 0 },
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: if is_disk {
            FileType::RegularFile
        } else {
            FileType::Directory
        },
        perm: if is_disk { 0o600 } else { 0o700 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Disk {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&KEEP, &attributes(INODE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&KEEP, &attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let length = u64::from(size).min(SIZE.saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        match self.platter().content.read_exact_at(&mut bytes, offset) {
            Ok(()) => reply.data(&bytes),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut platter = self.platter();
        let kept = platter.kept_bytes;
        let written = platter
            .content
            .write_all_at(data, offset)
            .and_then(|()| platter.kept.write_all_at(data, kept));
        let (Ok(()), Ok(length)) = (written, u32::try_from(data.len())) else {
            reply.error(Errno::EIO);
            return;
        };
        platter.kept_bytes += u64::from(length);
        platter.events.push(Event::Write {
            offset,
            length: data.len(),
            kept,
        });
        reply.written(length);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.platter().events.push(Event::Flush);
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}

/// A formatted disk whose writes are recorded. [`RecordedDisk::mount`] it, work
/// on it, end the work, drop the mount, then [`RecordedDisk::finish`].
#[derive(Debug)]
pub struct RecordedDisk {
    format: Format,
    platter: Arc<Mutex<Platter>>,
    session: BackgroundSession,
    /// The content when the recording began.
    formatted: File,
    fuse: TempDir,
}

impl RecordedDisk {
    /// # Errors
    /// The tool of the file system is not installed (`make test` installs it),
    /// or the kernel has no FUSE.
    pub fn new(format: Format) -> Result<Self> {
        let fuse = tempfile::Builder::new().prefix("gt-disk-").tempdir()?;
        let image = tempfile::NamedTempFile::new()?;
        image.as_file().set_len(SIZE)?;
        format.format(image.path())?;
        let formatted = tempfile::tempfile()?;
        copy_sparse(image.as_file(), &formatted)?;
        let platter = Arc::new(Mutex::new(Platter {
            content: image.into_file(),
            kept: tempfile::tempfile()?,
            kept_bytes: 0,
            events: Vec::new(),
        }));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("gantry-test-disk".to_owned())];
        let session = fuser::spawn_mount(Disk(Arc::clone(&platter)), fuse.path(), &config)
            .context("cannot mount a FUSE file system")?;
        Ok(Self {
            format,
            platter,
            session,
            formatted,
            fuse,
        })
    }

    /// Mounts the disk's file system on `target`.
    ///
    /// # Errors
    /// mount(8) fails.
    pub fn mount(&self, target: &Path) -> Result<LoopMount> {
        LoopMount::new(self.format, &self.fuse.path().join(NAME), target)
    }

    /// How many writes and flushes there were: a point in time of the disk.
    #[must_use]
    pub fn position(&self) -> usize {
        let platter = self.platter.lock().unwrap_or_else(PoisonError::into_inner);
        platter.events.len()
    }

    /// Ends the recording.
    ///
    /// # Errors
    /// The FUSE file system cannot be unmounted.
    pub fn finish(self) -> Result<Recording> {
        // By force: a mount namespace that somebody made meanwhile has a copy of the
        // mount, and would keep the connection open.
        rustix::mount::unmount(
            self.fuse.path(),
            rustix::mount::UnmountFlags::FORCE | rustix::mount::UnmountFlags::DETACH,
        )
        .context("cannot unmount the recorded disk")?;
        // An aborted connection is how it ends.
        let _ = self.session.join();
        let platter = Arc::into_inner(self.platter)
            .context("the recorded disk is still served")?
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(Recording {
            format: self.format,
            durable: self.formatted,
            durable_events: 0,
            kept: platter.kept,
            events: platter.events,
        })
    }
}

/// All that was written to a disk, to be cut anywhere.
#[derive(Debug)]
pub struct Recording {
    format: Format,
    /// The disk after the first `durable_events` events.
    durable: File,
    durable_events: usize,
    kept: File,
    events: Vec<Event>,
}

impl Recording {
    /// Writes into `image` what a power cut after the first `position` events
    /// leaves. Cuts are made in ascending order of their positions. `random`
    /// chooses what of the disk's cache survives.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn cut(
        &mut self,
        position: usize,
        image: &Path,
        random: &mut impl FnMut() -> u64,
    ) -> Result<()> {
        let flushed = self.events[..position]
            .iter()
            .rposition(|event| matches!(event, Event::Flush))
            .unwrap_or(0)
            .max(self.durable_events);
        for event in &self.events[self.durable_events..flushed] {
            self.replay(event, &self.durable, |_| true)?;
        }
        self.durable_events = flushed;
        let target = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(image)?;
        copy_sparse(&self.durable, &target)?;
        // A cache that was lost, one that was just written back, or a part of it.
        let survival = random() % 4;
        for event in &self.events[flushed..position] {
            self.replay(event, &target, |_| match survival {
                0 => false,
                1 => true,
                _ => random() & 1 == 0,
            })?;
        }
        Ok(())
    }

    fn replay(
        &self,
        event: &Event,
        target: &File,
        mut survives: impl FnMut(usize) -> bool,
    ) -> Result<()> {
        let Event::Write {
            offset,
            length,
            kept,
        } = *event
        else {
            return Ok(());
        };
        let mut bytes = vec![0; length];
        self.kept.read_exact_at(&mut bytes, kept)?;
        let mut at = offset;
        for (number, sector) in bytes.chunks(SECTOR).enumerate() {
            if survives(number) {
                target.write_all_at(sector, at)?;
            }
            at += sector.len() as u64;
        }
        Ok(())
    }

    /// Mounts an image that [`Recording::cut`] made.
    ///
    /// # Errors
    /// mount(8) fails: the file system does not survive the cut.
    pub fn mount(&self, image: &Path, target: &Path) -> Result<LoopMount> {
        LoopMount::new(self.format, image, target)
    }
}

/// A file system on a loop device, unmounted when dropped.
#[derive(Debug)]
pub struct LoopMount {
    target: PathBuf,
}

impl LoopMount {
    fn new(format: Format, image: &Path, target: &Path) -> Result<Self> {
        let mut mount = Command::new("mount");
        mount
            .args(["-t", format.name(), "-o", format.options()])
            .arg(image)
            .arg(target);
        command::run(&mut mount, b"", TOOL_DEADLINE)?.text()?;
        Ok(Self {
            target: target.to_owned(),
        })
    }

    /// Unmounts it.
    ///
    /// # Errors
    /// A process still uses it.
    pub fn unmount(self) -> Result<()> {
        let target = self.target.clone();
        std::mem::forget(self);
        command::run(Command::new("umount").arg(&target), b"", TOOL_DEADLINE)?.text()?;
        Ok(())
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        // After a failure; the failure that came before is worth more.
        let _ = command::run(
            Command::new("umount").arg("--lazy").arg(&self.target),
            b"",
            TOOL_DEADLINE,
        );
    }
}

/// Copies the data of `from`, not its holes, over an empty `to`.
fn copy_sparse(from: &File, to: &File) -> Result<()> {
    use rustix::fs::{SeekFrom, seek};
    let size = from.metadata()?.len();
    to.set_len(0)?;
    to.set_len(size)?;
    let mut at = 0;
    let mut buffer = vec![0; 1 << 20];
    while at < size {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error).context("lseek"),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        let mut at_data = start;
        while at_data < end {
            let length = usize::try_from(end - at_data)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            from.read_exact_at(&mut buffer[..length], at_data)?;
            to.write_all_at(&buffer[..length], at_data)?;
            at_data += length as u64;
        }
        at = end;
    }
    Ok(())
}

/// Writes the boot id that a started engine is to see instead of the machine's,
/// and answers the words to start it behind.
///
/// # Errors
/// The file cannot be written.
pub fn boot_wrapper(directory: &Path, boot: usize) -> Result<Vec<String>> {
    let file = directory.join(format!("boot-{boot}"));
    fs::write(&file, format!("00000000-0000-4000-8000-{boot:012x}\n"))?;
    let script = r#"mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@""#;
    Ok(["unshare", "--mount", "sh", "-c", script]
        .into_iter()
        .map(str::to_owned)
        .chain([file.to_string_lossy().into_owned()])
        .collect())
}
