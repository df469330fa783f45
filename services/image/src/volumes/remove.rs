//! Removing volumes, one by one and those that nobody uses.
//!
//! | prune | volumes that go |
//! | --- | --- |
//! | of volumes | the anonymous ones that no container uses |
//! | of all volumes | all that no container uses |

use std::fs::File;

use gantry_kit::journal::Kind;

use super::{DATA, Test, Volume, passes};
use crate::ImageStore;
use crate::error::ImageError;
use crate::list::Filter;
use crate::measure;

/// What a prune did.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PrunedVolumes {
    /// Names.
    pub deleted: Vec<String>,
    /// Bytes of the files that were in them.
    pub reclaimed: u64,
}

impl ImageStore {
    /// Removes a volume that no container uses. False: there was none, which
    /// only `force` lets pass. Blocks for the disk.
    pub fn remove_volume(&self, name: &str, force: bool) -> Result<bool, ImageError> {
        match self.discard_volume(name) {
            Err(ImageError::VolumeNotFound { .. }) if force => Ok(false),
            outcome => outcome.map(|()| true),
        }
    }

    fn discard_volume(&self, name: &str) -> Result<(), ImageError> {
        let volumes = &self.shared.volumes;
        let _held = volumes.hold(name);
        let record = {
            // Out of the memory before from the disk: nobody can begin to use it.
            let _keep = self.shared.keep_lock();
            let Some(record) = volumes.get(name) else {
                return Err(ImageError::VolumeNotFound {
                    name: name.to_owned(),
                });
            };
            let containers = self.shared.snapshots.users_of_volume(name);
            if !containers.is_empty() {
                return Err(ImageError::VolumeInUse {
                    name: name.to_owned(),
                    containers,
                });
            }
            volumes.write().remove(name);
            record
        };
        let places = &self.shared.places;
        let gone = places.discard(&self.volume_directory(name)).and_then(|_| {
            let synced = File::open(&places.volumes).and_then(|volumes| volumes.sync_all());
            synced.map_err(ImageError::io("bring to the disk", &places.volumes))
        });
        if let Err(error) = gone {
            if self.volume_directory(name).join(DATA).is_dir() {
                volumes.write().insert(name.to_owned(), record);
            }
            return Err(error);
        }
        self.events().of_volume("destroy", name);
        self.empty_trash_behind();
        Ok(())
    }

    /// Removes volumes that a container is done with. Those that others use,
    /// and those that are gone already, are fine.
    pub(crate) fn remove_unused_volumes(&self, names: &[String]) -> Result<(), ImageError> {
        let mut outcome = Ok(());
        for name in names {
            match self.discard_volume(name) {
                Ok(())
                | Err(ImageError::VolumeNotFound { .. } | ImageError::VolumeInUse { .. }) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// Removes the volumes that no container uses: the anonymous ones, or `all`.
    /// Blocks until they are gone.
    pub fn prune_volumes(
        &self,
        all: bool,
        filters: &[Filter],
    ) -> Result<PrunedVolumes, ImageError> {
        let (tests, all) = self.prune_scope(all, filters)?;
        if let Some(container) = self.damaged_snapshots().pop_first() {
            // Which volumes are in use is not known.
            return Err(ImageError::DamagedSnapshot { container });
        }
        let volumes = self.shared.volumes.all().into_iter();
        let volumes = volumes
            .filter(|record| all || record.anonymous)
            .map(|record| self.shown_volume(record))
            .filter(|volume| volume.used_by.is_empty() && passes(&tests, volume));
        let mut pruned = PrunedVolumes::default();
        {
            // What others throw away meanwhile is theirs to wait for.
            let held = self.shared.places.hold_trash();
            let outcome = {
                let mut volumes = volumes;
                volumes.try_for_each(|volume| self.prune_volume(&volume, &mut pruned))
            };
            self.shared.places.empty_held_trash(&held);
            outcome?;
        }
        self.shared.places.refill_reserve();
        self.events().pruned(Kind::Volume, pruned.reclaimed);
        Ok(pruned)
    }

    fn prune_volume(&self, volume: &Volume, pruned: &mut PrunedVolumes) -> Result<(), ImageError> {
        let name = &volume.record.name;
        let content = self.volume_directory(name).join(DATA);
        let size = measure::tree(&content).map_err(ImageError::io("measure", &content))?;
        match self.discard_volume(name) {
            Ok(()) => {
                pruned.deleted.push(name.clone());
                pruned.reclaimed += size.content;
                Ok(())
            }
            // Somebody was faster.
            Err(ImageError::VolumeNotFound { .. } | ImageError::VolumeInUse { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn prune_scope(
        &self,
        mut all: bool,
        filters: &[Filter],
    ) -> Result<(Vec<Test>, bool), ImageError> {
        let mut tests = Vec::new();
        for filter in filters {
            match filter.key.as_str() {
                "label" | "label!" | "until" => tests.push(Test::of(self.condition(filter)?)),
                "all" => match filter.value.as_str() {
                    "true" | "1" => all = true,
                    "false" | "0" => all = false,
                    _ => return Err(filter.wrong("it is true or false")),
                },
                _ => return Err(filter.wrong("the keys are all, label, label! and until")),
            }
        }
        Ok((tests, all))
    }
}
