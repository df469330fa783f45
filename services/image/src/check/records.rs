//! Records: files, index and memory; writable layers; what nobody owns.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use super::{Check, Finding, line};
use crate::account::OwnerKind;
use crate::error::ImageError;
use crate::pull::blocking;
use crate::snapshots::SnapshotRecord;
use crate::store::{SNAPSHOT_FILE, read_file};
use crate::volumes::{DATA, VOLUME_FILE, VolumeRecord};

impl Check {
    pub(super) async fn records(&mut self) -> Result<(), ImageError> {
        self.begin("the records")?;
        let (store, repair) = (self.store.clone(), self.repair);
        let found = blocking("checking the records", move || store.check_records(repair)).await?;
        for finding in found {
            self.found(finding);
        }
        let (store, repair) = (self.store.clone(), self.repair);
        let snapshots = self.store.shared.snapshots.all();
        let found = blocking("checking writable layers", move || {
            let found = snapshots.iter().filter_map(|record| {
                store.check_snapshot(record, false)?;
                // It may have been in the middle of being made or removed.
                let settled = store.shared.snapshots.is_settled(&record.container);
                settled.then(|| store.check_snapshot(record, repair))?
            });
            Ok(found.collect::<Vec<_>>())
        })
        .await?;
        for finding in found {
            self.found(finding);
        }
        let (store, repair) = (self.store.clone(), self.repair);
        let found = blocking("checking volumes", move || {
            let volumes = &store.shared.volumes;
            let found = volumes.all().into_iter().filter_map(|record| {
                store.check_volume(&record, false)?;
                // It may have been in the middle of being made or removed.
                let settled = volumes.is_settled(&record.name);
                settled.then(|| store.check_volume(&record, repair))?
            });
            Ok(found.collect::<Vec<_>>())
        })
        .await?;
        for finding in found {
            self.found(finding);
        }
        Ok(())
    }

    /// What nobody owns.
    pub(super) async fn leftovers(&mut self) -> Result<(), ImageError> {
        self.begin("what nobody owns")?;
        let (store, repair) = (self.store.clone(), self.repair);
        let found = blocking("looking for leftovers", move || {
            let mut found = store.check_stuck(repair);
            let needed = store.shared.places.damaged_images()?;
            for container in store.damaged_snapshots() {
                found.push(Finding {
                    object: format!("writable layer {container}"),
                    problem: "its record cannot be read: it is kept, and with it all layers and volumes, until its container is removed".to_owned(),
                    needed_by: vec![container],
                    ..Finding::default()
                });
            }
            for owner in store.account()?.owners {
                let aside = owner.kind == OwnerKind::Metadata
                    && owner.freed_by == crate::account::FreedBy::Prune;
                if owner.kind == OwnerKind::Foreign {
                    found.push(Finding {
                        object: format!("file {}", owner.name),
                        problem: "it is none of the store's; move it elsewhere or remove it".into(),
                        ..Finding::default()
                    });
                } else if aside {
                    let path = store.shared.places.damaged.join(&owner.name);
                    let mut finding = Finding {
                        object: format!("file damaged/{}", owner.name),
                        problem: "it is a record that could not be read and was set aside".into(),
                        ..Finding::default()
                    };
                    if needed.contains(&owner.name) {
                        finding.problem = "it is the record of an image and cannot be read: what no other image has is kept as long as it is there. Pull or load the image again, or remove the file to give the image up".to_owned();
                    } else if repair {
                        store.shared.places.discard(&path)?;
                        store.empty_trash_behind();
                        finding.repaired = "removed".to_owned();
                    }
                    found.push(finding);
                }
            }
            Ok(found)
        })
        .await?;
        for finding in found {
            self.found(finding);
        }
        Ok(())
    }
}

impl crate::ImageStore {
    /// What could not be removed.
    fn check_stuck(&self, repair: bool) -> Vec<Finding> {
        let places = &self.shared.places;
        let shown = |path: &Path| {
            path.strip_prefix(&places.root)
                .unwrap_or(path)
                .display()
                .to_string()
        };
        let mut found = Vec::new();
        for (path, why) in places.stuck() {
            let mut finding = Finding {
                object: format!("file {}", shown(&path)),
                problem: format!(
                    "it cannot be removed: {why}; see whether it is immutable (lsattr) or something is mounted there"
                ),
                ..Finding::default()
            };
            if repair && places.discard(&path).is_ok() {
                finding.repaired = "removed".to_owned();
            }
            found.push(finding);
        }
        for (name, why) in places.empty_trash() {
            found.push(Finding {
                object: format!("file {}", shown(&places.trash.join(name))),
                problem: format!("it cannot be removed: {why}; see whether something in it is immutable (lsattr) or mounted"),
                ..Finding::default()
            });
        }
        found
    }

    fn check_records(&self, repair: bool) -> Result<Vec<Finding>, ImageError> {
        // What changes meanwhile would look wrong.
        let _changes = self.shared.changes_lock();
        let records = &self.shared.records;
        let images = self.images();
        let mut found = Vec::new();
        for image in &images {
            if records.image_in_file(image.id()).as_ref() == Some(&image.record) {
                continue;
            }
            let mut finding = Finding {
                object: format!("image {}", image.display_name()),
                problem: "the file of its record is missing or says something else".to_owned(),
                needed_by: vec![image.id().to_string()],
                ..Finding::default()
            };
            if repair {
                match records.change_images(&[&image.record], &[]) {
                    Ok(()) => finding.repaired = "written again".to_owned(),
                    Err(error) => finding.problem = line(&error),
                }
            }
            found.push(finding);
        }
        let mut index = Finding {
            object: "the index".to_owned(),
            ..Finding::default()
        };
        let mut indexed = records.indexed_images();
        let unreadable = self.shared.unreadable().clone();
        let differ = images
            .iter()
            .map(|image| &image.record)
            .chain(&unreadable)
            .filter(|record| indexed.remove(&record.id).as_ref() != Some(record))
            .count();
        let more = indexed.len();
        let snapshots = self.shared.snapshots.all();
        let missing = || {
            let indexed = records.indexed_snapshots();
            let missing = snapshots
                .iter()
                .filter(move |record| indexed.get(&record.container) != Some(record.as_ref()));
            missing.map(|record| record.container.clone())
        };
        // Those that were in the middle of being made or removed are not there any
        // more when one looks again.
        let once: Vec<String> = missing()
            .filter(|container| self.shared.snapshots.is_settled(container))
            .collect();
        let lost = if once.is_empty() {
            0
        } else {
            missing()
                .filter(|container| {
                    once.contains(container) && self.shared.snapshots.is_settled(container)
                })
                .count()
        };
        if !records.has_index() {
            index.problem = "there is none, since it could not be written".to_owned();
        } else if differ + more + lost > 0 {
            index.problem = format!(
                "{differ} images and {lost} writable layers are missing or others in it, {more} images are not there any more"
            );
        } else {
            return Ok(found);
        }
        if repair {
            let all: Vec<_> = images
                .iter()
                .map(|image| image.record.clone())
                .chain(unreadable)
                .collect();
            let writable: Vec<SnapshotRecord> = snapshots
                .iter()
                .map(|record| SnapshotRecord::clone(record))
                .collect();
            match records.rebuild_index(&all, &writable, &self.shared.packings.all()) {
                Ok(()) => index.repaired = "rebuilt from the files".to_owned(),
                Err(error) => index.problem = format!("{}: {}", index.problem, line(&error)),
            }
        }
        found.push(index);
        Ok(found)
    }

    fn check_snapshot(&self, record: &SnapshotRecord, repair: bool) -> Option<Finding> {
        let directory = self.snapshot_directory(&record.container);
        let mut finding = Finding {
            object: format!("writable layer {}", record.container),
            needed_by: vec![record.container.clone()],
            ..Finding::default()
        };
        let is_directory = |name: &str| {
            let found = fs::symlink_metadata(directory.join(name));
            found.is_ok_and(|found| found.is_dir())
        };
        let file = directory.join(SNAPSHOT_FILE);
        if !is_directory("upper") {
            finding.problem =
                "what the container wrote is not there; remove the container".to_owned();
        } else if !is_directory("work") {
            finding.problem = "the directory that overlayfs works in is missing".to_owned();
            let made = || {
                fs::DirBuilder::new()
                    .mode(0o700)
                    .create(directory.join("work"))
            };
            if repair && made().is_ok() {
                finding.repaired = "made again".to_owned();
            }
        } else if read_file::<SnapshotRecord>(&file).as_ref() != Some(record) {
            finding.problem = "the file of its record is missing or says something else".to_owned();
            let write = || {
                let json = serde_json::to_vec(record).ok()?;
                let places = &self.shared.places;
                places.write_file(&file, &json, !record.ephemeral).ok()
            };
            if repair && write().is_some() {
                finding.repaired = "written again".to_owned();
            }
        } else {
            return None;
        }
        Some(finding)
    }

    fn check_volume(&self, record: &VolumeRecord, repair: bool) -> Option<Finding> {
        let directory = self.volume_directory(&record.name);
        let mut finding = Finding {
            object: format!("volume {}", record.name),
            needed_by: self.shared.snapshots.users_of_volume(&record.name),
            ..Finding::default()
        };
        let file = directory.join(VOLUME_FILE);
        let content = fs::symlink_metadata(directory.join(DATA));
        if !content.is_ok_and(|content| content.is_dir()) {
            finding.problem = "the directory of its content is missing".to_owned();
            let made = || {
                let content = directory.join(DATA);
                fs::DirBuilder::new().recursive(true).create(&content)?;
                fs::set_permissions(&content, fs::Permissions::from_mode(0o755))
            };
            if repair && made().is_ok() {
                finding.repaired = "made again, empty".to_owned();
            }
        } else if read_file::<VolumeRecord>(&file).as_ref() != Some(record) {
            finding.problem = "the file of its record is missing or says something else".to_owned();
            let write = || {
                let json = serde_json::to_vec(record).ok()?;
                self.shared.places.write_file(&file, &json, true).ok()
            };
            if repair && write().is_some() {
                finding.repaired = "written again".to_owned();
            }
        } else {
            return None;
        }
        Some(finding)
    }
}
