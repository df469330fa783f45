//! Unpacked layers: their files against their records.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Check, Finding, line};
use crate::ImageStore;
use crate::error::ImageError;
use crate::layers::{LayerMeta, META, TREE};
use crate::pull::blocking;
use crate::store::read_file;
use crate::tree_record;

/// Differences that are told of one layer.
const DIFFERENCES_MAX: usize = 5;

/// What a look at a layer came to.
#[derive(Debug, Default)]
struct Looked {
    problem: Option<String>,
    bytes: u64,
}

impl Check {
    pub(super) async fn layers(&mut self) -> Result<(), ImageError> {
        let mut keys: BTreeSet<String> = self.store.shared.layers.keys().into_iter().collect();
        let (_, referenced) = self.store.referenced();
        keys.extend(referenced);
        self.total = self.checked.objects + keys.len() as u64 + 1;
        for key in keys {
            self.layer(&key).await?;
        }
        Ok(())
    }

    /// Tells a layer from another that took its place under the same name.
    fn identity(&self, key: &str) -> Option<u64> {
        let directory = self.store.shared.places.layers.join(key);
        fs::metadata(directory).ok().map(|metadata| metadata.ino())
    }

    async fn layer(&mut self, key: &str) -> Result<(), ImageError> {
        let identity = self.identity(key);
        let meta = self.store.shared.layers.meta(key);
        let object = match &meta {
            Some(meta) => format!("layer {}", meta.diff_id),
            None => format!("layer {key}"),
        };
        self.begin(&object)?;
        let missing = meta.is_none();
        let looked = match meta {
            None => Looked {
                problem: Some("it is missing".to_owned()),
                bytes: 0,
            },
            Some(meta) => {
                let directory = self.store.shared.places.layers.join(key);
                blocking("checking a layer", move || Ok(look(&directory, &meta))).await?
            }
        };
        self.checked.bytes += looked.bytes;
        let Some(problem) = looked.problem else {
            return Ok(());
        };
        let needed_by = self.store.needing_layer(key);
        let gone =
            self.store.shared.layers.contains(key) == missing || self.identity(key) != identity;
        if gone || (missing && needed_by.is_empty()) {
            // It came or went while it was looked at.
            return Ok(());
        }
        let mut finding = Finding {
            object,
            problem,
            needed_by,
            ..Finding::default()
        };
        if self.repair {
            let (store, key) = (self.store.clone(), key.to_owned());
            let mended = blocking("repairing a layer", move || store.mend_layer(&key));
            match mended.await {
                Ok(done) => done.clone_into(&mut finding.repaired),
                Err(error) => {
                    finding.problem = format!(
                        "{}; {}: remove the image and pull it again",
                        finding.problem,
                        line(&error)
                    );
                }
            }
        }
        self.found(finding);
        Ok(())
    }
}

/// Compares a layer with its records.
fn look(directory: &Path, meta: &LayerMeta) -> Looked {
    let problem = |text: String| Looked {
        problem: Some(text),
        bytes: 0,
    };
    if read_file::<LayerMeta>(&directory.join(META)).as_ref() != Some(meta) {
        return problem(format!("its {META} is missing or damaged"));
    }
    let Some(expected) = &meta.tree_digest else {
        return problem("it has no record of its files, as older versions made none".to_owned());
    };
    let tree = directory.join(TREE);
    let record = File::open(&tree).and_then(|mut file| tree_record::digest_of(&mut file));
    match record {
        Ok(found) if found == *expected => {}
        Ok(_) => return problem("the record of its files is damaged".to_owned()),
        Err(error) => return problem(format!("the record of its files cannot be read: {error}")),
    }
    let compared = File::open(directory.join("fs")).and_then(|root| {
        let mut record = BufReader::new(File::open(&tree)?);
        tree_record::compare(root.as_fd(), &mut record, meta.tree_content)
            .map_err(std::io::Error::other)
    });
    match compared {
        Err(error) => problem(gantry_kit::fault::chain(&error)),
        Ok(compared) => {
            let count = compared.differences.len();
            let mut text = compared.differences[..count.min(DIFFERENCES_MAX)].join("; ");
            if compared.more || count > DIFFERENCES_MAX {
                text.push_str("; and more");
            }
            Looked {
                problem: (count > 0).then_some(text),
                bytes: compared.bytes,
            }
        }
    }
}

impl ImageStore {
    fn needing_layer(&self, key: &str) -> Vec<String> {
        let mut needing: Vec<String> = self
            .all_records()
            .iter()
            .filter(|record| record.layers.iter().any(|layer| layer.key == key))
            .map(crate::image::ImageRecord::display_name)
            .collect();
        let snapshots = self.shared.snapshots.all();
        let above = snapshots
            .iter()
            .filter(|s| s.all_layers().any(|k| k == key));
        needing.extend(above.map(|s| s.container.clone()));
        needing
    }

    /// Unpacks a layer again: into its place where it is missing, else over what
    /// is there. One that nobody needs is removed.
    fn mend_layer(&self, key: &str) -> Result<&'static str, ImageError> {
        let _lease = self.lease(vec![key.to_owned()]);
        let records = self.all_records();
        let holder = records.iter().find_map(|record| {
            let position = record.layers.iter().position(|layer| layer.key == key)?;
            Some((record, position))
        });
        let Some((record, position)) = holder else {
            let (_, live) = self.referenced();
            if live.contains(key) {
                return Err(ImageError::Unusable {
                    reference: key.to_owned(),
                    reason: "its image was removed, and only containers have it".to_owned(),
                });
            }
            self.shared.layers.discard(key)?;
            self.empty_trash_behind();
            return Ok("removed, since nobody needs it");
        };
        let layer = &record.layers[position];
        let (new, unpacked) = self.unpack_again(record, position)?;
        let chain_id = LayerMeta::of_record(layer).chain_id;
        let chain_id = chain_id.as_ref().unwrap_or(&layer.diff_id);
        if self.shared.layers.contains(key)
            && fs::metadata(self.shared.layers.directory(key)).is_ok()
        {
            new.mend(&unpacked, chain_id, key)?;
        } else {
            self.shared.layers.discard(key)?;
            self.empty_trash_behind();
            new.finish(&unpacked, chain_id)?;
        }
        Ok("unpacked again")
    }
}
