//! Removing images by Docker's rules.

use std::collections::HashSet;
use std::sync::Arc;

use gantry_image::error::{ImageError, Use};
use gantry_image::image::Image;
use gantry_image::prune::PruneOptions;
use gantry_image::remove::RemoveOptions;

use crate::fixture::Fixture;
use crate::life::{by_force, gently, imported, tar};

fn running(container: &str, force: bool) -> RemoveOptions {
    RemoveOptions {
        force,
        running: HashSet::from([container.to_owned()]),
        ..RemoveOptions::default()
    }
}

/// Makes one image the parent of another, as a commit does.
fn adopted(fixture: Fixture, parent: &Image, child: &Image) -> Fixture {
    let (parent, child) = (parent.id().to_string(), child.id().hex().to_owned());
    fixture.reopen_after(|root| {
        let file = root.join("images").join(format!("{child}.json"));
        let record = std::fs::read(&file).unwrap();
        let mut record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        record["parent"] = parent.into();
        std::fs::write(&file, serde_json::to_vec(&record).unwrap()).unwrap();
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_containers_need_is_removed_only_as_docker_does() {
    let fixture = Fixture::new();
    let image = imported(&fixture, "a:1", tar(1)).await;
    let id = image.id().short();
    let store = &fixture.store;
    let (_, snapshot) = store.prepare("c1", "a:1", true).unwrap();

    let error = store.remove("a:1", &gently()).unwrap_err();
    let said = format!(
        "conflict: unable to remove repository reference \"a:1\" (must force) - container c1 is using its referenced image {id}"
    );
    assert_eq!(error.to_string(), said);
    let error = store.remove(id, &gently()).unwrap_err();
    let said = format!(
        "conflict: unable to delete {id} (must be forced) - image is being used by stopped container c1"
    );
    assert_eq!(error.to_string(), said);
    for force in [false, true] {
        let error = store.remove(id, &running("c1", force)).unwrap_err();
        let said = format!(
            "conflict: unable to delete {id} (cannot be forced) - image is being used by running container c1"
        );
        assert_eq!(error.to_string(), said);
    }
    assert_eq!(store.resolve("a:1").unwrap().id(), image.id());
    // A name can be taken from it all the same.
    let removed = store.remove("a:1", &running("c1", true)).unwrap();
    assert_eq!(
        (removed.untagged, removed.deleted),
        (vec!["a:1".to_owned()], vec![])
    );
    assert!(store.resolve("a:1").is_err());
    assert_eq!(store.resolve(id).unwrap().id(), image.id());
    // It does not run any more.
    let removed = store.remove(id, &by_force()).unwrap();
    assert_eq!(
        removed.deleted,
        [image.id().to_string()],
        "its layer is in use"
    );
    assert!(snapshot.lower[0].join("f").exists());
    store.delete_snapshot("c1").unwrap();
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_several_repositories_need_force_by_id_and_one_goes_by_name() {
    let fixture = Fixture::new();
    let image = imported(&fixture, "a:1", tar(1)).await;
    let store = &fixture.store;
    store.prepare("c1", "a:1", true).unwrap();
    store.tag("a:1", "b:1").unwrap();
    let error = store.remove(image.id().short(), &gently()).unwrap_err();
    assert!(
        matches!(&error, ImageError::SeveralNames { names, .. } if names == &["a:1", "b:1"]),
        "{error}"
    );
    // In use, but not by this name alone.
    assert_eq!(store.remove("b:1", &gently()).unwrap().untagged, ["b:1"]);
    store.delete_snapshot("c1").unwrap();
    let digits = &image.id().hex()[..5];
    let removed = store.remove(digits, &gently()).unwrap();
    assert_eq!(removed.untagged, ["a:1"]);
    assert_eq!(removed.deleted.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_others_were_made_from_goes_with_the_last_of_them() {
    let fixture = Fixture::new();
    let parent = imported(&fixture, "parent:1", tar(1)).await;
    let child = imported(&fixture, "child:1", tar(2)).await;
    let fixture = adopted(fixture, &parent, &child);
    let store = &fixture.store;
    let all = |all| {
        let images = store.list(all, &[]).unwrap();
        images
            .iter()
            .map(|image| image.id().clone())
            .collect::<Vec<_>>()
    };
    for options in [gently(), by_force()] {
        let error = store.remove(parent.id().short(), &options).unwrap_err();
        assert!(matches!(error, ImageError::HasChildren { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("image has dependent child images (child:1)"),
            "{error}"
        );
    }
    assert_eq!(all(false).len(), 2);
    let removed = store.remove("parent:1", &gently()).unwrap();
    assert_eq!(
        (removed.untagged, removed.deleted),
        (vec!["parent:1".to_owned()], vec![])
    );
    assert_eq!(
        all(false),
        [child.id().clone()],
        "a nameless parent is hidden"
    );
    assert_eq!(all(true).len(), 2);
    // Nobody's but the child's: not dangling.
    assert_eq!(
        store.prune(&PruneOptions::default()).unwrap().deleted,
        Vec::<String>::new()
    );
    let kept = RemoveOptions {
        no_prune: true,
        ..gently()
    };
    let ids = |images: &[&Arc<Image>]| {
        images
            .iter()
            .map(|image| image.id().to_string())
            .collect::<Vec<_>>()
    };
    let removed = store.remove("child:1", &kept).unwrap();
    assert_eq!(removed.deleted[..1], ids(&[&child]));
    assert_eq!(all(true), [parent.id().clone()]);

    let child = imported(&fixture, "child:1", tar(2)).await;
    let fixture = adopted(fixture, &parent, &child);
    let removed = fixture.store.remove("child:1", &gently()).unwrap();
    let images: Vec<_> = removed
        .deleted
        .into_iter()
        .filter(|id| ids(&[&child, &parent]).contains(id))
        .collect();
    assert_eq!(images, ids(&[&child, &parent]));
    assert_eq!(fixture.content_files(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_takes_a_nameless_child_and_then_its_nameless_parent() {
    let fixture = Fixture::new();
    let parent = imported(&fixture, "x:1", tar(1)).await;
    let child = imported(&fixture, "y:1", tar(2)).await;
    imported(&fixture, "x:1", tar(3)).await;
    imported(&fixture, "y:1", tar(4)).await;
    let fixture = adopted(fixture, &parent, &child);
    let pruned = fixture.store.prune(&PruneOptions::default()).unwrap();
    assert_eq!(pruned.deleted.len(), 4, "{pruned:?}");
    assert_eq!(fixture.store.images().len(), 2);
    // A container of the child keeps its parent too.
    let child = fixture.store.resolve("y:1").unwrap();
    let parent = fixture.store.resolve("x:1").unwrap();
    let fixture = adopted(fixture, &parent, &child);
    fixture.store.prepare("c1", "y:1", true).unwrap();
    let all = PruneOptions {
        all: true,
        ..PruneOptions::default()
    };
    assert_eq!(
        fixture.store.prune(&all).unwrap().deleted,
        Vec::<String>::new()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_removed_is_not_brought_back_by_a_name() {
    let fixture = Fixture::new();
    let image = imported(&fixture, "a:1", tar(1)).await;
    let store = fixture.store.clone();
    let removing = std::thread::spawn(move || store.remove("a:1", &gently()));
    let tagged = fixture.store.tag(image.id().as_str(), "b:1");
    let removed = removing.join().unwrap();
    match (tagged, removed) {
        // The name came first: then it stays.
        (Ok(_), Ok(removed)) if removed.deleted.is_empty() => {
            assert_eq!(fixture.store.resolve("b:1").unwrap().id(), image.id());
        }
        (Err(error), Ok(_)) => {
            assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
            assert_eq!(fixture.content_files(), Vec::<String>::new());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_made_or_its_image_is_removed_but_never_both() {
    for _ in 0..50 {
        let fixture = Fixture::new();
        let image = imported(&fixture, "a:1", tar(1)).await;
        let store = fixture.store.clone();
        let removing = std::thread::spawn(move || store.remove("a:1", &gently()));
        let prepared = fixture.store.prepare("c1", image.id().as_str(), true);
        match (prepared, removing.join().unwrap()) {
            (Ok(_), Err(ImageError::InUse { by, .. })) => {
                assert!(matches!(by, Use::Name { .. } | Use::Stopped { .. }));
                assert!(fixture.store.resolve("a:1").is_ok());
            }
            (Err(ImageError::NotFound { .. }), Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_listed_by_a_name_shows_the_names_that_match() {
    let fixture = Fixture::new();
    imported(&fixture, "a:1", tar(1)).await;
    fixture.store.tag("a:1", "b:1").unwrap();
    fixture.store.tag("a:1", "b:2").unwrap();
    let named = |pattern: &str| {
        let filter = gantry_image::list::Filter {
            key: "reference".to_owned(),
            value: pattern.to_owned(),
        };
        let images = fixture.store.list(false, &[filter]).unwrap();
        images[0].familiar_tags()
    };
    assert_eq!(named("b"), ["b:1", "b:2"]);
    assert_eq!(named("*:1"), ["a:1", "b:1"]);
    assert_eq!(fixture.store.resolve("a:1").unwrap().record.tags.len(), 3);
}
