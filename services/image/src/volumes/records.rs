//! Volumes on the disk: made, filled, read again at the next start.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::{DATA, VolumeRecord, check_name, copy};
use crate::ImageStore;
use crate::disk::{NEW, Places, names_in};
use crate::error::ImageError;
use crate::store::read_file;

/// The name of a volume's record in its directory.
pub(crate) const VOLUME_FILE: &str = "volume.json";

/// A copy that is whole and on its way into the volume's content.
const FILLING: &str = "filling";

fn make_directory(path: &Path, mode: u32) -> Result<(), ImageError> {
    fs::DirBuilder::new()
        .create(path)
        // Whatever the umask is.
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(ImageError::io("make the directory", path))
}

pub(crate) fn to_json(record: &VolumeRecord) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(record).map_err(|error| ImageError::Stream {
        reason: format!("a record cannot be written: {error}"),
    })
}

/// All volumes of an earlier process. What it was in the middle of is finished
/// or thrown away.
pub(crate) fn load(places: &Places) -> Result<Vec<VolumeRecord>, ImageError> {
    let mut records = Vec::new();
    for name in names_in(&places.volumes)? {
        if check_name(&name).is_err() {
            tracing::warn!(name, "a foreign file among the volumes");
            continue;
        }
        // One that cannot be read does not stop the others.
        match settle(places, &name) {
            Ok(record) => records.push(record),
            Err(error) => {
                let error = gantry_kit::fault::chain(&error);
                tracing::error!(volume = name, error, "a volume cannot be used");
            }
        }
    }
    Ok(records)
}

fn settle(places: &Places, name: &str) -> Result<VolumeRecord, ImageError> {
    let directory = places.volumes.join(name);
    for part in names_in(&directory)? {
        if part.starts_with(NEW) {
            places.discard(&directory.join(part))?;
        }
    }
    if directory.join(FILLING).is_dir() {
        move_in(places, &directory)?;
    }
    let file = directory.join(VOLUME_FILE);
    match read_file::<VolumeRecord>(&file) {
        Some(record) if record.name == name => Ok(record),
        _ => {
            if file.exists() {
                let aside = places.set_aside(&file, Some(name))?;
                tracing::error!(volume = name, aside = %aside.display(), "a volume's record cannot be read and is set aside");
            }
            tracing::warn!(
                volume = name,
                "a volume has no record and gets another; its labels and options are lost"
            );
            let record = VolumeRecord {
                name: name.to_owned(),
                options: Default::default(),
                labels: Default::default(),
                created: modified(&directory),
                // What is not known to be nobody's stays.
                anonymous: false,
            };
            places.write_file(&file, &to_json(&record)?, true)?;
            Ok(record)
        }
    }
}

fn modified(directory: &Path) -> jiff::Timestamp {
    let time = fs::metadata(directory).and_then(|found| found.modified());
    jiff::Timestamp::try_from(time.unwrap_or(SystemTime::UNIX_EPOCH)).unwrap_or_default()
}

/// Moves a whole copy into the empty content beside it, and gives that the
/// copy's own attributes. What came there meanwhile stays.
fn move_in(places: &Places, directory: &Path) -> Result<(), ImageError> {
    let (from, to) = (directory.join(FILLING), directory.join(DATA));
    let failed = |error: Errno| ImageError::io("fill", &to)(error.into());
    let (source, target) = (open(&from)?, open(&to)?);
    let stat = rustix::fs::fstat(&source).map_err(failed)?;
    for name in fs::read_dir(&from).map_err(ImageError::io("list", &from))? {
        let name = name.map_err(ImageError::io("list", &from))?.file_name();
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&source, &name, &target, &name, flags) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    copy::attributes_of_root(&source, &stat, &target).map_err(failed)?;
    places.discard(&from)?;
    Ok(())
}

fn open(path: &Path) -> Result<File, ImageError> {
    File::open(path).map_err(ImageError::io("open", path))
}

impl ImageStore {
    /// Makes a volume that is not there. `fill` puts what it begins with into its
    /// content, and says whether that was more than a few bytes. Its name is held.
    pub(super) fn make_volume(
        &self,
        record: &Arc<VolumeRecord>,
        durable: bool,
        fill: impl FnOnce(&File) -> Result<bool, ImageError>,
    ) -> Result<(), ImageError> {
        let places = &self.shared.places;
        let new = places.new_directory(&places.volumes)?;
        let made = self.make_volume_in(&new, record, durable, fill);
        if made.is_err() {
            places.discard(&new).ok();
            self.empty_trash_behind();
        }
        made
    }

    fn make_volume_in(
        &self,
        new: &Path,
        record: &Arc<VolumeRecord>,
        durable: bool,
        fill: impl FnOnce(&File) -> Result<bool, ImageError>,
    ) -> Result<(), ImageError> {
        let places = &self.shared.places;
        fs::set_permissions(new, fs::Permissions::from_mode(0o700))
            .map_err(ImageError::io("set the mode of", new))?;
        let content = new.join(DATA);
        make_directory(&content, 0o755)?;
        let content = open(&content)?;
        let much = fill(&content)?;
        places.write_file(&new.join(VOLUME_FILE), &to_json(record)?, durable)?;
        if durable && much {
            self.shared.syncer.sync()?;
        } else if durable {
            content
                .sync_all()
                .map_err(ImageError::io("bring to the disk", new))?;
        }
        let directory = self.volume_directory(&record.name);
        fs::rename(new, &directory).map_err(ImageError::io("make", &directory))?;
        if durable {
            let synced = File::open(&places.volumes).and_then(|volumes| volumes.sync_all());
            synced.map_err(ImageError::io("bring to the disk", &places.volumes))?;
        }
        let mut volumes = self.shared.volumes.write();
        volumes.insert(record.name.clone(), Arc::clone(record));
        drop(volumes);
        self.events().of_volume("create", &record.name);
        Ok(())
    }

    /// Fills a volume that is there and empty. Its name is held.
    pub(super) fn fill_volume(
        &self,
        name: &str,
        durable: bool,
        fill: impl FnOnce(&File) -> Result<bool, ImageError>,
    ) -> Result<(), ImageError> {
        let places = &self.shared.places;
        let directory = self.volume_directory(name);
        if directory.join(FILLING).is_dir() {
            return move_in(places, &directory);
        }
        if !is_empty(&directory.join(DATA))? {
            return Ok(());
        }
        let new = places.new_directory(&directory)?;
        let filled = (|| {
            let much = fill(&open(&new)?)?;
            if durable && much {
                self.shared.syncer.sync()?;
            }
            let whole = directory.join(FILLING);
            fs::rename(&new, &whole).map_err(ImageError::io("fill", &directory))
        })();
        if filled.is_err() {
            places.discard(&new).ok();
            self.empty_trash_behind();
            return filled;
        }
        let moved = move_in(places, &directory);
        self.empty_trash_behind();
        moved
    }
}

/// Whether nothing is in a directory.
pub(super) fn is_empty(directory: &Path) -> Result<bool, ImageError> {
    match fs::read_dir(directory) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(ImageError::io("list", directory)(error)),
    }
}
