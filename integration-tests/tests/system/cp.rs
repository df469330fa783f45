//! `cp` both ways: Docker's rules of where a copy goes, what a container's
//! processes see, and nothing outside of its root.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gantry_integration_tests::command::DEADLINE;
use gantry_integration_tests::engine::{Engine, with_engine};
use gantry_integration_tests::tar::{Member, archive};

/// A container that runs, and one that does not, of the same image.
fn pair(engine: &Engine) -> Result<[&'static str; 2]> {
    let image = engine.busybox()?;
    engine.ok(&["run", "-d", "--name", "runs", &image, "sleep", "600"])?;
    engine.ok(&["run", "--name", "rests", &image, "true"])?;
    Ok(["runs", "rests"])
}

/// What a command in the container's files says; one that rests is started for it.
fn inside(engine: &Engine, container: &str, script: &str) -> Result<String> {
    if container == "runs" {
        return engine.ok(&["exec", container, "sh", "-c", script]);
    }
    let name = "looks";
    engine.ok(&["commit", container, name])?;
    let said = engine.ok(&["run", "--rm", name, "sh", "-c", script]);
    engine.ok(&["rmi", name])?;
    said
}

fn scratch(engine: &Engine) -> Result<std::path::PathBuf> {
    let directory = engine.root().join("scratch");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn cp(engine: &Engine, arguments: &[&str]) -> Result<()> {
    let said = engine.ok(&[&["cp"], arguments].concat())?;
    ensure!(said.is_empty(), "cp says {said:?} where nobody looks");
    Ok(())
}

#[test]
fn files_and_trees_go_both_ways_whether_the_container_runs_or_not() -> Result<()> {
    with_engine(|engine| {
        let here = scratch(engine)?;
        let tree = here.join("tree");
        fs::create_dir_all(tree.join("sub"))?;
        fs::write(tree.join("file"), "content")?;
        fs::hard_link(tree.join("file"), tree.join("sub/same"))?;
        symlink("../file", tree.join("sub/link"))?;
        std::os::unix::fs::chown(tree.join("file"), Some(1234), Some(4321))?;
        // After it: another owner takes the bit away.
        fs::set_permissions(tree.join("file"), fs::Permissions::from_mode(0o4755))?;
        let path = tree.to_string_lossy().into_owned();
        for container in pair(engine)? {
            cp(engine, &[&path, &format!("{container}:/new")])?;
            cp(engine, &["-a", &path, &format!("{container}:/kept")])?;
            let script = "cat /new/file /new/sub/link; stat -c ' %u:%g %a %h' /new/file; readlink /new/sub/link; stat -c %u:%g /kept/file";
            let said = inside(engine, container, script)?;
            ensure!(
                said == "contentcontent 0:0 4755 2\n../file\n1234:4321",
                "{container}: {said}"
            );
            // And back, into a directory that is there and one that is not.
            let back = here.join(format!("back-{container}"));
            let to = back.to_string_lossy().into_owned();
            cp(engine, &[&format!("{container}:/kept/."), &to])?;
            cp(engine, &[&format!("{container}:/kept"), &to])?;
            for place in [back.join("file"), back.join("kept/file")] {
                let stat = place.metadata()?;
                ensure!(fs::read_to_string(&place)? == "content");
                ensure!(
                    stat.mode() & 0o7777 == 0o4755 && stat.uid() == 0,
                    "{stat:?}"
                );
            }
            ensure!(fs::read_link(back.join("kept/sub/link"))? == Path::new("../file"));
            let one = format!("{to}/one");
            cp(engine, &["-a", &format!("{container}:/kept/file"), &one])?;
            ensure!(fs::metadata(&one)?.uid() == 1234, "-a keeps the owner");
            cp(
                engine,
                &["-L", &format!("{container}:/kept/sub/link"), &one],
            )?;
            ensure!(fs::read_to_string(&one)? == "content");
            // A file over a file, by another name.
            cp(engine, &[&one, &format!("{container}:/kept/sub/same")])?;
            let said = inside(engine, container, "stat -c %h /kept/file /kept/sub/same")?;
            ensure!(
                said == "1\n1",
                "a copy replaces, and does not write through: {said}"
            );
        }
        let listed = engine.ok(&["ps", "-a", "--format", "{{.Names}}"])?;
        ensure!(
            listed.lines().count() == 2,
            "no container is left of a copy: {listed}"
        );
        Ok(())
    })
}

#[test]
fn a_wrong_copy_is_refused_as_docker_refuses_it_and_changes_nothing() -> Result<()> {
    with_engine(|engine| {
        let here = scratch(engine)?;
        fs::create_dir(here.join("dir"))?;
        fs::write(here.join("file"), "new")?;
        symlink("nowhere", here.join("dangling"))?;
        let at = |name: &str| here.join(name).to_string_lossy().into_owned();
        let (dir, file) = (at("dir"), at("file"));
        for container in pair(engine)? {
            cp(engine, &[&file, &format!("{container}:/f")])?;
            let c = |path: &str| format!("{container}:{path}");
            let (inside_f, nope) = (c("/f"), at("nope"));
            for (from, to, said) in [
                (
                    c("/nope"),
                    dir.clone(),
                    "could not find the file /nope in container",
                ),
                (nope.clone(), inside_f.clone(), "No such file or directory"),
                (inside_f.clone(), at("no/x"), "does not exist"),
                (dir.clone(), inside_f.clone(), "cannot copy a directory"),
                (c("/etc"), file.clone(), "cannot copy a directory"),
                (file.clone(), c("/none/"), "no such directory"),
                (file.clone(), c("/none/x"), "could not find the file"),
                (file.clone(), c("/f/x"), "Not a directory"),
                (format!("{file}/"), c("/x"), "Not a directory"),
                (c("/f/"), at("x"), "Not a directory"),
                (
                    file.clone(),
                    c("/dev/null"),
                    "must be a directory or a regular file",
                ),
                (
                    c("/f"),
                    "/dev/null".to_owned(),
                    "must be a directory or a regular file",
                ),
                (
                    file.clone(),
                    c("/proc/self/root/x"),
                    "could not find the file",
                ),
                ("-".to_owned(), inside_f.clone(), "must be a directory"),
                (
                    inside_f.clone(),
                    c("/g"),
                    "copying between containers is not supported",
                ),
                (file.clone(), dir.clone(), "at least one container"),
                (
                    file.clone(),
                    "nobody:/x".to_owned(),
                    "no such container: nobody",
                ),
            ] {
                let outcome = engine.gantry(&["cp", &from, &to])?.expect_code(1)?;
                ensure!(
                    outcome.stderr.contains(said),
                    "cp {from} {to}: {}",
                    outcome.stderr
                );
            }
            let said = inside(engine, container, "cat /f; ls / | grep -c none; true")?;
            ensure!(said.starts_with("new") && said.ends_with('0'), "{said}");
        }
        ensure!(fs::read_dir(here.join("dir"))?.count() == 0);
        Ok(())
    })
}

#[test]
fn links_inside_a_container_lead_nowhere_outside() -> Result<()> {
    with_engine(|engine| {
        let here = scratch(engine)?;
        let victim = here.join("victim");
        fs::create_dir(&victim)?;
        fs::write(victim.join("secret"), "host")?;
        fs::write(here.join("file"), "new")?;
        let at = |path: &Path| path.to_string_lossy().into_owned();
        let (file, to) = (at(&here.join("file")), at(&here.join("out")));
        let host = at(&victim);
        for container in pair(engine)? {
            let script = format!(
                "mkdir -p /in/deep; ln -s {host} /in/abs; ln -s ../../../../..{host} /in/up; ln -s {host}/secret /in/leaf; ln -s /in/deep /in/dir; ln -s ../in/deep/new /in/dangling; ln -s loop /in/loop; ln -s /proc/1/root{host} /in/magic"
            );
            if container == "runs" {
                engine.ok(&["exec", container, "sh", "-c", &script])?;
            } else {
                engine.ok(&["rm", container])?;
                let image = engine.busybox()?;
                engine.ok(&["run", "--name", container, &image, "sh", "-c", &script])?;
            }
            for path in ["abs/secret", "up/secret", "leaf", "magic/secret"] {
                let from = format!("{container}:/in/{path}");
                engine.gantry(&["cp", "-L", &from, &to])?.expect_code(1)?;
                ensure!(!here.join("out").exists(), "{from} was read from the host");
            }
            for path in ["abs/secret", "up/secret", "abs", "up", "magic/", "loop"] {
                let into = format!("{container}:/in/{path}");
                engine.gantry(&["cp", &file, &into])?.expect_code(1)?;
            }
            // A link itself is copied as it is.
            cp(engine, &[&format!("{container}:/in/leaf"), &to])?;
            ensure!(fs::read_link(&to)? == victim.join("secret"));
            fs::remove_file(&to)?;
            // Through links that stay inside, a copy goes where they lead.
            cp(engine, &[&file, &format!("{container}:/in/dir/one")])?;
            cp(engine, &[&file, &format!("{container}:/in/dir")])?;
            cp(engine, &[&file, &format!("{container}:/in/dangling")])?;
            let said = inside(engine, container, "ls /in/deep")?;
            ensure!(said == "file\nnew\none", "{container}: {said}");
        }
        ensure!(fs::read_to_string(victim.join("secret"))? == "host");
        ensure!(fs::read_dir(&victim)?.count() == 1);
        Ok(())
    })
}

/// Makes links in both containers of [`pair`].
fn run_in_both(engine: &Engine, script: &str) -> Result<[&'static str; 2]> {
    let both = pair(engine)?;
    engine.ok(&["exec", "runs", "sh", "-c", script])?;
    engine.ok(&["rm", "rests"])?;
    let image = engine.busybox()?;
    engine.ok(&["run", "--name", "rests", &image, "sh", "-c", script])?;
    Ok(both)
}

#[test]
fn the_dots_of_a_link_count_from_where_the_link_is() -> Result<()> {
    with_engine(|engine| {
        let here = scratch(engine)?;
        fs::write(here.join("file"), "new")?;
        let file = here.join("file").to_string_lossy().into_owned();
        let both = run_in_both(
            engine,
            "mkdir -p /x/y /d; ln -s /x/y /lk; ln -s ../z /x/y/inner; echo old > /x/z; \
             ln -s ../new /x/y/dangling; ln -s ../../d /x/y/dir; ln -s ../../missing/f /x/y/lost",
        )?;
        for container in both {
            for to in ["/lk/inner", "/lk/dangling", "/lk/dir", "/lk/dir/other"] {
                cp(engine, &[&file, &format!("{container}:{to}")])?;
            }
            let lost = format!("{container}:/lk/lost");
            let refused = engine.gantry(&["cp", &file, &lost])?.expect_code(1)?;
            ensure!(refused.stderr.contains("leads nowhere"), "{refused}");
            let script = "cat /x/z; echo; cat /x/new; echo; ls /d; ls / | grep -Ec '^(z|new|inner|missing)$'; true";
            let said = inside(engine, container, script)?;
            ensure!(said == "new\nnew\nfile\nother\n0", "{container}: {said}");
            // Out again, through the same links; and through links of this machine.
            fs::create_dir_all(here.join("x/y"))?;
            for (link, to) in [("lk", here.join("x/y")), ("x/y/inner", "../z".into())] {
                let _again = fs::remove_file(here.join(link));
                symlink(to, here.join(link))?;
            }
            let to = here.join("lk/inner").to_string_lossy().into_owned();
            cp(engine, &["-L", &format!("{container}:/lk/inner"), &to])?;
            ensure!(fs::read_to_string(here.join("x/z"))? == "new");
            fs::remove_file(here.join("x/z"))?;
        }
        Ok(())
    })
}

#[test]
fn an_archive_goes_through_links_of_the_container_and_never_out_of_its_root() -> Result<()> {
    with_engine(|engine| {
        let here = scratch(engine)?;
        let victim = here.join("victim");
        fs::create_dir(&victim)?;
        let both = run_in_both(
            engine,
            &format!(
                "mkdir -p /run2 /var/lib; ln -s /run2 /var_run; ln -s ../../run2 /var/lib/up; ln -s {} /host",
                victim.display()
            ),
        )?;
        let good = archive(&[
            Member::file("var_run/act/f", "q"),
            Member::file("var/lib/up/g", "q"),
            Member::hard_link("var_run/act/h", "var_run/act/f"),
        ]);
        for container in both {
            let to = format!("{container}:/");
            let copied = engine.gantry_with_input(&["cp", "-", &to], &good)?;
            copied.expect_code(0)?;
            let said = inside(engine, container, "cd /run2; ls act . | tr '\\n' ' '")?;
            ensure!(said == ".: act g  act: f h", "{container}: {said}");
            for bad in ["host/f", "../f", "var/../../f"] {
                let bad = archive(&[Member::file(bad, "q")]);
                let refused = engine.gantry_with_input(&["cp", "-", &to], &bad)?;
                refused.expect_code(1)?;
            }
            // A link that the archive itself brings leads nowhere outside either.
            let bad = archive(&[
                Member::symlink("way", &victim.to_string_lossy()),
                Member::file("way/f", "q"),
            ]);
            let refused = engine.gantry_with_input(&["cp", "-", &to], &bad)?;
            refused.expect_code(1)?;
        }
        ensure!(fs::read_dir(&victim)?.count() == 0);
        Ok(())
    })
}

#[test]
fn files_whose_size_is_not_what_they_hold_are_copied_whole() -> Result<()> {
    with_engine(|engine| {
        let here = scratch(engine)?;
        let image = engine.busybox()?;
        let script = "echo first > /log; i=0; while :; do i=$((i+1)); echo line $i >> /log; done";
        engine.ok(&["run", "-d", "--name", "c1", &image, "sh", "-c", script])?;
        let to = here.join("copy").to_string_lossy().into_owned();
        let copied = |from: &str| -> Result<String> {
            cp(engine, &[from, &to])?;
            Ok(fs::read_to_string(&to)?)
        };
        // A size of 0 and of 4,096 bytes.
        let command = copied("c1:/proc/1/cmdline")?;
        ensure!(command.starts_with("sh\0-c\0echo first"), "{command:?}");
        ensure!(copied("c1:/proc/meminfo")?.starts_with("MemTotal:"));
        ensure!(copied("c1:/sys/class/net/lo/mtu")? == "65536\n");
        cp(engine, &["/proc/version", "c1:/version"])?;
        let version = engine.ok(&["exec", "c1", "cmp", "/version", "/proc/version"])?;
        ensure!(version.is_empty(), "{version}");
        // One that grows: its lines up to some point, and nothing else.
        for _ in 0..5 {
            let log = copied("c1:/log")?;
            let lines: Vec<&str> = log.lines().collect();
            ensure!(lines.first() == Some(&"first"), "{log:?}");
            for (at, line) in lines.iter().enumerate().skip(1).rev().skip(1) {
                ensure!(*line == format!("line {at}"), "{line:?} at {at}");
            }
        }
        engine.ok(&["rm", "-f", "c1"])?;
        Ok(())
    })
}

#[test]
fn a_program_that_swaps_paths_leads_no_copy_out() -> Result<()> {
    with_engine(|engine| {
        let here = scratch(engine)?;
        let victim = here.join("victim");
        fs::create_dir(&victim)?;
        fs::write(victim.join("data"), "host")?;
        fs::create_dir(here.join("tree"))?;
        fs::write(here.join("tree/data"), "copied")?;
        let image = engine.busybox()?;
        let script = format!(
            "mkdir -p /a/b /c; echo container > /a/b/data; while :; do mv /a/b /a/x; ln -s {} /a/b; rm /a/b; mv /a/x /a/b; done",
            victim.display()
        );
        engine.ok(&["run", "-d", "--name", "swaps", &image, "sh", "-c", &script])?;
        let tree = here.join("tree/.").to_string_lossy().into_owned();
        for _ in 0..12 {
            let _missed = engine.gantry(&["cp", &tree, "swaps:/a/b"])?;
            let out = here.join("out");
            let to = out.to_string_lossy().into_owned();
            let _missed = engine.gantry(&["cp", "swaps:/a", &to])?;
            for place in ["b", "x"].map(|name| out.join(name)) {
                // A link that was copied as a link leads to the host, here.
                if !place.is_symlink()
                    && let Ok(read) = fs::read_to_string(place.join("data"))
                {
                    ensure!(read != "host", "the host's file came out");
                }
            }
            let _none = fs::remove_dir_all(&out);
        }
        ensure!(
            fs::read_to_string(victim.join("data"))? == "host",
            "the host's file was written"
        );
        ensure!(fs::read_dir(&victim)?.count() == 1);
        engine.ok(&["rm", "-f", "swaps"])?;
        Ok(())
    })
}

#[test]
fn archives_come_from_standard_input_and_go_to_standard_output() -> Result<()> {
    with_engine(|engine| {
        for container in pair(engine)? {
            let outcome = engine.gantry(&["cp", &format!("{container}:/etc/passwd"), "-"])?;
            let archive = outcome.expect_code(0)?.stdout.into_bytes();
            let to = format!("{container}:/tmp");
            engine
                .gantry_with_input(&["cp", "-", &to], &archive)?
                .expect_code(0)?;
            let said = inside(
                engine,
                container,
                "cmp /etc/passwd /tmp/passwd && echo same",
            )?;
            ensure!(said == "same", "{said}");
            let text = b"no tar at all".repeat(100);
            for (damaged, why) in [
                (&archive[..520], "ends in the middle"),
                (&text, "no tar archive"),
            ] {
                let refused = engine.gantry_with_input(&["cp", "-", &to], damaged)?;
                let refused = refused.expect_code(1)?;
                ensure!(refused.stderr.contains(why), "{}", refused.stderr);
            }
        }
        Ok(())
    })
}

#[test]
fn what_is_mounted_is_seen_and_what_is_read_only_is_respected() -> Result<()> {
    with_engine(|engine| {
        let here = scratch(engine)?;
        let bound = here.join("bound");
        fs::create_dir(&bound)?;
        fs::write(bound.join("own"), "bound")?;
        fs::write(here.join("file"), "new")?;
        let image = engine.busybox()?;
        let volume = format!("{}:/rw", bound.display());
        let locked = format!("{}:/ro:ro", bound.display());
        let file = here.join("file").to_string_lossy().into_owned();
        let made = [
            "--name",
            "c1",
            "--read-only",
            "--tmpfs",
            "/tmp",
            "-v",
            &volume,
            "-v",
            &locked,
            &image,
            "sleep",
            "600",
        ];
        engine.ok(&[&["create"], &made[..]].concat())?;
        for state in ["created", "running", "paused"] {
            match state {
                "running" => drop(engine.ok(&["start", "c1"])?),
                "paused" => drop(engine.ok(&["pause", "c1"])?),
                _ => {}
            }
            let to = here.join(state).to_string_lossy().into_owned();
            cp(engine, &["c1:/ro/own", &to]).context(state)?;
            ensure!(fs::read_to_string(&to)? == "bound");
            cp(engine, &[&file, &format!("c1:/rw/{state}")])?;
            ensure!(fs::read_to_string(bound.join(state))? == "new", "{state}");
            cp(engine, &[&file, "c1:/tmp/f"])?;
            for locked in ["c1:/f", "c1:/ro/f", "c1:/etc"] {
                let refused = engine.gantry(&["cp", &file, locked])?.expect_code(1)?;
                ensure!(
                    refused.stderr.contains("read-only"),
                    "{state} {locked}: {}",
                    refused.stderr
                );
            }
        }
        engine.ok(&["unpause", "c1"])?;
        ensure!(engine.ok(&["exec", "c1", "cat", "/tmp/f"])? == "new");
        engine.ok(&["rm", "-f", "c1"])?;
        Ok(())
    })
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while !holds()? {
        if Instant::now() > end {
            bail!("never {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn a_copy_that_is_broken_off_leaves_no_part_and_holds_up_no_start() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&["create", "--name", "c1", &image, "sleep", "600"])?;
        // One file of a gigabyte, of which only the beginning ever comes.
        let mut header = tar_header("big", 1 << 30)?;
        header.extend_from_slice(&[7; 1 << 20]);
        for ending in ["killed", "started over"] {
            let mut copy = engine.command(&["cp", "-", "c1:/tmp"]);
            let mut copy = copy.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
            let mut input = copy.stdin.take().context("no standard input")?;
            input.write_all(&header)?;
            until("copying", || {
                let listed = fs::read_dir(engine.root().join("run/containers"))?;
                Ok(listed.count() > 0)
            })?;
            if ending == "killed" {
                copy.kill()?;
                copy.wait()?;
            } else {
                engine.ok(&["start", "c1"])?;
                let outcome = copy.wait_with_output()?;
                ensure!(outcome.status.code() == Some(1), "{outcome:?}");
                let said = String::from_utf8_lossy(&outcome.stderr).into_owned();
                ensure!(said.contains("cannot go on copying"), "{said}");
                ensure!(engine.ok(&["exec", "c1", "ls", "-A", "/tmp"])?.is_empty());
                engine.ok(&["kill", "c1"])?;
                engine.ok(&["wait", "c1"])?;
            }
            until("all is gone", || {
                let listed = fs::read_dir(engine.root().join("run/containers"))?;
                Ok(listed.count() == 0)
            })?;
            ensure!(
                !inside(engine, "c1", "ls -A /tmp")?.contains("big"),
                "{ending}"
            );
        }
        Ok(())
    })
}

/// The header of a file in a tar archive.
fn tar_header(name: &str, size: u64) -> Result<Vec<u8>> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(header)
}

#[test]
fn a_large_tree_passes_in_little_memory() -> Result<()> {
    with_engine(|engine| {
        let here = scratch(engine)?;
        let big = here.join("big");
        let file = fs::File::create(&big)?;
        file.set_len(256 << 20)?;
        let image = engine.busybox()?;
        engine.ok(&["run", "-d", "--name", "c1", &image, "sleep", "600"])?;
        let peak = |engine: &Engine| -> Result<u64> {
            let pid = engine.service_pid("runtime")?;
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            Ok(line
                .context("no VmHWM")?
                .trim()
                .trim_end_matches(" kB")
                .parse()?)
        };
        engine.gantry(&["cp", "c1:/nothing", "-"])?.expect_code(1)?;
        let before = peak(engine)?;
        let from = big.to_string_lossy().into_owned();
        cp(engine, &[&from, "c1:/tmp/big"])?;
        ensure!(engine.ok(&["exec", "c1", "stat", "-c", "%s", "/tmp/big"])? == "268435456");
        let grown = peak(engine)? - before;
        ensure!(grown < 32 << 10, "the runtime grew by {grown} kB");
        engine.ok(&["rm", "-f", "c1"])?;
        Ok(())
    })
}
