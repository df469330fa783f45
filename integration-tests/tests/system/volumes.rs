//! Volumes and mounts of every kind, from the command line into real containers.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Result, ensure};
use gantry_integration_tests::engine::{Engine, with_engine};
use gantry_integration_tests::fixture::busybox_members;
use gantry_integration_tests::image::{Builder, Image};
use gantry_integration_tests::tar::{Member, archive};

use crate::clients::DockerDaemon;

/// A small system with something at `/data`, over two layers.
fn furnished(volumes: &[&str]) -> Result<Image> {
    let below = [
        busybox_members()?,
        vec![
            Member::directory("data").owner(1000, 1000).mode(0o1770),
            Member::file("data/below", "below\n"),
            Member::file("data/changed", "old\n"),
            Member::directory("data/sub"),
        ],
    ]
    .concat();
    let above = [
        Member::file("data/changed", "new\n")
            .owner(1000, 10)
            .mode(0o640),
        Member::file("data/sub/above", "above\n"),
    ];
    let volumes: serde_json::Map<_, _> = volumes
        .iter()
        .map(|path| ((*path).to_owned(), serde_json::json!({})))
        .collect();
    let mut image = Builder::default()
        .layer(&below)
        .layer(&above)
        .command(&["sh"])
        .set(
            "Env",
            serde_json::json!(["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]),
        );
    if !volumes.is_empty() {
        image = image.set("Volumes", volumes.into());
    }
    Ok(image.build()?)
}

/// What a shell in a container without a network says.
fn shell(engine: &Engine, image: &str, flags: &[&str], script: &str) -> Result<String> {
    let head = ["run", "--rm", "--network", "none"];
    engine.ok(&[&head, flags, &[image, "sh", "-c", script]].concat())
}

/// What a command that must fail says.
fn refused(engine: &Engine, words: &[&str]) -> Result<String> {
    let outcome = engine.gantry(words)?;
    ensure!(outcome.code != 0 && outcome.stdout.is_empty(), "{outcome}");
    Ok(outcome.stderr)
}

#[test]
fn a_volume_outlives_its_containers_and_is_removed_by_name() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("box", &furnished(&[])?)?;
        ensure!(engine.ok(&["volume", "create", "--label", "a=b", "made"])? == "made");
        ensure!(engine.ok(&["volume", "create", "made"])? == "made");
        let random = engine.ok(&["volume", "create"])?;
        ensure!(random.len() == 64 && random.bytes().all(|b| b.is_ascii_hexdigit()));
        ensure!(engine.ok(&["volume", "rm", &random])? == random);

        shell(
            engine,
            &image,
            &["-v", "kept:/kept"],
            "echo hello > /kept/file",
        )?;
        let read = ["-v", "kept:/elsewhere:ro"];
        ensure!(shell(engine, &image, &read, "cat /elsewhere/file")? == "hello");
        let script = "echo x > /elsewhere/file; cat /elsewhere/file";
        ensure!(shell(engine, &image, &read, script)? == "hello");
        ensure!(
            engine.ok(&["volume", "ls"])?
                == "DRIVER    VOLUME NAME\nlocal     kept\nlocal     made"
        );
        ensure!(engine.ok(&["volume", "ls", "-q", "-f", "label=a=b"])? == "made");
        let format = "{{.Name}} {{.Driver}} {{.Scope}} {{.Label \"a\"}}";
        let shown = engine.ok(&["volume", "ls", "-f", "name=mad", "--format", format])?;
        ensure!(shown == "made local local b", "{shown}");

        let id = engine.ok(&["create", "--name", "user", "-v", "kept:/k:ro", &image])?;
        let mounts = engine.ok(&["inspect", "-f", "{{json .Mounts}}", "user"])?;
        let mounts: serde_json::Value = serde_json::from_str(&mounts)?;
        let mountpoint = engine.ok(&["volume", "inspect", "-f", "{{.Mountpoint}}", "kept"])?;
        ensure!(
            mounts
                == serde_json::json!([{
                    "Type": "volume", "Name": "kept", "Source": mountpoint, "Destination": "/k",
                    "Driver": "local", "Mode": "ro", "RW": false, "Propagation": "",
                }]),
            "{mounts}"
        );
        ensure!(std::fs::read_to_string(Path::new(&mountpoint).join("file"))? == "hello\n");
        ensure!(engine.ok(&["ps", "-aq", "--no-trunc", "--filter", "volume=kept"])? == id);
        ensure!(
            engine
                .ok(&["ps", "-aq", "--filter", "volume=made"])?
                .is_empty()
        );
        let said = refused(engine, &["volume", "rm", "kept"])?;
        ensure!(
            said.contains("in use") && said.contains(&id[..12]),
            "{said}"
        );
        let df = engine.ok(&["system", "df", "-v"])?;
        ensure!(df.contains("kept          1         6B"), "{df}");
        let explained = engine.ok(&["system", "df", "--explain"])?;
        let row = explained
            .lines()
            .find(|line| line.starts_with("volume") && line.contains("kept"));
        ensure!(
            row.is_some_and(|row| row.contains("container user")),
            "{explained}"
        );
        // Neither force nor -v takes what has a name.
        engine.ok(&["rm", "-f", "-v", "user"])?;
        let outcome = engine.gantry(&["volume", "rm", "nope", "kept", "made"])?;
        ensure!(
            outcome.code == 1 && outcome.stdout == "kept\nmade\n",
            "{outcome}"
        );
        ensure!(outcome.stderr.contains("no such volume: nope"), "{outcome}");
        ensure!(engine.ok(&["volume", "rm", "-f", "nope"])? == "nope");
        engine.ok(&["system", "check"])?;
        Ok(())
    })
}

#[test]
fn a_fresh_volume_begins_with_what_the_image_has() -> Result<()> {
    const LOOK: &str = "cd /data; stat -c '%n %u:%g %a' . changed below; cat changed sub/above";
    const THERE: &str = ". 1000:1000 1770\nchanged 1000:10 640\nbelow 0:0 644\nnew\nabove";
    with_engine(|engine| {
        let image = engine.install("box", &furnished(&["/data"])?)?;
        // A volume of the image, an anonymous one, a new name, and one that was empty.
        engine.ok(&["volume", "create", "empty"])?;
        for flags in [
            &[][..],
            &["-v", "/data"],
            &["-v", "new:/data"],
            &["-v", "empty:/data"],
        ] {
            let said = shell(engine, &image, flags, LOOK)?;
            ensure!(said == THERE, "{flags:?}: {said}");
        }
        shell(engine, &image, &["-v", "new:/data"], "rm -r /data/*")?;
        shell(engine, &image, &["-v", "new:/x"], "echo mine > /x/mine")?;
        let said = shell(engine, &image, &["-v", "new:/data"], "ls /data")?;
        ensure!(said == "mine", "{said}");
        let said = shell(engine, &image, &["-v", "bare:/data:nocopy"], "ls /data")?;
        ensure!(said.is_empty(), "{said}");
        let bind = engine.root().join("bound");
        let bind = format!("{}:/data", bind.display());
        ensure!(shell(engine, &image, &["-v", &bind], "ls /data")?.is_empty());
        let left = engine.ok(&["volume", "ls", "-q"])?;
        ensure!(
            left == "bare\nempty\nnew",
            "anonymous ones are left: {left}"
        );
        Ok(())
    })
}

#[test]
fn anonymous_volumes_go_when_that_is_asked_for_and_never_by_surprise() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("box", &furnished(&["/of-image"])?)?;
        let volumes = |engine: &Engine| engine.ok(&["volume", "ls", "-q"]);
        engine.ok(&[
            "create", "--name", "one", "-v", "/a", "-v", "named:/n", &image,
        ])?;
        ensure!(volumes(engine)?.lines().count() == 3);
        engine.ok(&["rm", "one"])?;
        ensure!(
            volumes(engine)?.lines().count() == 3,
            "rm alone leaves them"
        );
        let asked = engine.gantry_with_input(&["volume", "prune"], b"n\n")?;
        ensure!(asked.stdout.contains("anonymous local volumes"), "{asked}");
        let pruned = engine.ok(&["volume", "prune", "-f"])?;
        ensure!(pruned.starts_with("Deleted Volumes:\n"), "{pruned}");
        ensure!(
            pruned.ends_with("\n\nTotal reclaimed space: 0B"),
            "{pruned}"
        );
        ensure!(volumes(engine)? == "named");

        engine.ok(&[
            "create", "--name", "two", "-v", "/a", "-v", "named:/n", &image,
        ])?;
        engine.ok(&["rm", "-v", "two"])?;
        ensure!(volumes(engine)? == "named");
        // What cannot be run, made, or found leaves none.
        for words in [
            &["run", "-v", "/a", &image, "/no/such/program"][..],
            &["run", "--rm", "-v", "/a", &image, "/no/such/program"],
            &["create", "-v", "/a", "-v", "/bin/sh", &image],
            &[
                "create",
                "-v",
                "/a",
                "--mount",
                "type=image,source=no/image,target=/i",
                &image,
            ],
            &[
                "create",
                "-v",
                "/a",
                "--mount",
                "type=bind,source=/no/such,target=/b",
                &image,
            ],
            &["create", "-v", "/a", "--workdir", "relative", &image],
        ] {
            refused(engine, words)?;
            ensure!(volumes(engine)? == "named", "{words:?}");
            engine.ok(&[&["ps", "-aq"][..]].concat()).and_then(|left| {
                ensure!(left.is_empty(), "{words:?}: {left}");
                Ok(())
            })?;
        }
        engine.ok(&["volume", "prune", "-a", "-f"])?;
        ensure!(volumes(engine)?.is_empty());
        Ok(())
    })
}

#[test]
fn containers_share_the_volumes_of_another() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("box", &furnished(&[])?)?;
        let bound = engine.root().join("bound");
        std::fs::create_dir(&bound)?;
        std::fs::write(bound.join("file"), "bound")?;
        let bind = format!("{}:/bound", bound.display());
        engine.ok(&[
            "run",
            "-d",
            "--name",
            "holder",
            "--network",
            "none",
            "-v",
            "/shared",
            "-v",
            &bind,
            "--tmpfs",
            "/memory",
            &image,
            "sleep",
            "1000",
        ])?;
        let from = ["--volumes-from", "holder"];
        shell(
            engine,
            &image,
            &from,
            "echo here > /shared/file; test ! -e /memory",
        )?;
        ensure!(engine.ok(&["exec", "holder", "cat", "/shared/file"])? == "here");
        let script =
            "cat /shared/file /bound/file; echo x > /shared/file; echo x > /bound/file; true";
        let said = shell(engine, &image, &["--volumes-from", "holder:ro"], script)?;
        ensure!(said == "here\nbound", "{said}");
        let own = ["--volumes-from", "holder", "-v", "own:/shared"];
        ensure!(shell(engine, &image, &own, "ls /shared")?.is_empty());
        // The holder goes first: the volume goes with the last that has it.
        engine.ok(&[
            "create",
            "--name",
            "heir",
            "--volumes-from",
            "holder",
            &image,
        ])?;
        engine.ok(&["rm", "-f", "-v", "holder"])?;
        ensure!(engine.ok(&["volume", "ls", "-q"])?.lines().count() == 2);
        engine.ok(&["rm", "-v", "heir"])?;
        ensure!(engine.ok(&["volume", "ls", "-q"])? == "own");
        let said = refused(engine, &["create", "--volumes-from", "nobody", &image])?;
        ensure!(said.contains("no such container: nobody"), "{said}");
        Ok(())
    })
}

#[test]
fn every_type_of_mount_is_what_it_says() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("box", &furnished(&[])?)?;
        // Another one: its configuration differs.
        let files = engine.install("files", &furnished(&["/unused"])?)?;
        let files = files.as_str();
        let source = format!("type=image,source={files},target=/i");
        let script = "cat /i/data/changed /i/data/sub/above; touch /i/x 2>/dev/null || echo no";
        let said = shell(engine, &image, &["--mount", &source], script)?;
        ensure!(said == "new\nabove\nno", "{said}");
        for (subpath, script, expected) in [
            ("data/sub", "ls /i", "above"),
            (
                "data/changed",
                "cat /i; test -f /i && echo file",
                "new\nfile",
            ),
        ] {
            let mount = format!("{source},image-subpath={subpath}");
            let said = shell(engine, &image, &["--mount", &mount], script)?;
            ensure!(said == expected, "{subpath}: {said}");
        }
        // The image stays while a container sees it.
        engine.ok(&["create", "--name", "seer", "--mount", &source, &image])?;
        let said = refused(engine, &["rmi", files])?;
        ensure!(said.contains("conflict"), "{said}");
        engine.ok(&["rm", "seer"])?;

        let tmpfs = "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700";
        let script =
            "stat -c %a /t; dd if=/dev/zero of=/t/f bs=1k count=2000 2>/dev/null || echo full";
        let said = shell(engine, &image, &["--mount", tmpfs], script)?;
        ensure!(said == "700\nfull", "{said}");

        let volume = "type=volume,src=opted,dst=/v,volume-label=k=v,volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-opt=o=size=2m";
        let said = shell(engine, &image, &["--mount", volume], "df -k /v | tail -1")?;
        ensure!(said.contains("tmpfs") && said.contains("2048"), "{said}");
        ensure!(
            engine.ok(&[
                "volume",
                "inspect",
                "-f",
                "{{.Labels.k}} {{.Options.o}}",
                "opted"
            ])? == "v size=2m"
        );

        let host = engine.root().join("host");
        std::fs::create_dir_all(host.join("below"))?;
        let device = format!("device={}", host.display());
        engine.ok(&[
            "volume",
            "create",
            "-o",
            "type=none",
            "-o",
            "o=bind",
            "-o",
            &device,
            "of-host",
        ])?;
        shell(engine, &image, &["-v", "of-host:/h"], "echo x > /h/made")?;
        ensure!(std::fs::read_to_string(host.join("made"))? == "x\n");
        let said = refused(
            engine,
            &[
                "volume",
                "create",
                "-o",
                "type=nfs",
                "-o",
                "device=:/x",
                "far",
            ],
        )?;
        ensure!(
            said.contains("nfs") && said.contains("not supported"),
            "{said}"
        );

        let missing = format!("{}/missing", engine.root().display());
        let mount = format!("type=bind,source={missing},target=/m");
        let said = refused(engine, &["run", "--rm", "--mount", &mount, &image, "true"])?;
        ensure!(said.contains("does not exist"), "{said}");
        ensure!(!Path::new(&missing).exists());
        shell(engine, &image, &["-v", &format!("{missing}:/m")], "true")?;
        ensure!(Path::new(&missing).is_dir());
        Ok(())
    })
}

#[test]
fn what_is_mounted_below_a_read_only_source_is_read_only_unless_told() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("box", &furnished(&[])?)?;
        let source = engine.root().join("source");
        std::fs::create_dir_all(source.join("below"))?;
        let below = source.join("below");
        // Of another container's making, so that the host has no mount of ours.
        let script = "mount -t tmpfs below /s/below && touch /s/below/there && sleep 1000";
        let shared = format!(
            "type=bind,source={},target=/s,bind-propagation=rshared",
            source.display()
        );
        let peers = gantry_integration_tests::command::run(
            std::process::Command::new("mount")
                .args(["--bind"])
                .arg(&source)
                .arg(&source),
            b"",
            std::time::Duration::from_secs(10),
        )?;
        let unmounted = Unmounted(&source);
        peers.text()?;
        gantry_integration_tests::command::run(
            std::process::Command::new("mount")
                .args(["--make-shared"])
                .arg(&source),
            b"",
            std::time::Duration::from_secs(10),
        )?
        .text()?;
        engine.ok(&[
            "run",
            "-d",
            "--name",
            "mounter",
            "--privileged",
            "--network",
            "none",
            "--mount",
            &shared,
            &image,
            "sh",
            "-c",
            script,
        ])?;
        let there = below.join("there");
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !there.exists() {
            ensure!(
                std::time::Instant::now() < deadline,
                "a shared mount does not come out"
            );
            std::thread::yield_now();
        }
        let with = |more: &str| {
            format!(
                "type=bind,source={},target=/s,readonly{more}",
                source.display()
            )
        };
        let script = "touch /s/x 2>/dev/null && echo top; touch /s/below/x 2>/dev/null && echo below; ls /s/below";
        let said = shell(engine, &image, &["--mount", &with("")], script)?;
        ensure!(said == "there", "{said}");
        let said = shell(
            engine,
            &image,
            &["--mount", &with(",bind-recursive=disabled")],
            script,
        )?;
        ensure!(said.is_empty(), "{said}");
        let said = shell(
            engine,
            &image,
            &["--mount", &with(",bind-recursive=writable")],
            script,
        )?;
        ensure!(said == "below\nthere\nx", "{said}");
        engine.ok(&["rm", "-f", "mounter"])?;
        drop(unmounted);
        Ok(())
    })
}

/// Takes a test's own mount away again.
struct Unmounted<'a>(&'a Path);

impl Drop for Unmounted<'_> {
    fn drop(&mut self) {
        while rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).is_ok() {}
    }
}

#[test]
fn a_subpath_that_was_swapped_for_a_link_leads_nowhere_else() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("box", &furnished(&[])?)?;
        shell(
            engine,
            &image,
            &["-v", "v1:/v"],
            "mkdir -p /v/a/b; echo in > /v/a/b/file",
        )?;
        let mount = "type=volume,src=v1,dst=/part,volume-subpath=a/b";
        ensure!(shell(engine, &image, &["--mount", mount], "ls /part")? == "file");
        engine.ok(&[
            "create",
            "--name",
            "late",
            "--network",
            "none",
            "--mount",
            mount,
            &image,
            "ls",
            "/part",
        ])?;
        for link in ["/", "../../../../..", "/proc/1/root"] {
            let swap = format!("rm -rf /v/a/b; ln -sfn {link} /v/a/b");
            shell(engine, &image, &["-v", "v1:/v"], &swap)?;
            let outcome = engine.gantry(&["start", "-a", "late"])?;
            ensure!(
                outcome.code != 0 && outcome.stdout.is_empty(),
                "{link}: {outcome}"
            );
        }
        let said = refused(engine, &["create", "--mount", mount, &image])?;
        ensure!(said.contains("no usable \"a/b\""), "{said}");
        engine.ok(&["rm", "late"])?;
        Ok(())
    })
}

#[test]
fn owners_are_mapped_through_a_bind_and_a_volume() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("box", &furnished(&[])?)?;
        let source = engine.root().join("source");
        std::fs::create_dir(&source)?;
        std::fs::write(source.join("file"), "of root")?;
        let map = "idmap=uids=0-1000-1#1000-0-1;gids=0-1000-1#1000-0-1";
        let mount = format!("type=bind,src={},dst=/b,{map}", source.display());
        let script = "stat -c %u:%g /b/file; touch /b/made; stat -c %u:%g /b/made";
        let said = shell(engine, &image, &["--mount", &mount], script)?;
        ensure!(said == "1000:1000\n0:0", "{said}");
        let made = std::fs::metadata(source.join("made"))?;
        ensure!((made.uid(), made.gid()) == (1000, 1000));
        shell(engine, &image, &["-v", "v1:/v"], "touch /v/file")?;
        let said = shell(
            engine,
            &image,
            &["-v", &format!("v1:/v:{map}")],
            "stat -c %u /v/file",
        )?;
        ensure!(said == "1000", "{said}");
        // A file system that cannot, and a map that says nothing.
        let proc = format!("type=bind,src=/proc,dst=/b,{map}");
        let said = refused(
            engine,
            &[
                "run",
                "--rm",
                "--network",
                "none",
                "--mount",
                &proc,
                &image,
                "true",
            ],
        )?;
        ensure!(said.contains("cannot map ids"), "{said}");
        let bare = format!("type=bind,src={},dst=/b,idmap", source.display());
        let said = refused(engine, &["run", "--rm", "--mount", &bare, &image, "true"])?;
        ensure!(said.contains("give --userns auto, or ids"), "{said}");
        Ok(())
    })
}

#[test]
fn a_killed_image_service_leaves_volumes_whole_and_none_too_many() -> Result<()> {
    use rustix::process::Signal;
    with_engine(|engine| {
        let image = engine.install("box", &furnished(&["/of-image"])?)?;
        engine.ok(&[
            "create",
            "--name",
            "one",
            "-v",
            "kept:/data",
            "-v",
            "/a",
            &image,
        ])?;
        engine.kill_service("image", Signal::KILL)?;
        let shown = engine.ok(&["volume", "ls", "-q"])?;
        ensure!(shown.lines().count() == 3, "{shown}");
        ensure!(shell(engine, &image, &["-v", "kept:/k"], "cat /k/changed")? == "new");
        engine.restart(Signal::KILL)?;
        let said = refused(engine, &["volume", "rm", "kept"])?;
        ensure!(said.contains("in use"), "{said}");
        engine.ok(&["start", "-a", "one"])?;
        engine.ok(&["rm", "-v", "one"])?;
        ensure!(engine.ok(&["volume", "ls", "-q"])? == "kept");
        engine.ok(&["system", "check"])?;
        Ok(())
    })
}

/// The same words to both engines, and the same standard output and exit code.
#[test]
#[ignore = "installs other engines on the machine: make interop"]
fn docker_says_the_same_of_volumes() -> Result<()> {
    with_engine(|engine| {
        let directory = tempfile::Builder::new().prefix("gt-docker-").tempdir()?;
        let daemon = DockerDaemon::start(directory.path())?;
        let path = directory.path().join("box.tar");
        std::fs::write(
            &path,
            archive(
                &[
                    busybox_members()?,
                    vec![
                        Member::directory("data").owner(1000, 1000).mode(0o1770),
                        Member::file("data/file", "of image\n")
                            .owner(7, 8)
                            .mode(0o640),
                    ],
                ]
                .concat(),
            ),
        )?;
        let path = path.to_string_lossy().into_owned();
        for words in [["import", &path, "box"], ["import", &path, "other"]] {
            engine.ok(&words)?;
            daemon.docker(&words)?;
        }
        let run = |flags: &str, script: &str| -> Vec<String> {
            let mut words: Vec<String> = ["run", "--rm", "--network", "none"]
                .map(str::to_owned)
                .to_vec();
            words.extend(flags.split_whitespace().map(str::to_owned));
            words.extend(["box", "/bin/sh", "-c", script].map(str::to_owned));
            words
        };
        let words =
            |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
        let look = "cd /data; /bin/stat -c '%n %u:%g %a' . *; /bin/cat file";
        for line in [
            words("volume create one"),
            words("volume create --label a=b two"),
            words("volume ls"),
            words("volume ls -q --filter label=a"),
            words("volume ls --filter dangling=true --format {{.Name}}:{{.Driver}}:{{.Labels}}"),
            words("volume inspect -f {{.Name}}|{{.Driver}}|{{.Scope}}|{{json.Labels}} two"),
            run("-v one:/data", look),
            run("-v fresh:/data", look),
            run("-v bare:/data:nocopy", "/bin/ls /data"),
            run(
                "--mount type=volume,src=more,dst=/data,volume-nocopy",
                "/bin/ls /data",
            ),
            run(
                "--mount type=volume,src=more,dst=/data,readonly",
                "/bin/touch /data/x 2>/dev/null; echo $?",
            ),
            run(
                "--mount type=tmpfs,dst=/t,tmpfs-mode=700,tmpfs-size=1m",
                "/bin/stat -c %a /t; /bin/df -k /t | /usr/bin/tail -1 2>/dev/null",
            ),
            words("create --name user -v one:/one:ro -v /anonymous box /bin/true"),
            words("volume rm one"),
            words("ps -a --filter volume=one --format {{.Names}}|{{.LocalVolumes}}"),
            words("rm -v user"),
            words("volume rm one two"),
            words("volume rm none"),
            words("volume rm -f none"),
            words("volume ls -q"),
            words("volume rm fresh bare more"),
            words("volume prune -f"),
        ] {
            let line: Vec<String> = line
                .iter()
                .map(|w| w.replace("{{json.", "{{json ."))
                .collect();
            let ours = engine.gantry(&line)?;
            let theirs = daemon.outcome(&line)?;
            // An id is each engine's own.
            let id = line[0] == "create";
            ensure!(
                ours.code == theirs.code && (id || ours.stdout == theirs.stdout),
                "{line:?}\nours: {ours}\nDocker's: {theirs}"
            );
        }
        Ok(())
    })
}
