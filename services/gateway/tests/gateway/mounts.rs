//! What containers mount: asked of the image service, kept in the record, shown,
//! taken by others, and removed or left with them.

use gantry_kit::fault::Fault;
use gantry_proto::gateway::v1 as wire;
use gantry_proto::image::v1 as image;

use crate::workbench::{Bench, open};

fn volume(name: &str, target: &str) -> wire::Mount {
    wire::Mount {
        r#type: wire::MountType::Volume.into(),
        source: name.to_owned(),
        target: target.to_owned(),
        ..Default::default()
    }
}

fn bind(source: &str, target: &str) -> wire::Mount {
    wire::Mount {
        r#type: wire::MountType::Bind.into(),
        ..volume(source, target)
    }
}

fn config(mounts: Vec<wire::Mount>) -> wire::ContainerConfig {
    wire::ContainerConfig {
        image: "debian".to_owned(),
        mounts,
        ..Default::default()
    }
}

async fn create(bench: &Bench, config: wire::ContainerConfig) -> Result<String, Fault> {
    let request = wire::CreateRequest {
        config: Some(config),
        name: String::new(),
    };
    let created = bench.client().create(request).await;
    match created {
        Ok(created) => Ok(created.into_inner().container_id),
        Err(status) => Err(Fault::from_status(&status)),
    }
}

async fn inspect(bench: &Bench, id: &str) -> wire::ContainerDetail {
    let request = wire::InspectRequest {
        container: id.to_owned(),
        size: false,
    };
    let answer = bench.client().inspect(request).await.unwrap();
    answer.into_inner().container.unwrap()
}

/// The spec's mount at a place.
fn specified(detail: &wire::ContainerDetail, target: &str) -> serde_json::Value {
    let spec: serde_json::Value = serde_json::from_slice(&detail.spec).unwrap();
    let mounts = spec["mounts"].as_array().unwrap();
    let found = mounts.iter().find(|mount| mount["destination"] == target);
    found.cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_asked_for_kept_and_shown() {
    let mut bench = Bench::new().await;
    let images = bench
        .world
        .images
        .lock()
        .unwrap()
        .insert("with-volume".to_owned());
    assert!(images);
    let mut wanted = config(vec![
        volume("data", "/data"),
        volume("", "/anonymous"),
        bind("/", "/host"),
    ]);
    wanted.image = "with-volume".to_owned();
    wanted.mounts[0].read_only = true;
    wanted.mounts[0].subpath = "a/b".to_owned();
    wanted.mounts[0]
        .volume_labels
        .insert("k".into(), "v".into());
    let id = create(&bench, wanted).await.unwrap();
    let asked = bench.world.prepared.lock().unwrap().clone();
    assert!(asked.image_volumes);
    assert_eq!(asked.other_targets, ["/host"]);
    let names: Vec<_> = asked.volumes.iter().map(|v| v.volume.as_str()).collect();
    assert_eq!(names, ["data", ""]);
    assert_eq!(asked.volumes[0].labels["k"], "v");
    // It is known after the service was killed, too.
    bench.kill();
    bench.start().await;
    let detail = inspect(&bench, &id).await;
    let shown = detail.summary.clone().unwrap().mounts;
    let shown: Vec<_> = shown
        .iter()
        .map(|m| {
            (
                m.name.as_str(),
                m.source.as_str(),
                m.target.as_str(),
                m.anonymous,
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("data", "/volumes/0", "/data", false),
            ("made-1", "/volumes/1", "/anonymous", true),
            ("", "/", "/host", false),
            ("made-for-image", "", "/of-image", true),
        ]
    );
    let data = specified(&detail, "/data");
    assert_eq!(
        (&data["type"], &data["source"]),
        (&"bind".into(), &"/volumes/0".into())
    );
    let options: Vec<String> = serde_json::from_value(data["options"].clone()).unwrap();
    for option in ["rbind", "rro", "rprivate", "x-gantry.subpath=a/b"] {
        assert!(options.iter().any(|given| given == option), "{options:?}");
    }
    assert_eq!(specified(&detail, "/of-image")["source"], "/volumes/image");
    let by_name = |value: &str| wire::ListRequest {
        all: true,
        filters: vec![image::Filter {
            key: "volume".to_owned(),
            value: value.to_owned(),
        }],
        ..Default::default()
    };
    for (value, count) in [
        ("data", 1),
        ("/data", 1),
        ("made-1", 1),
        ("/host", 1),
        ("x", 0),
    ] {
        let listed = bench.client().list(by_name(value)).await.unwrap();
        assert_eq!(listed.into_inner().containers.len(), count, "{value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_takes_the_mounts_of_others_but_where_it_has_its_own() {
    let bench = Bench::new().await;
    let first = create(
        &bench,
        config(vec![
            volume("data", "/data"),
            volume("", "/tmp"),
            bind("/", "/host"),
        ]),
    )
    .await
    .unwrap();
    let second = create(&bench, config(vec![volume("later", "/data")]))
        .await
        .unwrap();
    let taking = |from: &[&str], mounts| wire::ContainerConfig {
        volumes_from: from.iter().map(|from| (*from).to_owned()).collect(),
        ..config(mounts)
    };
    let own = vec![volume("own", "/host/")];
    let third = create(&bench, taking(&[&format!("{first}:ro")], own))
        .await
        .unwrap();
    let asked = bench.world.prepared.lock().unwrap().clone();
    let asked: Vec<_> = asked
        .volumes
        .iter()
        .map(|v| (v.volume.as_str(), v.anonymous, v.no_copy && v.must_exist))
        .collect();
    assert_eq!(
        asked,
        [
            ("own", false, false),
            ("data", false, true),
            ("made-1", true, true)
        ]
    );
    let mounts = inspect(&bench, &third).await.summary.unwrap().mounts;
    let read_only: Vec<_> = mounts.iter().map(|m| m.read_only).collect();
    assert_eq!(read_only, [false, true, true]);
    // The last that is named counts.
    create(&bench, taking(&[&first, &second], Vec::new()))
        .await
        .unwrap();
    let asked = bench.world.prepared.lock().unwrap().clone();
    let names: Vec<_> = asked.volumes.iter().map(|v| v.volume.as_str()).collect();
    assert_eq!(names, ["later", "made-1"]);
    for bad in ["nobody", &format!("{first}:rx")] {
        assert!(
            create(&bench, taking(&[bad], Vec::new())).await.is_err(),
            "{bad}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_go_with_what_never_was_and_with_rm_v_only() {
    let bench = Bench::new().await;
    let gone = || bench.world.without_volumes.lock().unwrap().clone();
    let remove = |container: String, volumes| wire::RemoveRequest {
        container,
        force: false,
        volumes,
    };
    let kept = create(&bench, config(vec![volume("", "/v")]))
        .await
        .unwrap();
    bench
        .client()
        .remove(remove(kept.clone(), false))
        .await
        .unwrap();
    assert!(!gone().contains(&kept));
    let removed = create(&bench, config(vec![volume("", "/v")]))
        .await
        .unwrap();
    bench
        .client()
        .remove(remove(removed.clone(), true))
        .await
        .unwrap();
    assert!(gone().contains(&removed));
    // A run that cannot start, with --rm or without, leaves nothing.
    bench.world.fail("create", "TOLD_TO");
    for auto_remove in [false, true] {
        let before = gone().len();
        let mut wanted = open(auto_remove, true);
        wanted.config.as_mut().unwrap().mounts = vec![volume("", "/v")];
        let mut run = bench.run(wanted).await;
        let (_, outcome) = run.all().await;
        assert!(outcome.is_err());
        assert_eq!(gone().len(), before + 1, "--rm={auto_remove}");
    }
    bench.until_nothing_is_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_was_cut_short_still_takes_the_volumes() {
    let mut bench = Bench::new().await;
    let id = create(&bench, config(vec![volume("", "/v")]))
        .await
        .unwrap();
    *bench.world.stuck.lock().unwrap() = Some(("delete_snapshot", false));
    let removing = tokio::spawn({
        let mut client = bench.client();
        let container = id.clone();
        async move {
            let request = wire::RemoveRequest {
                container,
                force: false,
                volumes: true,
            };
            client.remove(request).await
        }
    });
    bench.world.reached.notified().await;
    bench.kill();
    removing.await.unwrap().unwrap_err();
    bench.world.heal();
    bench.start().await;
    bench.until_nothing_is_left().await;
    assert!(bench.world.without_volumes.lock().unwrap().contains(&id));
}
