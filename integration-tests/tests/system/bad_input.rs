//! Bad input: one clear line, the right exit code, and no trace on disk.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use gantry_integration_tests::GUEST;
use gantry_integration_tests::command::{self, DEADLINE, Outcome};
use gantry_integration_tests::engine::{Engine, bin_dir, with_engine};
use gantry_integration_tests::fixture::guest;
use gantry_integration_tests::image::{Builder, Image, Packing, digest};
use gantry_integration_tests::registry::{LyingRegistry, Page, blob_page, blob_path};
use gantry_integration_tests::tar::{Member, archive};

/// One line on standard error that says all of `words`, nothing on standard
/// output, and `code`.
fn one_clear_line(outcome: &Outcome, code: i32, words: &[&str]) -> Result<()> {
    ensure!(outcome.code == code, "wanted exit code {code}: {outcome}");
    ensure!(outcome.stdout.is_empty(), "wanted no output: {outcome}");
    let lines: Vec<&str> = outcome
        .stderr
        .lines()
        // As with Docker's client: what it does before it fails.
        .filter(|line| !line.starts_with("Unable to find image") && !line.contains("Pulling"))
        .filter(|line| !line.starts_with("See '"))
        .collect();
    ensure!(lines.len() == 1, "wanted one line: {outcome}");
    for word in words {
        ensure!(
            lines[0].to_lowercase().contains(&word.to_lowercase()),
            "the line does not say {word:?}: {outcome}"
        );
    }
    Ok(())
}

/// Files below the directories that state is kept in, without the indexes'.
fn files(engine: &Engine) -> Result<BTreeSet<String>> {
    fn walk(directory: &Path, found: &mut BTreeSet<String>) -> Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_name() == "index" {
                continue;
            }
            found.insert(path.to_string_lossy().into_owned());
            if entry.file_type()?.is_dir() {
                walk(&path, found)?;
            }
        }
        Ok(())
    }
    let mut found = BTreeSet::new();
    for below in [
        "lib/image",
        "lib/gateway",
        "run/containers",
        "log/containers",
    ] {
        let directory = engine.root().join(below);
        if directory.exists() {
            walk(&directory, &mut found)?;
        }
    }
    Ok(found)
}

#[test]
fn a_wrong_run_says_what_is_wrong_and_leaves_nothing() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&["create", "--name", "taken", &image, "true"])?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port().to_string();
        let publish = format!("127.0.0.1:{port}:80");
        let nowhere = "127.0.0.1:1/no/such:image";
        let before = files(engine)?;
        for (arguments, code, words) in [
            (&["run", "--rm", nowhere][..], 125, &["127.0.0.1:1"][..]),
            (&["run", "--rm", "upper/CASE"], 125, &["upper/CASE"]),
            (&["run", "--rm", "a b"], 125, &["a b"]),
            (&["run", "--rm", "x@sha256:123"], 125, &["sha256:123"]),
            (
                &["run", "--rm", &image, "no-such-command"],
                127,
                &["no-such-command", "no such file"],
            ),
            (
                &["run", "--rm", &image, "/no/such/file"],
                127,
                &["/no/such/file"],
            ),
            (
                &["run", "--rm", &image, "/etc/passwd"],
                126,
                &["/etc/passwd", "permission denied"],
            ),
            (&["run", "--rm", &image, "/etc"], 126, &["/etc"]),
            (
                &["run", "--rm", "--name", "taken", &image, "true"],
                125,
                &["taken", "in use"],
            ),
            (
                &["run", "--rm", "--name", "bad/name", &image, "true"],
                125,
                &["bad/name"],
            ),
            (
                &["run", "--rm", "-p", &publish, &image, "true"],
                125,
                &[&port, "in use"],
            ),
            (
                &["run", "--rm", "-p", "99999:80", &image, "true"],
                125,
                &["99999"],
            ),
            (
                &["run", "--rm", "-u", "nobody-here", &image, "true"],
                125,
                &["nobody-here"],
            ),
            (
                &["run", "--rm", "-u", "0:nogroup-here", &image, "true"],
                125,
                &["nogroup-here"],
            ),
            (
                &[
                    "run",
                    "--rm",
                    "--mount",
                    "type=bind,source=/no/such/source,target=/x",
                    &image,
                    "true",
                ],
                125,
                &["/no/such/source"],
            ),
            (
                &[
                    "run",
                    "--rm",
                    "-v",
                    "relative:bad:what:mode",
                    &image,
                    "true",
                ],
                125,
                &["relative:bad:what:mode"],
            ),
            (
                &["run", "--rm", "-m", "lots", &image, "true"],
                125,
                &["lots"],
            ),
            (
                &["run", "--rm", "-m", "1k", &image, "true"],
                125,
                &["memory"],
            ),
            (
                &["run", "--rm", "--cpus", "none", &image, "true"],
                125,
                &["none"],
            ),
            (
                &["run", "--rm", "--cap-add", "FLY", &image, "true"],
                125,
                &["FLY"],
            ),
            (
                &["run", "--rm", "--network", "no-such-net", &image, "true"],
                125,
                &["no-such-net"],
            ),
            (
                &["run", "--rm", "--ulimit", "what=1", &image, "true"],
                125,
                &["what"],
            ),
            (
                &["run", "--rm", "--security-opt", "magic", &image, "true"],
                125,
                &["magic"],
            ),
            (
                &["run", "--rm", "-w", "relative", &image, "true"],
                125,
                &["relative"],
            ),
            (&["run", "--rm", "-e", "=x", &image, "true"], 125, &["=x"]),
            (
                &["run", "--rm", "--env-file", "/no/such/file", &image, "true"],
                125,
                &["/no/such/file"],
            ),
            (
                &["run", "--rm", "--platform", "linux/s390x", nowhere],
                125,
                &["127.0.0.1:1"],
            ),
            (
                &["run", "--rm", "--no-such-flag", &image],
                125,
                &["--no-such-flag"],
            ),
        ] {
            let outcome = engine.gantry(arguments)?;
            one_clear_line(&outcome, code, words).with_context(|| format!("{arguments:?}"))?;
            let listed = engine.ok(&["ps", "--all", "--format", "{{.Names}}"])?;
            ensure!(listed == "taken", "{arguments:?} left containers: {listed}");
        }
        let after = files(engine)?;
        let left: Vec<&String> = after.difference(&before).collect();
        ensure!(left.is_empty(), "files left: {left:?}");
        Ok(())
    })
}

#[test]
fn what_does_not_exist_is_named_by_every_verb() -> Result<()> {
    with_engine(|engine| {
        for verb in [
            "start", "stop", "kill", "rm", "logs", "wait", "inspect", "attach",
        ] {
            let outcome = engine.gantry(&[verb, "ghost"])?;
            ensure!(outcome.code == 1, "{outcome}");
            ensure!(outcome.stderr.contains("ghost"), "{outcome}");
            ensure!(outcome.stderr.lines().count() == 1, "{outcome}");
        }
        let outcome = engine.gantry(&["exec", "ghost", "true"])?;
        one_clear_line(&outcome, 1, &["ghost"])?;
        let outcome = engine.gantry(&["rmi", "ghost"])?;
        one_clear_line(&outcome, 1, &["ghost"])?;

        let image = engine.busybox()?;
        let idle = engine.ok(&["run", "-d", &image, "sleep", "600"])?;
        for (command, code) in [("no-such-command", 127), ("/etc/passwd", 126)] {
            let outcome = engine.gantry(&["exec", &idle, command])?;
            one_clear_line(&outcome, code, &[command])?;
        }
        let outcome = engine.gantry(&["rm", &idle])?;
        one_clear_line(&outcome, 1, &["running"])?;
        let outcome = engine.gantry(&["kill", "-s", "SIGWHAT", &idle])?;
        one_clear_line(&outcome, 1, &["SIGWHAT"])?;
        Ok(())
    })
}

/// Makes a registry lie.
type Lie<'a> = dyn Fn(&LyingRegistry) -> Result<()> + 'a;

/// An image with one layer, and the registry that serves it.
fn served(registry: &LyingRegistry, members: &[Member]) -> Result<Image> {
    let image = Builder::default()
        .layer(members)
        .command(&["/guest"])
        .build()?;
    registry.serve("lie", "latest", &image);
    Ok(image)
}

#[test]
fn content_that_lies_is_refused_and_leaves_nothing() -> Result<()> {
    with_engine(|engine| {
        let honest = [Member::program("guest", GUEST)];
        let before = files(engine)?;
        let lies: [(&str, &Lie<'_>, &[&str]); 9] = [
            (
                "a truncated layer",
                &|registry| {
                    let image = served(registry, &honest)?;
                    let layer = &image.blobs[0];
                    let page = Page {
                        body: Bytes::from(layer.bytes[..layer.bytes.len() / 2].to_vec()),
                        promised: Some(layer.bytes.len() as u64),
                        ..blob_page(layer)
                    };
                    registry.set(&blob_path("lie", layer), page);
                    Ok(())
                },
                &["sha256:"],
            ),
            (
                "a layer that is shorter than its descriptor",
                &|registry| {
                    let image = served(registry, &honest)?;
                    let layer = &image.blobs[0];
                    let page = Page {
                        body: Bytes::from(layer.bytes[..layer.bytes.len() / 2].to_vec()),
                        ..blob_page(layer)
                    };
                    registry.set(&blob_path("lie", layer), page);
                    Ok(())
                },
                &["sha256:"],
            ),
            (
                "an altered layer",
                &|registry| {
                    let image = served(registry, &honest)?;
                    let layer = &image.blobs[0];
                    let mut bytes = layer.bytes.clone();
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    registry.set(
                        &blob_path("lie", layer),
                        Page {
                            body: bytes.into(),
                            ..blob_page(layer)
                        },
                    );
                    Ok(())
                },
                &["sha256:"],
            ),
            (
                "a layer with more after its end",
                &|registry| {
                    let image = served(registry, &honest)?;
                    let layer = &image.blobs[0];
                    let mut bytes = layer.bytes.clone();
                    bytes.extend_from_slice(b"more");
                    registry.set(
                        &blob_path("lie", layer),
                        Page {
                            body: bytes.into(),
                            ..blob_page(layer)
                        },
                    );
                    Ok(())
                },
                &["sha256:"],
            ),
            (
                "a manifest that is not its digest",
                &|registry| {
                    let mut image = served(registry, &honest)?;
                    let wanted = image.manifest.digest.clone();
                    image.manifest.bytes.push(b' ');
                    let page = blob_page(&image.manifest);
                    registry.set(&format!("/v2/lie/manifests/{wanted}"), page.clone());
                    registry.set("/v2/lie/manifests/latest", page);
                    Ok(())
                },
                &["sha256:"],
            ),
            (
                "a manifest whose sizes lie",
                &|registry| {
                    let mut image = served(registry, &honest)?;
                    let mut manifest: serde_json::Value =
                        serde_json::from_slice(&image.manifest.bytes)?;
                    let size = manifest["layers"][0]["size"].as_u64().context("size")?;
                    manifest["layers"][0]["size"] = (size - 1).into();
                    image.manifest.bytes = serde_json::to_vec(&manifest)?;
                    image.manifest.digest = digest(&image.manifest.bytes);
                    registry.serve("lie", "latest", &image);
                    Ok(())
                },
                &["sha256:"],
            ),
            (
                "a diff ID that lies",
                &|registry| {
                    let image = Builder::default()
                        .packed_layer(archive(&honest), Packing::Gzip)
                        .build()?;
                    let mut config: serde_json::Value =
                        serde_json::from_slice(&image.blobs[1].bytes)?;
                    config["rootfs"]["diff_ids"][0] = digest(b"something else").into();
                    let config = gantry_integration_tests::image::Blob::new(
                        &image.blobs[1].media_type,
                        serde_json::to_vec(&config)?,
                    );
                    let mut manifest: serde_json::Value =
                        serde_json::from_slice(&image.manifest.bytes)?;
                    manifest["config"] = config.descriptor();
                    let manifest = gantry_integration_tests::image::Blob::new(
                        &image.manifest.media_type,
                        serde_json::to_vec(&manifest)?,
                    );
                    let lie = Image {
                        blobs: vec![image.blobs[0].clone(), config],
                        manifest,
                    };
                    registry.serve("lie", "latest", &lie);
                    Ok(())
                },
                &["configuration promises"],
            ),
            (
                "a manifest that is no manifest",
                &|registry| {
                    let image = served(registry, &honest)?;
                    let page = Page {
                        body: Bytes::from_static(b"<html>Welcome"),
                        ..blob_page(&image.manifest)
                    };
                    registry.set(
                        "/v2/lie/manifests/latest",
                        Page {
                            headers: vec![(
                                "content-type".to_owned(),
                                image.manifest.media_type.clone(),
                            )],
                            ..page
                        },
                    );
                    Ok(())
                },
                &["not a valid document"],
            ),
            (
                "a registry with a fault of its own",
                &|registry| {
                    registry.set(
                        "/v2/lie/manifests/latest",
                        Page {
                            status: 500,
                            headers: Vec::new(),
                            body: Bytes::from_static(b"oops"),
                            promised: None,
                        },
                    );
                    Ok(())
                },
                &["500"],
            ),
        ];
        for (name, lie, words) in lies {
            let registry = LyingRegistry::start()?;
            lie(&registry)?;
            let reference = format!("{}/lie:latest", registry.address);
            let outcome = engine.gantry(&["pull", "--quiet", &reference])?;
            one_clear_line(&outcome, 1, words).with_context(|| name.to_owned())?;
            let listed = engine.ok(&["images", "-q"])?;
            ensure!(listed.is_empty(), "{name}: listed after all: {listed}");
        }
        let after = files(engine)?;
        let left: Vec<&String> = after.difference(&before).collect();
        ensure!(left.is_empty(), "files left: {left:?}");
        Ok(())
    })
}

#[test]
fn nothing_of_a_layer_is_written_outside_its_directory() -> Result<()> {
    with_engine(|engine| {
        let target = engine.root().join("outside");
        std::fs::create_dir(&target)?;
        std::fs::write(target.join("victim"), "whole")?;
        let outside = target.to_string_lossy().into_owned();
        let up = "../".repeat(20);
        let archives: [(&str, Vec<Member>); 8] = [
            (
                "dots in a file's name",
                vec![Member::file(&format!("{up}{outside}/new"), "x")],
            ),
            (
                "dots in the middle",
                vec![
                    Member::directory("a"),
                    Member::file(&format!("a/{up}{outside}/new"), "x"),
                ],
            ),
            (
                "an absolute name",
                vec![Member::file(&format!("{outside}/new"), "x")],
            ),
            (
                "a link, then a file through it",
                vec![
                    Member::symlink("link", &outside),
                    Member::file("link/new", "x"),
                ],
            ),
            (
                "a relative link, then a file through it",
                vec![
                    Member::symlink("link", &format!("{up}{outside}")),
                    Member::file("link/new", "x"),
                ],
            ),
            (
                "a hard link to the outside",
                vec![
                    Member::hard_link("hard", &format!("{outside}/victim")),
                    Member::file("hard", "broken"),
                ],
            ),
            (
                "a hard link by dots",
                vec![
                    Member::hard_link("hard", &format!("{up}{outside}/victim")),
                    Member::file("hard", "broken"),
                ],
            ),
            (
                "a whiteout of the outside",
                vec![
                    Member::symlink("link", &outside),
                    Member::file("link/.wh.victim", ""),
                ],
            ),
        ];
        for (name, members) in archives {
            let registry = LyingRegistry::start()?;
            served(&registry, &members)?;
            let reference = format!("{}/lie:latest", registry.address);
            let outcome = engine.gantry(&["pull", "--quiet", &reference])?;
            if outcome.code != 0 {
                one_clear_line(&outcome, 1, &[]).with_context(|| name.to_owned())?;
            }
            let there: Vec<_> = std::fs::read_dir(&target)?
                .flatten()
                .map(|e| e.file_name())
                .collect();
            ensure!(there.len() == 1, "{name}: the outside holds {there:?}");
            let victim = std::fs::read_to_string(target.join("victim"))?;
            ensure!(victim == "whole", "{name}: the outside holds {victim:?}");
            engine.gantry(&["rmi", "-f", &reference])?;
        }
        Ok(())
    })
}

#[test]
fn a_layer_that_climbs_out_by_dots_or_by_a_hard_link_is_refused() -> Result<()> {
    with_engine(|engine| {
        for members in [
            vec![Member::file("../escape", "x")],
            vec![Member::hard_link("hard", "../../../../etc/passwd")],
        ] {
            let registry = LyingRegistry::start()?;
            served(&registry, &members)?;
            let reference = format!("{}/lie:latest", registry.address);
            let outcome = engine.gantry(&["pull", "--quiet", &reference])?;
            one_clear_line(&outcome, 1, &[".."])?;
        }
        Ok(())
    })
}

#[test]
fn without_an_engine_the_command_says_what_to_do() -> Result<()> {
    let directory = tempfile::Builder::new().prefix("gt-").tempdir_in("/tmp")?;
    for (verb, code) in [("ps", 1), ("run", 125)] {
        let mut command = Command::new(bin_dir()?.join("gantry"));
        command.arg("--root").arg(directory.path()).arg(verb);
        if verb == "run" {
            command.arg("busybox");
        }
        let outcome = command::run(&mut command, b"", DEADLINE)?;
        one_clear_line(&outcome, code, &["gantry up"])?;
    }
    Ok(())
}

#[test]
fn who_may_not_use_the_socket_is_told_who_may() -> Result<()> {
    with_engine(|engine| {
        use std::os::unix::fs::PermissionsExt;
        use std::os::unix::process::CommandExt;
        // Others may pass the directory, so that the socket's own mode decides.
        std::fs::set_permissions(engine.root(), std::fs::Permissions::from_mode(0o755))?;
        let program = engine.root().join("gantry");
        std::fs::copy(bin_dir()?.join("gantry"), &program)?;
        let mut command = Command::new(&program);
        command
            .arg("--root")
            .arg(engine.root())
            .arg("ps")
            .uid(65534)
            .gid(65534);
        let outcome = command::run(&mut command, b"", DEADLINE)?;
        one_clear_line(&outcome, 1, &["no right", "group `gantry`"])?;

        let other = tempfile::Builder::new().prefix("gt-").tempdir_in("/tmp")?;
        std::fs::set_permissions(other.path(), std::fs::Permissions::from_mode(0o777))?;
        let mut command = Command::new(&program);
        command
            .arg("--root")
            .arg(other.path())
            .arg("up")
            .uid(65534)
            .gid(65534);
        let outcome = command::run(&mut command, b"", DEADLINE)?;
        one_clear_line(&outcome, 1, &["root"])?;
        let left = std::fs::read_dir(other.path())?.count();
        ensure!(left == 0, "`up` without the right left {left} files");
        Ok(())
    })
}

#[test]
fn a_wrong_configuration_is_named_before_anything_starts() -> Result<()> {
    for (config, words) in [
        ("[network]\nbrigde = \"x\"\n", &["brigde"][..]),
        ("[network\n", &["gantry.toml"]),
        (
            "[network]\nsubnet = \"10.1.2.3.4/99\"\n",
            &["10.1.2.3.4/99"],
        ),
    ] {
        let directory = tempfile::Builder::new().prefix("gt-").tempdir_in("/tmp")?;
        std::fs::write(directory.path().join("gantry.toml"), config)?;
        let mut command = Command::new(bin_dir()?.join("gantry"));
        command.arg("--root").arg(directory.path()).arg("up");
        let outcome = command::run(&mut command, b"", DEADLINE)?;
        ensure!(outcome.code == 1, "{outcome}");
        for word in words {
            ensure!(outcome.stderr.contains(word), "no {word:?} in {outcome}");
        }
    }
    // The guest image is only here to show that the table above is not the
    // reason for every failure: the same root works with a right one.
    with_engine(|engine| {
        let reference = engine.install("guest", &guest()?)?;
        engine.ok(&["run", "--rm", &reference])?;
        Ok(())
    })
}
