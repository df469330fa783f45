//! Containers with users of their own: `--userns auto`.

use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result, ensure};
use gantry_integration_tests::engine::{Engine, with_engine};
use gantry_integration_tests::fixture::busybox_members;
use gantry_integration_tests::image::{Builder, Image};
use gantry_integration_tests::tar::Member;

/// A small system with something that is a user's, and something that only root
/// may read.
fn furnished() -> Result<Image> {
    let members = [
        busybox_members()?,
        vec![
            Member::file("secret", "for root\n").mode(0o600),
            Member::directory("data").owner(1000, 1000).mode(0o750),
            Member::file("data/page", "hello\n").owner(1000, 1000),
        ],
    ]
    .concat();
    Ok(Builder::default()
        .layer(&members)
        .command(&["sh"])
        .build()?)
}

/// The host's id of a container's root.
fn first_id(engine: &Engine, container: &str) -> Result<u32> {
    let map = engine.ok(&["exec", container, "cat", "/proc/self/uid_map"])?;
    let numbers: Vec<&str> = map.split_whitespace().collect();
    let ["0", first, "65536"] = numbers[..] else {
        anyhow::bail!("{map}");
    };
    Ok(first.parse()?)
}

fn run(engine: &Engine, image: &str, name: &str, flags: &[&str]) -> Result<()> {
    let head = ["run", "-d", "--name", name, "--userns", "auto"];
    engine.ok(&[&head, flags, &[image, "sleep", "1000"]].concat())?;
    Ok(())
}

#[test]
fn a_containers_root_is_nobody_outside_and_owns_its_files_inside() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("box", &furnished()?)?;
        run(engine, &image, "one", &[])?;
        run(engine, &image, "two", &["--network", "none"])?;
        let (one, two) = (first_id(engine, "one")?, first_id(engine, "two")?);
        ensure!(one >= 65_536 && one.abs_diff(two) >= 65_536, "{one} {two}");

        // As the host sees it.
        let pid = engine.ok(&["inspect", "-f", "{{.State.Pid}}", "one"])?;
        let seen = std::fs::metadata(format!("/proc/{pid}"))?.uid();
        ensure!(seen == one, "{seen}");
        let ids = engine.ok(&["inspect", "-f", "{{json .HostConfig.IDMappings}}", "one"])?;
        ensure!(
            ids == format!(r#"{{"GidMap":["0:{one}:65536"],"UidMap":["0:{one}:65536"]}}"#),
            "{ids}"
        );

        // As it sees itself: everything of the image with its owner, all that root may
        // do with it, and nothing of the host's.
        let script = "stat -c '%u:%g %a %n' /secret /data /data/page /etc/hosts; cat /secret;
            rm /secret; echo new > /new; chown alice:alice /new; mkdir /dir; mv /data /dir/data;
            mount -t tmpfs none /dir && echo mounted;
            echo 1 > /proc/sys/kernel/panic 2>/dev/null || echo refused";
        let flags = [
            "--cap-add",
            "SYS_ADMIN",
            "--security-opt",
            "seccomp=unconfined",
        ];
        run(engine, &image, "tried", &flags)?;
        let said = engine.ok(&["exec", "tried", "sh", "-c", script])?;
        let wanted = "0:0 600 /secret\n1000:1000 750 /data\n1000:1000 644 /data/page\n0:0 644 /etc/hosts\nfor root\nmounted\nrefused";
        ensure!(said == wanted, "{said}");

        // What it wrote is in the ids that it has inside: of no use is the range to
        // whoever takes the files over.
        let changes = engine.ok(&["diff", "tried"])?;
        for change in ["D /secret", "A /new", "D /data", "A /dir/data/page"] {
            ensure!(changes.lines().any(|line| line == change), "{changes}");
        }
        engine.ok(&["commit", "tried", "kept"])?;
        let said = engine.ok(&[
            "run",
            "--rm",
            "kept",
            "stat",
            "-c",
            "%u:%g",
            "/new",
            "/dir/data",
        ])?;
        ensure!(said == "1000:1000\n1000:1000", "{said}");

        // By name, in another process; after a restart; and a range that is free again
        // is given again.
        ensure!(engine.ok(&["exec", "-u", "alice", "one", "id", "-u"])? == "1000");
        engine.ok(&["restart", "-t", "0", "tried"])?;
        ensure!(engine.ok(&["exec", "tried", "cat", "/new"])? == "new");
        engine.ok(&["rm", "-f", "one"])?;
        run(engine, &image, "three", &[])?;
        ensure!(first_id(engine, "three")? == one);
        engine.ok(&["rm", "-f", "two", "three", "tried"])?;
        engine.ok(&["rmi", "kept"])?;
        Ok(())
    })
}

#[test]
fn the_network_of_its_own_users_is_theirs_to_set_up_and_serves() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("box", &furnished()?)?;
        let published = ["-p", "127.0.0.1::80", "--cap-add", "NET_ADMIN"];
        run(engine, &image, "web", &published)?;
        engine.ok(&[
            "exec",
            "web",
            "sh",
            "-c",
            "ip link set lo mtu 1000 && ip link show lo | grep -q 'mtu 1000'",
        ])?;
        let serve = "while true; do printf 'HTTP/1.0 200 OK\\r\\n\\r\\nserved' | nc -l -p 80; done";
        engine.ok(&["exec", "-d", "-u", "alice", "web", "sh", "-c", serve])?;
        let address = engine.ok(&["port", "web", "80"])?;
        // The listener may not be there yet: another container asks until it is.
        let inside = engine.ok(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"])?;
        let ask = format!("until wget -q -O - http://{inside}/; do sleep 0.05; done");
        ensure!(engine.ok(&["run", "--rm", &image, "sh", "-c", &ask])? == "served");
        ensure!(address.starts_with("127.0.0.1:"), "{address}");
        // It stays when the service that made it does not.
        engine.kill_service("network", rustix::process::Signal::KILL)?;
        ensure!(engine.ok(&["run", "--rm", &image, "sh", "-c", &ask])? == "served");
        engine.ok(&["rm", "-f", "web"])?;
        Ok(())
    })
}

#[test]
fn volumes_have_the_ids_inside_and_binds_the_hosts_unless_mapped() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("box", &furnished()?)?;
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("file"), "of the host\n")?;
        let host = directory.path().to_str().context("no UTF-8")?;
        let bind = format!("{host}:/bind");
        let mapped = format!("type=bind,src={host},dst=/mapped,idmap");
        let layers = format!("type=image,src={image},dst=/img");
        let picked = format!("type=bind,src={host},dst=/picked,idmap=uids=0-1000-1;gids=0-1000-1");
        let show = "stat -c '%u:%g %n' /data/page /bind/file /mapped/file /picked/file /img/secret;
            touch /data/mine /mapped/mine; chown alice /data/mine; touch /bind/mine 2>&1 | grep -o denied";
        let flags = [
            "-v",
            "vol:/data",
            "-v",
            &bind,
            "--mount",
            &mapped,
            "--mount",
            &picked,
            "--mount",
            &layers,
        ];
        run(engine, &image, "one", &flags)?;
        let said = engine.ok(&["exec", "one", "sh", "-c", show])?;
        let wanted = "1000:1000 /data/page\n65534:65534 /bind/file\n0:0 /mapped/file\n1000:1000 /picked/file\n0:0 /img/secret\ndenied";
        ensure!(said == wanted, "{said}");
        let mine = std::fs::metadata(directory.path().join("mine"))?;
        ensure!(mine.uid() == 0, "{}", mine.uid());
        // The same volume, for a container with other ids and for one with the host's.
        let stat = ["stat", "-c", "%u:%g", "/data/mine", "/data/page"];
        for userns in ["auto", "host"] {
            let head = ["run", "--rm", "--userns", userns, "-v", "vol:/data", &image];
            let said = engine.ok(&[&head[..], &stat].concat())?;
            ensure!(said == "1000:0\n1000:1000", "{userns}: {said}");
        }
        engine.ok(&["rm", "-f", "one"])?;
        engine.ok(&["volume", "rm", "vol"])?;
        Ok(())
    })
}

#[test]
fn files_are_copied_with_the_owners_that_are_seen_inside() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("box", &furnished()?)?;
        let directory = tempfile::tempdir()?;
        let source = directory.path().join("source");
        std::fs::write(&source, "copied\n")?;
        std::os::unix::fs::chown(&source, Some(1000), Some(1000))?;
        let source = source.to_str().context("no UTF-8")?;
        run(engine, &image, "box", &[])?;
        let stat = ["exec", "box", "stat", "-c", "%u:%g %n"];
        // Running, then not.
        for place in ["/running", "/stopped"] {
            engine.ok(&["cp", source, &format!("box:{place}")])?;
            engine.ok(&["cp", "-a", source, &format!("box:{place}-a")])?;
            let out = directory.path().join("out");
            let from = "box:/data/page";
            engine.ok(&["cp", "-a", from, out.to_str().context("no UTF-8")?])?;
            ensure!(std::fs::metadata(&out)?.uid() == 1000);
            engine.ok(&["stop", "-t", "0", "box"])?;
        }
        engine.ok(&["start", "box"])?;
        let places = ["/running", "/running-a", "/stopped", "/stopped-a"];
        let said = engine.ok(&[&stat[..], &places].concat())?;
        let wanted = "0:0 /running\n1000:1000 /running-a\n0:0 /stopped\n1000:1000 /stopped-a";
        ensure!(said == wanted, "{said}");
        engine.ok(&["rm", "-f", "box"])?;
        Ok(())
    })
}

#[test]
fn what_needs_the_hosts_users_is_refused_before_anything_is_made() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("box", &furnished()?)?;
        engine.ok(&[
            "run",
            "-d",
            "--name",
            "other",
            "--ipc",
            "shareable",
            &image,
            "sleep",
            "1000",
        ])?;
        for (flags, word) in [
            (&["--privileged"][..], "--privileged"),
            (&["--network", "host"], "--network host"),
            (
                &["--network", "container:other"],
                "--network container:other",
            ),
            (&["--pid", "host"], "--pid host"),
            (&["--ipc", "container:other"], "--ipc container:other"),
            (&["--uts", "host"], "--uts host"),
            (&["--cgroupns", "host"], "--cgroupns host"),
            (&["--userns", "auto:size=10"], "too few"),
            (&["--userns", "auto:size=4000000000"], "are left"),
            (&["--userns", "keep-id"], "give host, auto"),
            (
                &["--mount", "type=bind,src=/etc,dst=/e,idmap=uids=0-70000-1"],
                "beyond the container's own ids",
            ),
        ] {
            let head = ["create", "--name", "never", "--userns", "auto"];
            let outcome = engine.gantry(&[&head[..], flags, &[&image]].concat())?;
            ensure!(
                outcome.code != 0 && outcome.stderr.contains(word),
                "{flags:?}: {outcome}"
            );
        }
        ensure!(engine.ok(&["ps", "-aq"])?.lines().count() == 1);
        engine.ok(&["rm", "-f", "other"])?;
        Ok(())
    })
}
