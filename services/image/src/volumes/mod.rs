//! Volumes: directories that outlive containers.
//!
//! ```text
//! <root>/volumes/<name>/volume.json      what it is
//! <root>/volumes/<name>/_data/           its content
//! <root>/volumes/<name>/.new-<random>/   being copied from an image
//! <root>/volumes/<name>/filling/         copied, and on its way into _data
//! <root>/volumes/.new-<random>/          a volume being made
//! ```
//!
//! **Whole or not there.** A volume is made, and filled, beside the others and
//! then gets its name; it is removed by a rename into the trash. One that is
//! there already and empty is filled from a whole copy within its directory: a
//! move that is cut short goes on at the next start. There is no index: a
//! volume is its directory, and one whose record was lost or damaged still has
//! its name and its content, and gets another record.
//!
//! **Who uses a volume** is in the records of the writable layers
//! ([`crate::snapshots`]): a container lets go of its volumes in the same moment
//! in which its layer goes, and there is nothing to agree with anything.
//!
//! **Locking.** A volume that is being made, filled or removed is held by its
//! name, copies included: whoever wants the same one waits, nobody else does.
//! Whether one may go, and that a container begins to use it, are decided under
//! the store's `keep`, as for images.

pub(crate) mod attach;
mod copy;
mod options;
mod records;
mod remove;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use gantry_oci::content::IngestKey;
use regex_lite::Regex;
use serde::{Deserialize, Serialize};

use crate::ImageStore;
use crate::error::ImageError;
use crate::list::{Condition, Filter};
pub use attach::{ImageWish, Mounted, Part, VolumeWish, Wishes};
pub use copy::CopyError;
pub use options::Backing;
pub(crate) use records::{VOLUME_FILE, load};
pub use remove::PrunedVolumes;

/// The one driver.
pub const LOCAL: &str = "local";

/// The directory of a volume's content.
pub(crate) const DATA: &str = "_data";

/// What Docker marks anonymous volumes with: scripts look for it.
const ANONYMOUS_LABEL: &str = "com.docker.volume.anonymous";

/// What is kept of a volume.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct VolumeRecord {
    pub name: String,
    /// The driver's options, as given.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub created: jiff::Timestamp,
    /// It was made without a name.
    #[serde(default)]
    pub anonymous: bool,
}

/// A volume that is wanted.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NewVolume {
    /// Empty: one is made up.
    pub name: String,
    /// Empty: [`LOCAL`].
    pub driver: String,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

/// A volume, as it is shown.
#[derive(Clone, Debug)]
pub struct Volume {
    pub record: Arc<VolumeRecord>,
    /// The directory of its content.
    pub mountpoint: PathBuf,
    /// Containers, the oldest first.
    pub used_by: Vec<String>,
}

/// All volumes in memory.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    by_name: RwLock<BTreeMap<String, Arc<VolumeRecord>>>,
    held: Mutex<HashSet<String>>,
    let_go: Condvar,
}

/// A volume that nobody else makes, fills or removes meanwhile.
pub(crate) struct Held<'a> {
    volumes: &'a Volumes,
    name: &'a str,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.volumes.held().remove(self.name);
        self.volumes.let_go.notify_all();
    }
}

impl Volumes {
    pub(crate) fn new(records: Vec<VolumeRecord>) -> Self {
        let records = records.into_iter();
        let by_name = records.map(|record| (record.name.clone(), Arc::new(record)));
        Self {
            by_name: RwLock::new(by_name.collect()),
            ..Self::default()
        }
    }

    fn held(&self) -> MutexGuard<'_, HashSet<String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody holds the volume of this name.
    pub(crate) fn hold<'a>(&'a self, name: &'a str) -> Held<'a> {
        let mut held = self
            .let_go
            .wait_while(self.held(), |held| held.contains(name))
            .unwrap_or_else(PoisonError::into_inner);
        held.insert(name.to_owned());
        Held {
            volumes: self,
            name,
        }
    }

    /// Whether a volume is there, and neither being made nor removed.
    pub(crate) fn is_settled(&self, name: &str) -> bool {
        !self.held().contains(name) && self.read().contains_key(name)
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<VolumeRecord>>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Arc<VolumeRecord>>> {
        self.by_name.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<VolumeRecord>> {
        self.read().get(name).cloned()
    }

    /// By their names.
    pub(crate) fn all(&self) -> Vec<Arc<VolumeRecord>> {
        self.read().values().cloned().collect()
    }
}

/// The rules of a volume's name, which becomes a directory's. They are Docker's.
pub(crate) fn check_name(text: &str) -> Result<(), ImageError> {
    let valid = (2..=255).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if valid {
        Ok(())
    } else {
        Err(ImageError::VolumeName {
            text: text.chars().take(80).collect(),
        })
    }
}

/// 64 hexadecimal digits.
fn random_name() -> String {
    format!("{}{}", IngestKey::random(), IngestKey::random())
}

/// Refuses a driver that is not the one there is.
fn check_driver(driver: &str) -> Result<(), ImageError> {
    if driver.is_empty() || driver == LOCAL {
        Ok(())
    } else {
        Err(ImageError::VolumeDriver {
            driver: driver.to_owned(),
        })
    }
}

impl VolumeRecord {
    /// A record of a volume that is wanted, checked. Without a name it gets one
    /// and is anonymous.
    fn of(new: &NewVolume) -> Result<Self, ImageError> {
        check_driver(&new.driver)?;
        options::backing(&new.options)?;
        let mut labels = new.labels.clone();
        let anonymous = new.name.is_empty();
        let name = if anonymous {
            labels.insert(ANONYMOUS_LABEL.to_owned(), String::new());
            random_name()
        } else {
            check_name(&new.name)?;
            new.name.clone()
        };
        Ok(Self {
            name,
            options: new.options.clone(),
            labels,
            created: jiff::Timestamp::now(),
            anonymous,
        })
    }

    /// Refuses that one which is there be used as one with other options.
    fn must_fit(&self, wanted: &Self) -> Result<(), ImageError> {
        if wanted.options.is_empty() || self.options == wanted.options {
            Ok(())
        } else {
            Err(ImageError::VolumeExists {
                name: self.name.clone(),
            })
        }
    }
}

impl ImageStore {
    /// Makes a volume, durably. One that is there already is answered as it is.
    /// Blocks.
    pub fn create_volume(&self, new: &NewVolume) -> Result<Volume, ImageError> {
        let record = Arc::new(VolumeRecord::of(new)?);
        let _held = self.shared.volumes.hold(&record.name);
        if let Some(there) = self.shared.volumes.get(&record.name) {
            there.must_fit(&record)?;
            return Ok(self.shown_volume(there));
        }
        self.make_volume(&record, true, |_| Ok(false))?;
        Ok(self.shown_volume(Arc::clone(&record)))
    }

    /// The volumes that pass the filters, by their names.
    pub fn list_volumes(&self, filters: &[Filter]) -> Result<Vec<Volume>, ImageError> {
        const KEYS: &str = "the keys are dangling, driver, label, label! and name";
        let conditions = filters
            .iter()
            .map(|filter| {
                Ok(match filter.key.as_str() {
                    "name" => Test::Name(
                        Regex::new(&filter.value)
                            .map_err(|_| filter.wrong("it is not a regular expression"))?,
                    ),
                    "driver" => Test::Driver(filter.value.clone()),
                    "label" | "label!" | "dangling" => Test::of(self.condition(filter)?),
                    _ => return Err(filter.wrong(KEYS)),
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let volumes = self.shared.volumes.all().into_iter();
        let volumes = volumes.map(|record| self.shown_volume(record));
        Ok(volumes
            .filter(|volume| passes(&conditions, volume))
            .collect())
    }

    /// The volume of this name.
    pub fn volume(&self, name: &str) -> Result<Volume, ImageError> {
        match self.shared.volumes.get(name) {
            Some(record) => Ok(self.shown_volume(record)),
            None => Err(ImageError::VolumeNotFound {
                name: name.to_owned(),
            }),
        }
    }

    pub(crate) fn shown_volume(&self, record: Arc<VolumeRecord>) -> Volume {
        Volume {
            mountpoint: self.volume_directory(&record.name).join(DATA),
            used_by: self.shared.snapshots.users_of_volume(&record.name),
            record,
        }
    }

    pub(crate) fn volume_directory(&self, name: &str) -> PathBuf {
        self.shared.places.volumes.join(name)
    }
}

/// One filter, understood.
#[derive(Clone, Debug)]
enum Test {
    Name(Regex),
    Driver(String),
    Label(String, Option<String>),
    NoLabel(String, Option<String>),
    Dangling(bool),
    Until(jiff::Timestamp),
    /// One that says nothing of volumes.
    Any,
}

impl Test {
    fn of(condition: Condition) -> Self {
        match condition {
            Condition::Label(key, value) => Self::Label(key, value),
            Condition::NoLabel(key, value) => Self::NoLabel(key, value),
            Condition::Dangling(dangling) => Self::Dangling(dangling),
            Condition::Until(time) => Self::Until(time),
            Condition::Reference(_) | Condition::Before(_) | Condition::Since(_) => Self::Any,
        }
    }

    fn holds(&self, volume: &Volume) -> bool {
        let record = &volume.record;
        let has = |key: &String, value: &Option<String>| {
            let found = record.labels.get(key);
            found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
        };
        match self {
            Self::Name(pattern) => pattern.is_match(&record.name),
            Self::Driver(driver) => driver == LOCAL,
            Self::Label(key, value) => has(key, value),
            Self::NoLabel(key, value) => !has(key, value),
            Self::Dangling(dangling) => volume.used_by.is_empty() == *dangling,
            Self::Until(time) => record.created <= *time,
            Self::Any => true,
        }
    }
}

/// Of several conditions on a name or a driver any may hold, of others all must.
fn passes(tests: &[Test], volume: &Volume) -> bool {
    let alike = |a: &Test, b: &Test| std::mem::discriminant(a) == std::mem::discriminant(b);
    tests.iter().all(|test| {
        let any = matches!(test, Test::Name(_) | Test::Driver(_) | Test::Dangling(_));
        let mut others = tests.iter().filter(|other| any && alike(test, other));
        test.holds(volume) || others.any(|other| other.holds(volume))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_plain_word() {
        for good in ["ab", "a-1", "data_x.y", &"a".repeat(255)] {
            check_name(good).unwrap();
        }
        for bad in [
            "",
            "a",
            ".new",
            "-x",
            "a/b",
            "..",
            "a b",
            "ä1",
            &"a".repeat(256),
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        check_name(&random_name()).unwrap();
        assert_eq!(random_name().len(), 64);
    }

    #[test]
    fn whoever_wants_a_volume_that_is_held_waits() {
        let volumes = Arc::new(Volumes::default());
        let held = volumes.hold("one");
        let other = volumes.hold("two");
        let waiting = std::thread::spawn({
            let volumes = Arc::clone(&volumes);
            move || drop(volumes.hold("one"))
        });
        assert!(!waiting.is_finished());
        drop(held);
        waiting.join().unwrap();
        drop(other);
        assert!(volumes.held().is_empty());
    }
}
