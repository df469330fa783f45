//! `save` and `load`, and the archives of other programs.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_integration_tests::engine::{Engine, with_engine};
use gantry_integration_tests::image::{Builder, Packing};
use gantry_integration_tests::tar::{Member, archive};
use gantry_integration_tests::terminal::Terminal;
use gantry_integration_tests::{GUEST, command};
use rustix::process::Signal;

use crate::clients::{DockerDaemon, podman, tool};

/// Puts an image of two layers into the engine, as `name`; no two have anything in common.
fn prepare(engine: &Engine, name: &str, packing: Packing) -> Result<String> {
    let image = Builder::default()
        .packed_layer(
            archive(&[Member::file("name", name), Member::program("guest", GUEST)]),
            packing,
        )
        .packed_layer(
            archive(&[
                Member::file("note", name),
                Member::file("noise", noise(700_000)),
            ]),
            packing,
        )
        .command(&["/guest", "echo", "hello"])
        .build()?;
    let reference = engine.install("prepared", &image)?;
    engine.ok(&["tag", &reference, name])?;
    engine.ok(&["rmi", &reference])?;
    engine.ok(&["images", "--quiet", "--no-trunc", name])
}

/// What gzip cannot make small.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn says_hello(engine: &Engine, image: &str) -> Result<()> {
    let said = engine.ok(&["run", "--rm", image])?;
    ensure!(said == "hello", "{image} said {said:?}");
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[test]
fn an_image_survives_a_save_and_a_load_in_another_engine() -> Result<()> {
    with_engine(|engine| {
        let directory = tempfile::tempdir()?;
        let file = text(&directory.path().join("saved.tar"));
        let id = prepare(engine, "app:1", Packing::Gzip)?;
        let zst = prepare(engine, "zst:1", Packing::Zstd)?;
        engine.ok(&["save", "-o", &file, "app", "zst:1"])?;
        let piped = engine.gantry(&["image", "save", "zst:1", "app:1"])?;
        ensure!(piped.code == 0, "{}", piped.stderr);
        with_engine(|other| {
            let said = other.ok(&["load", "--input", &file])?;
            ensure!(said == "Loaded image: app:1\nLoaded image: zst:1", "{said}");
            let loaded = other.ok(&["images", "--quiet", "--no-trunc", "app:1"])?;
            ensure!(loaded == id, "{loaded} is not {id}");
            says_hello(other, "app:1")?;
            says_hello(other, "zst:1")?;
            // The same images give the same bytes, wherever they are.
            let again = directory.path().join("again.tar");
            other.ok(&["save", "-o", &text(&again), "zst", "app"])?;
            ensure!(fs::read(&again)? == fs::read(&file)?);
            Ok(())
        })?;

        // A name that moves says so; without a name there is the id.
        engine.ok(&["tag", "zst:1", "app:1"])?;
        let said = engine.ok(&["image", "load", "-q", "-i", &file])?;
        ensure!(
            said == format!(
                "The image app:1 already exists, renaming the old one with ID {zst} to empty string\nLoaded image: app:1\nLoaded image: zst:1"
            ),
            "{said}"
        );
        engine.ok(&["save", "-o", &file, &id])?;
        engine.ok(&["rmi", "app:1"])?;
        let said = engine.ok(&["load", "-i", &file])?;
        ensure!(said == format!("Loaded image ID: {id}"), "{said}");
        Ok(())
    })
}

#[test]
fn a_save_or_a_load_that_fails_leaves_nothing() -> Result<()> {
    with_engine(|engine| {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("x.tar");
        let file = text(&path);
        prepare(engine, "app:1", Packing::Gzip)?;
        let outcome = engine.gantry(&["save", "-o", &file, "app:1", "none:1"])?;
        ensure!(
            outcome.code == 1 && outcome.stderr.contains("none:1"),
            "{outcome}"
        );
        ensure!(fs::read_dir(directory.path())?.next().is_none());
        let outcome =
            engine.gantry(&["save", "-o", &text(&directory.path().join("no/x")), "app:1"])?;
        ensure!(
            outcome.code == 1 && outcome.stderr.contains("no/x"),
            "{outcome}"
        );
        engine.ok(&["save", "-o", "/dev/null", "app:1"])?;
        let outcome = engine.gantry(&["save"])?;
        ensure!(outcome.code != 0, "{outcome}");

        engine.ok(&["save", "-o", &file, "app:1"])?;
        let whole = fs::read(&path)?;
        engine.ok(&["rmi", "app:1"])?;
        for (bytes, part) in [
            (&whole[..whole.len() / 2], "ends in the middle"),
            (&b"no archive at all"[..], "not usable"),
            (&[][..], "empty"),
        ] {
            let mut load = engine.command(&["load"]);
            let input = File::create(&path).and_then(|mut file| {
                file.write_all(bytes)?;
                File::open(&path)
            })?;
            let output = load.stdin(input).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.code() == Some(1) && said.contains(part),
                "{said}"
            );
            ensure!(output.stdout.is_empty());
        }
        let outcome = engine.gantry(&["load", "-i", "/no/such/file"])?;
        ensure!(
            outcome.code == 1 && outcome.stderr.contains("/no/such/file"),
            "{outcome}"
        );
        ensure!(engine.ok(&["images", "--quiet"])?.is_empty());
        nothing_comes_in(engine)
    })
}

/// Nothing is on its way into the image store.
fn nothing_comes_in(engine: &Engine) -> Result<()> {
    for directory in ["ingest", "loads", "pending"] {
        let directory = engine.root().join("lib/image").join(directory);
        let left: Vec<_> = fs::read_dir(&directory).into_iter().flatten().collect();
        ensure!(left.is_empty(), "{left:?}");
    }
    Ok(())
}

#[test]
fn a_load_whose_service_is_killed_leaves_nothing() -> Result<()> {
    with_engine(|engine| {
        prepare(engine, "app:1", Packing::Plain)?;
        let path = engine.root().join("saved.tar");
        engine.ok(&["save", "-o", &text(&path), "app:1"])?;
        let saved = fs::read(&path)?;
        fs::remove_file(&path)?;
        engine.ok(&["rmi", "app:1"])?;
        let mut load = engine
            .command(&["load"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stdin = load.stdin.take().context("no standard input")?;
        // All but the end: whole layers have come, and the list.
        stdin.write_all(&saved[..saved.len() - 200_000])?;
        let ingest = engine.root().join("lib/image/ingest");
        let end = Instant::now() + Duration::from_secs(60);
        while fs::read_dir(&ingest)?.next().is_none() {
            ensure!(Instant::now() < end, "nothing comes in");
            std::thread::yield_now();
        }
        engine.kill_service("image", Signal::KILL)?;
        drop(stdin);
        let outcome = load.wait_with_output()?;
        ensure!(!outcome.status.success());
        ensure!(engine.ok(&["images", "--quiet"])?.is_empty());
        nothing_comes_in(engine)
    })
}

#[test]
fn a_terminal_is_neither_saved_to_nor_loaded_from() -> Result<()> {
    with_engine(|engine| {
        prepare(engine, "app:1", Packing::Gzip)?;
        let terminal = Terminal::open(120, 30)?;
        for (words, part) in [
            (
                ["save", "app:1"].as_slice(),
                "cowardly refusing to save to a terminal",
            ),
            (&["load"], "requested load from stdin, but stdin is empty"),
        ] {
            let command = engine.command(words);
            let program = command.get_program().to_string_lossy().into_owned();
            let line = command::command_line(&command).replacen("gantry", &program, 1);
            terminal.enter(&line)?;
            terminal.wait_for(part)?;
        }
        Ok(())
    })
}

#[test]
fn skopeo_reads_what_is_saved_and_writes_what_is_loaded() -> Result<()> {
    with_engine(|engine| {
        let directory = tempfile::tempdir()?;
        let at = |name: &str| text(&directory.path().join(name));
        for packing in [Packing::Gzip, Packing::Zstd, Packing::Plain] {
            let id = prepare(engine, "app:1", packing)?;
            let saved = at("saved.tar");
            engine.ok(&["save", "-o", &saved, "app:1"])?;
            engine.ok(&["rmi", "app:1"])?;
            for from in ["docker-archive", "oci-archive"] {
                for to in ["docker-archive", "oci-archive"] {
                    // That is a zstd layer in a Docker manifest, which skopeo does not write.
                    if packing == Packing::Zstd && (from, to) == ("oci-archive", "docker-archive") {
                        continue;
                    }
                    let _ = fs::remove_file(at("copied.tar"));
                    tool(Command::new("skopeo").args(["copy", "--quiet"]).args([
                        format!("{from}:{saved}"),
                        format!("{to}:{}:example.org/by/skopeo:{to}", at("copied.tar")),
                    ]))
                    .with_context(|| format!("{packing:?} by {from}"))?;
                    let said = engine.ok(&["load", "-i", &at("copied.tar")])?;
                    let name = format!("example.org/by/skopeo:{to}");
                    ensure!(said == format!("Loaded image: {name}"), "{said}");
                    let loaded = engine.ok(&["images", "--quiet", "--no-trunc", &name])?;
                    // From one format to the other skopeo writes another configuration.
                    ensure!(from != to || loaded == id, "{loaded} is not {id}");
                    says_hello(engine, &name)?;
                    engine.ok(&["rmi", &name])?;
                }
            }
        }
        nothing_comes_in(engine)
    })
}

/// What the peers import.
fn imported(directory: &Path) -> Result<String> {
    let path = directory.join("root.tar");
    let members = [
        Member::program("guest", GUEST),
        Member::file("noise", noise(300_000)),
    ];
    fs::write(&path, archive(&members))?;
    Ok(text(&path))
}

#[test]
#[ignore = "installs other engines on the machine: make interop"]
fn docker_runs_what_is_saved_and_what_docker_saved_loads() -> Result<()> {
    with_engine(|engine| {
        let directory = tempfile::Builder::new().prefix("gt-docker-").tempdir()?;
        let daemon = DockerDaemon::start(directory.path())?;
        let at = |name: &str| text(&directory.path().join(name));
        let change = r#"CMD ["/guest","echo","hello"]"#;
        let root = imported(directory.path())?;
        daemon.docker(&["import", "--change", change, &root, "theirs:1"])?;
        daemon.docker(&["tag", "theirs:1", "theirs:2"])?;
        // An image above it, so that Docker shares a layer by a symlink.
        let above = daemon.docker(&["create", "--network", "none", "theirs:1"])?;
        daemon.docker(&["cp", &root, &format!("{above}:/more")])?;
        daemon.docker(&["commit", &above, "above:1"])?;
        daemon.docker(&["rm", &above])?;
        daemon.docker(&[
            "save",
            "-o",
            &at("theirs.tar"),
            "theirs:1",
            "theirs:2",
            "above:1",
        ])?;
        let said = engine.ok(&["load", "-i", &at("theirs.tar")])?;
        let mut lines: Vec<&str> = said.lines().collect();
        lines.sort_unstable();
        ensure!(
            lines
                == [
                    "Loaded image: above:1",
                    "Loaded image: theirs:1",
                    "Loaded image: theirs:2"
                ],
            "{said}"
        );
        says_hello(engine, "theirs:2")?;
        says_hello(engine, "above:1")?;
        let id = engine.ok(&["images", "--quiet", "--no-trunc", "above:1"])?;
        let theirs = daemon.docker(&["images", "--quiet", "--no-trunc", "above:1"])?;
        ensure!(id == theirs, "{id} is not {theirs}");

        prepare(engine, "ours:1", Packing::Gzip)?;
        prepare(engine, "zst:1", Packing::Zstd)?;
        engine.ok(&["save", "-o", &at("ours.tar"), "ours:1", "zst:1", "above:1"])?;
        daemon.docker(&["rmi", "theirs:1", "theirs:2", "above:1"])?;
        daemon.docker(&["load", "-i", &at("ours.tar")])?;
        for name in ["ours:1", "zst:1", "above:1"] {
            let said = daemon.docker(&["run", "--rm", "--network", "none", name])?;
            ensure!(said == "hello", "docker's {name} said {said:?}");
            let id = engine.ok(&["images", "--quiet", "--no-trunc", name])?;
            let theirs = daemon.docker(&["images", "--quiet", "--no-trunc", name])?;
            ensure!(id == theirs, "{name}: {id} is not {theirs}");
        }
        Ok(())
    })
}

#[test]
#[ignore = "installs other engines on the machine: make interop"]
fn podman_takes_what_is_saved_and_what_podman_saved_loads() -> Result<()> {
    with_engine(|engine| {
        let directory = tempfile::Builder::new().prefix("gt-podman-").tempdir()?;
        let at = |name: &str| text(&directory.path().join(name));
        let podman = |words: &[&str]| podman(directory.path(), words);
        let root = imported(directory.path())?;
        let change = r#"CMD ["/guest","echo","hello"]"#;
        podman(&[
            "import",
            "--quiet",
            "--change",
            change,
            &root,
            "localhost/theirs:1",
        ])?;
        podman(&["tag", "localhost/theirs:1", "localhost/theirs:2"])?;
        for (format, names) in [
            (
                "docker-archive",
                &["localhost/theirs:1", "localhost/theirs:2"][..],
            ),
            ("oci-archive", &["localhost/theirs:1"]),
        ] {
            let mut words = vec!["save", "--quiet", "--format", format];
            words.extend((names.len() > 1).then_some("--multi-image-archive"));
            let file = at(format);
            words.extend(["-o", &file]);
            words.extend(names);
            podman(&words)?;
            let said = engine.ok(&["load", "-i", &file])?;
            for name in names {
                ensure!(
                    said.contains(&format!("Loaded image: {name}")),
                    "{format}: {said}"
                );
                says_hello(engine, name)?;
                engine.ok(&["rmi", name])?;
            }
        }
        for (name, packing) in [("ours:1", Packing::Gzip), ("zst:1", Packing::Zstd)] {
            let id = prepare(engine, name, packing)?;
            engine.ok(&["save", "-o", &at("ours.tar"), name])?;
            podman(&["load", "--quiet", "-i", &at("ours.tar")])?;
            let name = format!("docker.io/library/{name}");
            let theirs = podman(&["images", "--quiet", "--no-trunc", &name])?;
            ensure!(id == theirs, "{name}: {id} is not {theirs}");
        }
        engine.ok(&["save", "-o", &at("both.tar"), "ours:1", "zst:1"])?;
        let said = podman(&["load", "--quiet", "-i", &at("both.tar")])?;
        ensure!(said.matches("Loaded image").count() == 2, "{said}");
        Ok(())
    })
}

#[test]
#[ignore = "installs other engines on the machine: make interop"]
fn what_containerd_exports_loads_and_what_is_saved_it_imports() -> Result<()> {
    with_engine(|engine| {
        let directory = tempfile::Builder::new().prefix("gt-ctr-").tempdir()?;
        let at = |name: &str| text(&directory.path().join(name));
        // Docker's daemon brings a containerd of its own.
        let _daemon = DockerDaemon::start(directory.path())?;
        let socket = at("exec/containerd/containerd.sock");
        let ctr = |words: &[&str]| {
            tool(
                Command::new("ctr")
                    .args(["--address", &socket, "--namespace", "test", "images"])
                    .args(words),
            )
        };
        let id = prepare(engine, "ours:1", Packing::Gzip)?;
        prepare(engine, "zst:1", Packing::Zstd)?;
        engine.ok(&["save", "-o", &at("ours.tar"), "ours:1", "zst:1"])?;
        ctr(&["import", "--no-unpack", &at("ours.tar")])?;
        let listed = ctr(&["list", "--quiet"])?;
        for name in ["docker.io/library/ours:1", "docker.io/library/zst:1"] {
            ensure!(listed.lines().any(|line| line == name), "{listed}");
        }
        engine.ok(&["rmi", "ours:1"])?;
        ctr(&["export", &at("theirs.tar"), "docker.io/library/ours:1"])?;
        engine.ok(&["load", "-i", &at("theirs.tar")])?;
        let loaded = engine.ok(&["images", "--quiet", "--no-trunc", "ours:1"])?;
        ensure!(loaded == id, "{loaded} is not {id}");
        says_hello(engine, "ours:1")
    })
}
