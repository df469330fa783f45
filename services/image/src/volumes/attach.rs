//! A container comes to its volumes, and to the files of other images.
//!
//! First everything is checked, then the container's record says what it uses,
//! then volumes that are not there are made, each with what the image has at its
//! place. So whatever happens, nothing that is made here is unknown to the
//! record: who undoes the container finds it.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use gantry_oci::Digest;
use serde::{Deserialize, Serialize};

use super::{DATA, NewVolume, VolumeRecord, copy, options::Backing, options::backing};
use crate::ImageStore;
use crate::error::ImageError;
use crate::image::Image;
use crate::snapshots::SnapshotRecord;
use crate::union::Union;

/// The most volumes and images of one container. An image says itself how many
/// volumes it wants.
const MOUNTS_MAX: usize = 512;

/// A volume that a container wants.
#[derive(Clone, Debug, Default)]
pub struct VolumeWish {
    /// Without a name: an anonymous one. Its options count if it is not there.
    pub volume: NewVolume,
    /// Absolute path in the container.
    pub target: String,
    pub no_copy: bool,
    /// Empty: all of it.
    pub subpath: String,
    /// It goes with the last container, though it has a name here.
    pub anonymous: bool,
    /// It is not made if it is not there.
    pub must_exist: bool,
}

/// An image whose files a container wants.
#[derive(Clone, Debug, Default)]
pub struct ImageWish {
    pub image: String,
    pub target: String,
    /// Empty: all of it.
    pub subpath: String,
}

/// What a container wants besides its own root.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    pub volumes: Vec<VolumeWish>,
    pub images: Vec<ImageWish>,
    /// A volume for each VOLUME of the container's image.
    pub image_volumes: bool,
    /// Where the container mounts other things: no VOLUME of the image is there.
    pub other_targets: Vec<String>,
}

impl Wishes {
    /// Whether a container of an image needs nothing besides its root.
    pub(crate) fn ask_nothing_of(&self, image: &Image) -> bool {
        let none_of_the_image = !self.image_volumes || image.config.config.volumes.is_empty();
        self.volumes.is_empty() && self.images.is_empty() && none_of_the_image
    }
}

/// A container's use of a volume, as its record has it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct VolumeUse {
    pub volume: String,
    pub target: String,
    /// The volume goes with the last container.
    #[serde(default)]
    pub anonymous: bool,
}

/// A container's use of an image's files, as its record has it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ImageFiles {
    pub image: Digest,
    pub target: String,
    /// Directories of the layers, the lowest first.
    pub layers: Vec<String>,
}

/// Something that a container is to mount.
#[derive(Clone, Debug)]
pub struct Mounted {
    /// As it was asked for.
    pub target: String,
    pub part: Part,
}

/// What is to be mounted.
#[derive(Clone, Debug)]
pub enum Part {
    Volume {
        name: String,
        anonymous: bool,
        /// The directory of its content.
        mountpoint: PathBuf,
        backing: Backing,
    },
    Image {
        id: Digest,
        /// The top-most first, each once; the last one is empty. Alone, as of an
        /// image without layers, it is no overlay.
        layers: Vec<PathBuf>,
    },
}

/// What a container is to have, checked.
pub(crate) struct Plan {
    volumes: Vec<PlannedVolume>,
    images: Vec<ImageFiles>,
}

struct PlannedVolume {
    record: Arc<VolumeRecord>,
    target: String,
    no_copy: bool,
    subpath: String,
    anonymous: bool,
}

impl Plan {
    pub(crate) fn uses(&self) -> Vec<VolumeUse> {
        let uses = self.volumes.iter().map(|planned| VolumeUse {
            volume: planned.record.name.clone(),
            target: planned.target.clone(),
            anonymous: planned.anonymous,
        });
        uses.collect()
    }

    pub(crate) fn images(&self) -> &[ImageFiles] {
        &self.images
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.images.is_empty()
    }
}

/// A path in a container without what means nothing in it.
fn plain(target: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(target);
    if !path.is_absolute() {
        return Err("it is not an absolute path");
    }
    if target.contains('\0') || target.len() > 4095 {
        return Err("it is not a path that the system takes");
    }
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => return Err("it has '..' in it"),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    match plain.as_os_str().is_empty() {
        true => Err("it is the root of the container"),
        false => Ok(plain),
    }
}

fn refused(target: &str, reason: impl Into<String>) -> ImageError {
    ImageError::VolumeMount {
        target: target.chars().take(200).collect(),
        reason: reason.into(),
    }
}

/// A path in a volume that leads nowhere else.
fn check_subpath(subpath: &str) -> Result<(), &'static str> {
    let path = Path::new(subpath);
    let stays = path
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    match stays && !subpath.contains('\0') && subpath.len() <= 4095 {
        true => Ok(()),
        false => Err("the subpath is not a relative path without '..'"),
    }
}

impl ImageStore {
    /// Checks what a container of an image wants. Changes nothing.
    pub(crate) fn plan(&self, image: &Image, wishes: &Wishes) -> Result<Plan, ImageError> {
        let mut plan = Plan {
            volumes: Vec::new(),
            images: Vec::new(),
        };
        let mut taken = HashSet::new();
        for target in &wishes.other_targets {
            taken.insert(plain(target).map_err(|reason| refused(target, reason))?);
        }
        let mut take = |target: &str| {
            let path = plain(target).map_err(|reason| refused(target, reason))?;
            match taken.insert(path) {
                true => Ok(()),
                false => Err(refused(target, "something else is mounted there")),
            }
        };
        for wish in &wishes.volumes {
            take(&wish.target)?;
            plan.volumes.push(self.plan_volume(wish)?);
        }
        for wish in &wishes.images {
            take(&wish.target)?;
            let image = match self.resolve(&wish.image) {
                // Not to be taken for the container's own, which is pulled then.
                Err(error @ ImageError::NotFound { .. }) => {
                    return Err(refused(&wish.target, format!("{error}; pull it first")));
                }
                outcome => outcome?,
            };
            self.check_layers(&image, &wish.image)?;
            if !wish.subpath.is_empty() {
                check_subpath(&wish.subpath).map_err(|reason| refused(&wish.target, reason))?;
                let found = self.files_of(&image)?.resolve(wish.subpath.as_bytes());
                if found.map_err(|error| not_read(&image, error))?.is_none() {
                    let reason = format!("image {} has no {:?}", wish.image, wish.subpath);
                    return Err(refused(&wish.target, reason));
                }
            }
            let layers = image.record.layers.iter();
            plan.images.push(ImageFiles {
                image: image.id().clone(),
                target: wish.target.clone(),
                layers: layers.map(|layer| layer.key.clone()).collect(),
            });
        }
        if wishes.image_volumes {
            for target in image.config.config.volumes.keys() {
                let path = plain(target).map_err(|reason| ImageError::Unusable {
                    reference: image.display_name(),
                    reason: format!("its VOLUME {target:?} cannot be mounted: {reason}"),
                })?;
                if taken.insert(path) {
                    plan.volumes.push(self.plan_volume(&VolumeWish {
                        target: target.clone(),
                        ..VolumeWish::default()
                    })?);
                }
            }
        }
        if plan.volumes.len() + plan.images.len() > MOUNTS_MAX {
            return Err(ImageError::Field {
                field: "volumes",
                reason: format!("there are more than {MOUNTS_MAX}"),
            });
        }
        // A file where a directory has to be would be found out by the mount only.
        if !plan.volumes.is_empty() {
            let files = self.files_of(image)?;
            for planned in plan.volumes.iter().filter(|p| p.subpath.is_empty()) {
                let found = files.resolve(planned.target.as_bytes());
                let found = found.map_err(|error| not_read(image, error))?;
                if found.is_some_and(|(_, node)| !node.is_directory()) {
                    let reason = "the image has a file there, and a volume is a directory";
                    return Err(refused(&planned.target, reason));
                }
            }
        }
        Ok(plan)
    }

    fn plan_volume(&self, wish: &VolumeWish) -> Result<PlannedVolume, ImageError> {
        check_subpath(&wish.subpath).map_err(|reason| refused(&wish.target, reason))?;
        let wanted = VolumeRecord::of(&wish.volume)?;
        let there = self.shared.volumes.get(&wanted.name);
        match &there {
            Some(there) => there.must_fit(&wanted)?,
            None if wish.must_exist => {
                return Err(ImageError::VolumeNotFound { name: wanted.name });
            }
            None => {}
        }
        let record = there.unwrap_or_else(|| Arc::new(wanted));
        if let Backing::Bind { device, .. } = backing(&record.options)? {
            std::fs::metadata(&device).map_err(|error| {
                let device = device.display();
                refused(
                    &wish.target,
                    format!("volume {} is {device}: {error}; make it first", record.name),
                )
            })?;
        }
        if !wish.subpath.is_empty() && !matches!(backing(&record.options)?, Backing::Tmpfs { .. }) {
            // What is mounted is looked up again then: it may be another by that time.
            let content = self.volume_directory(&record.name).join(DATA);
            let content = match backing(&record.options)? {
                Backing::Bind { device, .. } => device,
                Backing::Directory | Backing::Tmpfs { .. } => content,
            };
            subpath_is_there(&content, &wish.subpath).map_err(|error| {
                refused(
                    &wish.target,
                    format!(
                        "volume {} has no usable {:?}: {error}",
                        record.name, wish.subpath
                    ),
                )
            })?;
        }
        Ok(PlannedVolume {
            anonymous: wish.anonymous || wish.volume.name.is_empty(),
            target: wish.target.clone(),
            no_copy: wish.no_copy,
            subpath: wish.subpath.clone(),
            record,
        })
    }

    fn files_of(&self, image: &Image) -> Result<Union, ImageError> {
        self.image_files(image)
            .map_err(|error| not_read(image, error))
    }

    /// Makes and fills what is planned. The container's record names it already.
    /// On an error what was made is removed again.
    pub(crate) fn fulfil(
        &self,
        image: &Image,
        plan: &Plan,
        record: &SnapshotRecord,
    ) -> Result<(), ImageError> {
        let mut made = Vec::new();
        let outcome = (|| {
            if plan.volumes.is_empty() {
                return Ok(());
            }
            let files = self.files_of(image)?;
            for planned in &plan.volumes {
                if self.attach(image, &files, planned, record.ephemeral)? {
                    made.push(planned.record.name.clone());
                }
            }
            Ok(())
        })();
        if outcome.is_err() {
            self.undo_volumes(&made, &record.container);
        }
        outcome
    }

    /// Removes volumes that were just made, unless somebody else came to one.
    fn undo_volumes(&self, made: &[String], container: &str) {
        for name in made {
            let _held = self.shared.volumes.hold(name);
            {
                let _keep = self.shared.keep_lock();
                let users = self.shared.snapshots.users_of_volume(name);
                if users.iter().any(|user| user != container) {
                    continue;
                }
                self.shared.volumes.write().remove(name);
            }
            match self.shared.places.discard(&self.volume_directory(name)) {
                Ok(_) => self.events().of_volume("destroy", name),
                Err(error) => {
                    let error = gantry_kit::fault::chain(&error);
                    tracing::error!(volume = name, error, "a volume that nobody uses stays");
                }
            }
        }
        self.empty_trash_behind();
    }

    /// Makes a volume if it is not there, and fills it if it is empty. True: it
    /// was made.
    fn attach(
        &self,
        image: &Image,
        files: &Union,
        planned: &PlannedVolume,
        ephemeral: bool,
    ) -> Result<bool, ImageError> {
        let name = planned.record.name.as_str();
        let durable = !(ephemeral && planned.anonymous);
        let fill = |to: &File| {
            if planned.no_copy || !planned.subpath.is_empty() {
                return Ok(false);
            }
            let found = files.resolve(planned.target.as_bytes());
            let Some((from, node)) = found.map_err(|error| not_read(image, error))? else {
                return Ok(false);
            };
            if !node.is_directory() {
                return Ok(false);
            }
            copy::copy(files, &node, &from, to).map_err(|source| ImageError::VolumeCopy {
                volume: name.to_owned(),
                source,
            })
        };
        let _held = self.shared.volumes.hold(name);
        let there = self.shared.volumes.get(name);
        let record = there.as_ref().unwrap_or(&planned.record);
        match backing(&record.options)? {
            Backing::Tmpfs { .. } => {}
            // Its content is not ours, and cannot be put in its place as a whole.
            Backing::Bind { device, .. } => {
                if super::records::is_empty(&device)? {
                    let content = File::open(&device).map_err(ImageError::io("open", &device))?;
                    fill(&content)?;
                }
            }
            Backing::Directory if there.is_some() => {
                self.fill_volume(name, durable, fill)?;
                return Ok(false);
            }
            Backing::Directory => {
                self.make_volume(record, durable, fill)?;
                return Ok(true);
            }
        }
        if there.is_some() {
            return Ok(false);
        }
        self.make_volume(record, durable, |_| Ok(false))?;
        Ok(true)
    }

    /// What a container is to mount, by its record: volumes, then images.
    pub(crate) fn mounted(&self, record: &SnapshotRecord) -> Result<Vec<Mounted>, ImageError> {
        let mut all = Vec::new();
        for used in &record.volumes {
            let volume = self.volume(&used.volume)?;
            all.push(Mounted {
                target: used.target.clone(),
                part: Part::Volume {
                    name: used.volume.clone(),
                    anonymous: used.anonymous,
                    mountpoint: volume.mountpoint,
                    backing: backing(&volume.record.options)?,
                },
            });
        }
        for files in &record.images {
            let mut layers = self.shared.layers.stack(files.layers.iter());
            // Of one layer alone overlayfs makes nothing, and its marks would be seen.
            layers.push(self.shared.places.empty.clone());
            all.push(Mounted {
                target: files.target.clone(),
                part: Part::Image {
                    id: files.image.clone(),
                    layers,
                },
            });
        }
        Ok(all)
    }
}

fn not_read(image: &Image, source: crate::union::UnionError) -> ImageError {
    ImageError::Files {
        of: format!("image {}", image.display_name()),
        source,
    }
}

/// Whether a path leads to something within a directory, and nowhere else.
fn subpath_is_there(content: &Path, subpath: &str) -> std::io::Result<()> {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let directory = rustix::fs::open(content, flags | OFlags::DIRECTORY, Mode::empty())?;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(&directory, subpath, flags, Mode::empty(), beneath) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            other => return other.map(drop).map_err(Into::into),
        }
    }
}

/// How many containers use each volume: for the account.
pub(crate) fn links<'a>(
    records: impl Iterator<Item = &'a Arc<SnapshotRecord>>,
) -> BTreeMap<&'a str, Vec<String>> {
    let mut links: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for record in records {
        for used in &record.volumes {
            let users = links.entry(used.volume.as_str()).or_default();
            if users.last() != Some(&record.container) {
                users.push(record.container.clone());
            }
        }
    }
    links
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_compared_without_what_means_nothing_in_them() {
        assert_eq!(plain("/a//b/./").unwrap(), plain("/a/b").unwrap());
        for bad in ["", "a", "/", "//.", "/a/../b", "/a\0"] {
            assert!(plain(bad).is_err(), "{bad:?}");
        }
        for bad in ["/a", "..", "a/../b", "a\0"] {
            assert!(check_subpath(bad).is_err(), "{bad:?}");
        }
        check_subpath("a/b").unwrap();
    }
}
