//! Manifests, indexes and configurations: read or refused; what was read stands
//! for the bytes that came, and can be written and read again.
#![no_main]

use gantry_oci::{Digest, Document, DocumentKind, ImageConfig, MediaType, Platform};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let declared = [
        None,
        Some(MediaType::OciManifest),
        Some(MediaType::OciIndex),
        Some(MediaType::DockerManifest),
    ];
    for declared in declared {
        let Ok(document) = Document::parse(data.to_vec(), declared.as_ref()) else {
            continue;
        };
        assert_eq!(document.raw(), data);
        assert_eq!(*document.digest(), Digest::sha256_of(data));
        let parts = document.descriptors().count();
        match document.kind() {
            DocumentKind::Manifest(manifest) => assert_eq!(parts, manifest.layers.len() + 1),
            DocumentKind::Index(index) => {
                let _ = index.choose(&Platform::host());
            }
        }
    }
    if let Ok(config) = ImageConfig::parse(data) {
        assert_eq!(config.chain_ids().len(), config.rootfs.diff_ids.len());
        let written = serde_json_of(&config);
        assert_eq!(ImageConfig::parse(&written).expect("what was written"), config);
    }
});

fn serde_json_of(config: &ImageConfig) -> Vec<u8> {
    serde_json::to_vec(config).expect("a configuration")
}
