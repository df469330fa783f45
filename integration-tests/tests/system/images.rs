//! Pulling: every way an image is packed, and everything a layer can hold.

use anyhow::{Result, ensure};
use gantry_integration_tests::GUEST;
use gantry_integration_tests::engine::with_engine;
use gantry_integration_tests::fixture::{busybox_members, guest};
use gantry_integration_tests::image::{Builder, Dialect, Packing, host_architecture, index};
use gantry_integration_tests::registry::{ForeignRegistry, push, push_content, push_manifest};
use gantry_integration_tests::tar::{Kind, Member, archive};

#[test]
fn every_packing_and_dialect_is_pulled_by_tag_and_by_digest() -> Result<()> {
    with_engine(|engine| {
        let registry = ForeignRegistry::start()?;
        for (tag, dialect, packing) in [
            ("oci-plain", Dialect::Oci, Packing::Plain),
            ("oci-gzip", Dialect::Oci, Packing::Gzip),
            ("oci-zstd", Dialect::Oci, Packing::Zstd),
            ("docker-gzip", Dialect::Docker, Packing::Gzip),
        ] {
            let image = Builder::default()
                .dialect(dialect)
                .packed_layer(archive(&[Member::program("guest", GUEST)]), packing)
                .packed_layer(archive(&[Member::file("note", tag)]), packing)
                .command(&["/guest", "echo", tag])
                .build()?;
            push(&registry.address, "team/guest", tag, &image)?;
            for reference in [
                format!("{}/team/guest:{tag}", registry.address),
                format!("{}/team/guest@{}", registry.address, image.manifest.digest),
            ] {
                engine.ok(&["pull", &reference])?;
                let said = engine.ok(&["run", "--rm", &reference])?;
                ensure!(said == tag, "{reference} said {said:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn an_index_gives_each_machine_its_own_image() -> Result<()> {
    with_engine(|engine| {
        let registry = ForeignRegistry::start()?;
        let other = if host_architecture() == "amd64" {
            "arm64"
        } else {
            "amd64"
        };
        let for_platform = |architecture: &str| {
            Builder::default()
                .architecture(architecture)
                .layer(&[Member::program("guest", GUEST)])
                .command(&["/guest", "echo", architecture])
                .build()
        };
        let (mine, others) = (for_platform(host_architecture())?, for_platform(other)?);
        push_content(&registry.address, "multi", &mine)?;
        push_content(&registry.address, "multi", &others)?;
        let list = index(&[
            ("linux", other, &others),
            ("linux", host_architecture(), &mine),
        ]);
        push_manifest(&registry.address, "multi", "latest", &list)?;
        let reference = format!("{}/multi", registry.address);
        let said = engine.ok(&["run", "--rm", &reference])?;
        ensure!(said == host_architecture(), "ran the image for {said}");

        let platform = format!("linux/{other}");
        engine.ok(&["pull", "--platform", &platform, &reference])?;
        let outcome = engine.gantry(&["pull", "--platform", "linux/s390x", &reference])?;
        ensure!(
            outcome.code != 0 && outcome.stderr.contains("s390x"),
            "{outcome}"
        );
        Ok(())
    })
}

#[test]
fn a_layers_files_arrive_with_everything_they_have() -> Result<()> {
    with_engine(|engine| {
        let registry = ForeignRegistry::start()?;
        let below = [
            Member::directory("gone"),
            Member::file("gone/file", "x"),
            Member::directory("opaque"),
            Member::file("opaque/old", "x"),
            Member::file("whited", "x"),
            Member::file("replaced", "old"),
        ];
        let above = [
            Member::file(".wh.whited", ""),
            Member::file(".wh.gone", ""),
            Member::directory("opaque"),
            Member::file("opaque/.wh..wh..opq", ""),
            Member::file("opaque/new", "x"),
            Member::file("replaced", "new"),
            Member::file("owned", "x")
                .owner(1234, 5678)
                .mode(0o4751)
                .mtime(1_234_567_890),
            Member::hard_link("owned-too", "owned"),
            Member::symlink("dangling", "/nowhere/at/all"),
            Member::new("device", Kind::CharDevice { major: 1, minor: 3 }).mode(0o666),
            Member::new("pipe", Kind::Fifo),
            Member::directory("dated").mtime(1_000_000_000).mode(0o2770),
            Member::file("dated/file", "x"),
            Member::file(&format!("long/{}/file", "n".repeat(200)), "x"),
            // No directory named before the file that is in it.
            Member::file("implied/deep/file", "x"),
            Member::file("noted", "x").xattr("user.note", b"kept"),
        ];
        let image = Builder::default()
            .layer(&busybox_members()?)
            .layer(&below)
            .layer(&above)
            .set("Env", serde_json::json!(["PATH=/bin"]))
            .build()?;
        push(&registry.address, "files", "latest", &image)?;
        let reference = format!("{}/files", registry.address);
        for (script, expected) in [
            ("ls -d /gone /whited 2>/dev/null | wc -l", "0"),
            ("ls /opaque", "new"),
            ("cat /replaced", "new"),
            (
                "stat -c '%u %g %a %Y %h' /owned",
                "1234 5678 4751 1234567890 2",
            ),
            ("test /owned -ef /owned-too && echo same", "same"),
            ("readlink /dangling", "/nowhere/at/all"),
            (
                "stat -c '%F %t %T %a' /device",
                "character special file 1 3 666",
            ),
            ("stat -c %F /pipe", "fifo"),
            ("stat -c '%a %Y' /dated", "2770 1000000000"),
            ("cat /long/*/file", "x"),
            ("cat /implied/deep/file", "x"),
            ("stat -c %a /implied", "755"),
        ] {
            let said = engine.ok(&["run", "--rm", &reference, "sh", "-c", script])?;
            ensure!(said == expected, "{script:?}: {said:?}, not {expected:?}");
        }
        // busybox reads no extended attributes; the layer on the host does.
        let name = engine.ok(&["create", &reference, "true"])?;
        let noted = std::process::Command::new("grep")
            .args(["-rlx", "x", "--include=noted"])
            .arg(engine.root().join("lib/image/layers"))
            .output()?;
        let path = String::from_utf8(noted.stdout)?;
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(path.trim(), "user.note", &mut value)?;
        ensure!(&value[..length] == b"kept", "user.note of {path}");
        engine.ok(&["rm", &name])?;
        Ok(())
    })
}

#[test]
fn a_layer_that_two_images_share_is_kept_once() -> Result<()> {
    with_engine(|engine| {
        let registry = ForeignRegistry::start()?;
        let shared = [Member::program("guest", GUEST)];
        for (name, note) in [("one", "1"), ("two", "2")] {
            let image = Builder::default()
                .layer(&shared)
                .layer(&[Member::file("note", note)])
                .command(&["/guest", "echo", note])
                .build()?;
            push(&registry.address, name, "latest", &image)?;
            engine.ok(&["pull", &format!("{}/{name}", registry.address)])?;
        }
        let layers = std::fs::read_dir(engine.root().join("lib/image/layers"))?.count();
        ensure!(
            layers == 3,
            "{layers} layers of two images that share one of two"
        );
        engine.ok(&["rmi", &format!("{}/one", registry.address)])?;
        let said = engine.ok(&["run", "--rm", &format!("{}/two", registry.address)])?;
        ensure!(said == "2", "{said}");
        Ok(())
    })
}

#[test]
fn a_pulled_image_is_listed_inspected_and_removed() -> Result<()> {
    with_engine(|engine| {
        let reference = engine.install("guest", &guest()?)?;
        let listed = engine.ok(&["images"])?;
        ensure!(
            listed.contains("guest") && listed.contains("IMAGE ID"),
            "{listed}"
        );
        let inspected = engine.ok(&["inspect", &reference])?;
        let inspected: serde_json::Value = serde_json::from_str(&inspected)?;
        ensure!(
            inspected[0]["Config"]["Entrypoint"][0] == "/guest",
            "{inspected}"
        );
        let container = engine.ok(&["create", &reference])?;
        let outcome = engine.gantry(&["rmi", &reference])?;
        ensure!(outcome.code == 1, "an image in use was removed: {outcome}");
        engine.ok(&["rm", &container])?;
        engine.ok(&["rmi", &reference])?;
        ensure!(engine.ok(&["images", "-q"])?.is_empty());
        Ok(())
    })
}
