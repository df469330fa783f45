//! Layers that got their name before all of their files were on the disk.
//!
//! A commit has its layer twice: packed, in a blob that is on the disk before
//! the image is named, and unpacked, in files that the kernel writes when it
//! likes. Waiting for both would double what a commit takes, and the blob alone
//! is enough to make the files again. So the layer's directory carries a mark
//! until its files are on the disk, too: the name of the boot that they were
//! written in (`layers/<hex>/unsynced`).
//!
//! When the store is opened, a mark of the same boot means that this service
//! alone has ended: the files are in the kernel's hands, and are waited for. A
//! mark of another boot means that the power may have failed between: the layer
//! is unpacked again. So is one that an image names and that is not there.

use std::path::Path;
use std::sync::Arc;

use gantry_oci::Algorithm;

use crate::ImageStore;
use crate::error::ImageError;
use crate::image::{Image, LayerRecord};
use crate::unpack;

/// The name of the present boot of this machine.
pub(crate) fn boot() -> Result<String, ImageError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let id = std::fs::read_to_string(path).map_err(ImageError::io("read", path))?;
    Ok(id.trim().to_owned())
}

impl ImageStore {
    /// Brings a layer that has a mark to the disk, while nobody waits for it.
    pub(crate) fn sync_layer_behind(&self, key: String) {
        let store = self.clone();
        drop(tokio::task::spawn_blocking(move || {
            let synced = store.shared.syncer.sync();
            if let Err(error) = synced.and_then(|()| store.shared.layers.unmark(&key)) {
                tracing::warn!(layer = key, %error, "a layer is not on the disk yet; it is looked at again at the next start");
            }
        }));
    }

    /// Settles what an earlier process left in doubt. An image of which a layer
    /// cannot be had is left out.
    pub(crate) fn settle_layers(&self) -> Result<(), ImageError> {
        let layers = &self.shared.layers;
        let marked = layers.marked()?;
        let boot = boot()?;
        if marked.iter().any(|(_, marked_in)| *marked_in == boot) {
            self.shared.syncer.sync()?;
        }
        for (key, marked_in) in marked {
            if marked_in == boot {
                layers.unmark(&key)?;
            } else {
                tracing::warn!(
                    layer = key,
                    "a layer may not have reached the disk before the machine stopped"
                );
                layers.discard(&key)?;
            }
        }
        let mut remade = false;
        for image in self.images() {
            for (position, layer) in image.record.layers.iter().enumerate() {
                if layers.contains(&layer.key) {
                    continue;
                }
                match self.unpack_again(&image, position, layer) {
                    Ok(()) => remade = true,
                    Err(error) => {
                        let error = gantry_kit::fault::chain(&error);
                        tracing::error!(image = %image.id(), layer = layer.key, error, "a layer is not there and cannot be made again; the image is left out: pull it again");
                        self.forget(&image);
                        break;
                    }
                }
            }
        }
        if remade {
            self.shared.syncer.sync()?;
        }
        Ok(())
    }

    /// Makes a layer's directory of its blob.
    fn unpack_again(
        &self,
        image: &Image,
        position: usize,
        layer: &LayerRecord,
    ) -> Result<(), ImageError> {
        let (blob, _) = self.shared.content.open_blob(&layer.descriptor.digest)?;
        let below = image.record.layers[..position].iter().rev();
        let mut below: Vec<_> = below
            .map(|layer| self.shared.layers.directory(&layer.key))
            .collect();
        let failed = |source| ImageError::Layer {
            digest: layer.descriptor.digest.to_string(),
            source,
        };
        let new = self.shared.layers.begin()?;
        let limits = &self.shared.config.limits;
        let unpacked = unpack::unpack(blob, new.open()?, Algorithm::Sha256, limits, &mut below)
            .map_err(failed)?;
        if unpacked.diff_id != layer.diff_id {
            return Err(failed(unpack::UnpackError::DiffId {
                expected: layer.diff_id.clone(),
                found: unpacked.diff_id,
            }));
        }
        let chain_id = image.config.chain_ids().get(position).cloned();
        new.finish(&unpacked, chain_id.as_ref().unwrap_or(&layer.diff_id))?;
        Ok(())
    }

    fn forget(&self, image: &Arc<Image>) {
        let catalogue = self.shared.catalogue.write();
        let mut catalogue = catalogue.unwrap_or_else(std::sync::PoisonError::into_inner);
        catalogue.remove(image.id());
    }
}
