//! The archive that `load` reads, in any of its layouts: it becomes images that
//! are whole, or is refused; nothing of it is left then, and what it costs is bounded.
#![no_main]

use std::sync::{Arc, OnceLock};

use gantry_image::ImageStore;
use gantry_image::account::OwnerKind;
use gantry_image::archive::LoadOptions;
use gantry_image::config::Config;
use gantry_image::remove::RemoveOptions;
use gantry_image::unpack::Limits;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

#[path = "../tar_mutator.rs"]
mod tar_mutator;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    tar_mutator::mutate(data, size, max_size, seed)
});

struct Bench {
    runtime: Runtime,
    store: ImageStore,
    _root: TempDir,
}

fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("a runtime");
        let root = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let limits = Limits {
            entries: 200,
            unpacked_bytes: 4 << 20,
            ..Limits::default()
        };
        let config = Config {
            limits,
            certs_dirs: Vec::new(),
            docker_config: "".into(),
            ..Config::default()
        };
        let entered = runtime.enter();
        let store = ImageStore::open(root.path(), config).expect("a store");
        drop(entered);
        Bench {
            runtime,
            store,
            _root: root,
        }
    })
}

fuzz_target!(|data: &[u8]| {
    let Bench { runtime, store, .. } = bench();
    let (pieces, waiting) = mpsc::channel(2);
    let data = data.to_vec();
    let outcome = runtime.block_on(async {
        let feeding = tokio::spawn(async move {
            for piece in data.chunks(4096) {
                let piece = bytes::Bytes::copy_from_slice(piece);
                if pieces.send(Ok(piece)).await.is_err() {
                    return;
                }
            }
        });
        let outcome = store
            .load(&LoadOptions::default(), waiting, Arc::new(|_| {}), |_| {})
            .await;
        feeding.await.expect("feeding");
        outcome
    });
    let images = store.images();
    if outcome.is_ok() {
        assert!(!images.is_empty(), "nothing was loaded, and nothing was said");
    }
    let force = RemoveOptions {
        force: true,
        ..RemoveOptions::default()
    };
    for image in images {
        store.manifest(&image).expect("a manifest");
        store.remove(&image.id().to_string(), &force).expect("a removal");
    }
    let account = store.account().expect("an account");
    let left = account.owners.iter().find(|owner| {
        matches!(
            owner.kind,
            OwnerKind::Layer
                | OwnerKind::PackedLayer
                | OwnerKind::Metadata
                | OwnerKind::PartialDownload
                | OwnerKind::InProgress
                | OwnerKind::Foreign
        )
    });
    assert_eq!(left, None, "something is left after {outcome:?}");
});
