//! Containers of the engine that another OCI runtime makes (`--runtime`).
//!
//! The other one is the engine's own `gantry-oci`, as a program: it is always
//! there. With runc the same is `make interop`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use gantry_integration_tests::engine::{Engine, Options, bin_dir, send, with_engine};
use gantry_integration_tests::pty::Pty;
use rustix::process::Signal;

use crate::faults::shim_of;

fn own_program() -> Result<String> {
    let program = bin_dir()?.join("gantry-oci");
    Ok(program.to_string_lossy().into_owned())
}

/// A runtime of a test's own: a shell script that may pass on to `gantry-oci`.
fn script(directory: &Path, name: &str, body: &str) -> Result<String> {
    let path: PathBuf = directory.join(name);
    let program = own_program()?;
    std::fs::write(&path, format!("#!/bin/sh\nREAL={program}\n{body}\n"))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path.to_string_lossy().into_owned())
}

const MEMORY: &str =
    "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes";

/// A container's whole life, made by `runtime`.
fn lives(engine: &mut Engine, runtime: &str) -> Result<()> {
    let image = engine.busybox()?;
    let host = tempfile::tempdir()?;
    std::fs::write(host.path().join("file"), "from the host\n")?;
    let bind = format!("{}:/host:ro", host.path().display());
    let mut words = vec!["run", "-d", "--name", "it", "--runtime", runtime];
    words.extend(["-m", "64m", "--pids-limit", "50", "-e", "FROM=config"]);
    words.extend(["-v", "kept:/data", "-v", &bind, "--hostname", "other"]);
    words.extend(["--domainname", "example.test", "-p", "80"]);
    words.extend(["--restart", "on-failure:1", &image, "sh", "-c"]);
    words.push(
        "echo out; echo err >&2; httpd -p 80 -h /host; trap 'exit 0' TERM; while :; do sleep 0.05; done",
    );
    let id = engine.ok(&words)?;
    engine.remember(&id);
    let shown = "{{.HostConfig.Runtime}} {{.State.Status}}";
    let shown = engine.ok(&["inspect", "--format", shown, "it"])?;
    ensure!(shown == format!("{runtime} running"), "{shown}");

    // Inside.
    for (flags, command, code, stdout) in [
        (&[][..], "echo $FROM; exit 5", 5, "config\n"),
        (&["-e", "A=b", "-w", "/tmp"], "echo $A $PWD", 0, "b /tmp\n"),
        (&["-u", "1000:50"], "id -u; id -g", 0, "1000\n50\n"),
        (
            &[],
            "cat /host/file; hostname; echo $HOME",
            0,
            "from the host\nother\n/root\n",
        ),
        (&[], "cat /proc/sys/kernel/domainname", 0, "example.test\n"),
        (&[], MEMORY, 0, "67108864\n"),
        (
            &[],
            "grep Seccomp: /proc/self/status /proc/1/status | cut -f2",
            0,
            "2\n2\n",
        ),
        (
            &[],
            "echo kept > /data/file; touch /host/x 2>/dev/null",
            1,
            "",
        ),
        (&[], "ls /proc/self/fd | wc -l", 0, "4\n"),
        (
            &[],
            "exec grep -E '^Sig(Blk|Ign)' /proc/self/status",
            0,
            "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n",
        ),
    ] {
        let words = [&["exec"], flags, &["it", "sh", "-c", command]].concat();
        let outcome = engine.gantry(&words)?.expect_code(code)?;
        ensure!(outcome.stdout == stdout, "{command}: {outcome}");
    }
    engine
        .gantry(&["exec", "it", "nonexistent"])?
        .expect_code(127)?;
    engine
        .gantry(&["exec", "it", "/etc/passwd"])?
        .expect_code(126)?;
    let echo = engine.gantry_with_input(&["exec", "-i", "it", "cat"], b"typed")?;
    ensure!(echo.stdout == "typed", "{echo}");
    engine.ok(&["exec", "-d", "it", "sh", "-c", "echo done > /tmp/detached"])?;
    let pty = Pty::spawn(
        &engine.command(&["exec", "-it", "it", "sh", "-c", "stty size; tty; exit 4"]),
        93,
        31,
    )?;
    let (code, bytes) = pty.finish()?;
    let said = String::from_utf8_lossy(&bytes);
    ensure!(
        code == 4 && said.contains("31 93") && said.contains("/dev/pts/"),
        "{code}: {said}"
    );

    // Its mounts are the shim's and its own, and the shim keeps nothing of others.
    let host_mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let seen = host_mounts.lines().find(|line| line.contains(&id));
    ensure!(seen.is_none(), "{seen:?}");
    let shim = shim_of(engine, &id)?;
    let mounts = std::fs::read_to_string(format!("/proc/{shim}/mountinfo"))?;
    // Namespaces of this engine; others, of `ip netns` or Docker, may be shared mounts.
    let root = engine.root().to_string_lossy();
    let of_engine = |line: &&str| line.contains(" nsfs ") && line.contains(&*root);
    ensure!(
        mounts.contains(&id) && !mounts.lines().any(|line| of_engine(&line)),
        "{mounts}"
    );

    // Looking.
    let logs = engine.gantry(&["logs", "it"])?;
    ensure!(logs.stdout == "out\n" && logs.stderr == "err\n", "{logs}");
    let top = engine.ok(&["top", "it"])?;
    ensure!(top.contains("httpd -p 80"), "{top}");
    let stats = engine.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}}", "it"])?;
    ensure!(stats.ends_with("64MiB"), "{stats}");
    let port = engine.ok(&["port", "it", "80"])?;
    let answer = gantry_integration_tests::http::get(&format!("http://{port}/file"))?;
    ensure!(answer.text() == "from the host\n", "{}", answer.text());

    // Files, as its processes see them.
    let (there, back) = (host.path().join("new"), host.path().join("back"));
    std::fs::write(&there, "copied\n")?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    engine.ok(&["cp", &text(&there), "it:/data/new"])?;
    ensure!(engine.ok(&["exec", "it", "cat", "/data/new"])? == "copied");
    engine.ok(&["cp", "it:/tmp/detached", &text(&back)])?;
    ensure!(std::fs::read_to_string(&back)? == "done\n");

    // Freezing and limits.
    engine.ok(&["pause", "it"])?;
    let paused = engine.ok(&["inspect", "--format", "{{.State.Status}}", "it"])?;
    ensure!(paused == "paused", "{paused}");
    engine.ok(&["unpause", "it"])?;
    engine.ok(&["update", "-m", "80m", "--memory-swap", "160m", "it"])?;
    let limit = engine.ok(&["exec", "it", "sh", "-c", MEMORY])?;
    ensure!(limit == (80 << 20).to_string(), "{limit}");

    // Its end, again, by signal, and by force.
    engine.ok(&["stop", "it"])?;
    let state = "{{.State.Status}} {{.State.ExitCode}}";
    let state = engine.ok(&["inspect", "--format", state, "it"])?;
    ensure!(state == "exited 0", "{state}");
    engine.ok(&["cp", "it:/data/new", &text(&back)])?;
    ensure!(std::fs::read_to_string(&back)? == "copied\n", "stopped");
    engine.ok(&["start", "it"])?;
    ensure!(engine.ok(&["exec", "it", "cat", "/data/file"])? == "kept");
    engine.ok(&["pause", "it"])?;
    engine.ok(&["rm", "-f", "it"])?;
    // A policy.
    let words = ["run", "-d", "--name", "again", "--runtime", runtime];
    let policy = ["--restart", "on-failure:2", &image, "false"];
    engine.ok(&[&words[..], &policy].concat())?;
    let state = "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}";
    let end = Instant::now() + Duration::from_secs(60);
    while engine.ok(&["inspect", "--format", state, "again"])? != "exited 1 2" {
        ensure!(Instant::now() < end, "it is not started again");
        std::thread::sleep(Duration::from_millis(50));
    }
    engine.ok(&["rm", "again"])?;
    engine.audit_containers()
}

/// What one run at a time shows: exit codes, output, input, a terminal.
fn runs(engine: &mut Engine, runtime: &str) -> Result<()> {
    let image = engine.busybox()?;
    let run = ["run", "--rm", "--runtime", runtime];
    let said = engine.gantry(&[&run[..], &[&image, "sh", "-c", "echo hello; exit 7"]].concat())?;
    ensure!(said.stdout == "hello\n" && said.code == 7, "{said}");
    for (program, code) in [("nonexistent", 127), ("/etc/passwd", 126)] {
        let outcome = engine.gantry(&[&run[..], &[&image, program]].concat())?;
        let outcome = outcome.expect_code(code)?;
        ensure!(outcome.stderr.contains(program), "{outcome}");
    }
    // Longer than any pipe, to its last byte, and ended at once.
    let lines = 200_000;
    let said = engine.ok(&[&run[..], &[&image, "seq", &lines.to_string()]].concat())?;
    ensure!(said.lines().count() == lines && said.ends_with(&lines.to_string()));
    let flags = [
        "-i",
        "-u",
        "alice",
        "--group-add",
        "root",
        &image,
        "sh",
        "-c",
    ];
    let command = ["cat; id -un; id -G; echo $HOME"];
    let words = [&run[..], &flags, &command].concat();
    let said = engine.gantry_with_input(&words, b"typed\n")?;
    let mut lines = said.stdout.lines();
    ensure!(lines.next() == Some("typed"), "{said}");
    ensure!(lines.next() == Some("alice"), "{said}");
    ensure!(lines.next() == Some("1000 0 10"), "{said}");
    ensure!(lines.next() == Some("/home/alice"), "{said}");
    let words = [&run[..], &["-it", &image, "sh", "-c", "stty size; exit 3"]].concat();
    let (code, bytes) = Pty::spawn(&engine.command(&words), 101, 17)?.finish()?;
    let said = String::from_utf8_lossy(&bytes);
    ensure!(code == 3 && said.contains("17 101"), "{code}: {said}");
    // A part of a volume, and the files of an image.
    engine.ok(&["volume", "create", "parts"])?;
    let fill = [
        "-v",
        "parts:/v",
        &image,
        "sh",
        "-c",
        "mkdir /v/a; echo part > /v/a/f",
    ];
    engine.ok(&[&run[..], &fill].concat())?;
    let part = "type=volume,src=parts,dst=/p,volume-subpath=a";
    let whole = format!("type=image,src={image},dst=/image");
    let words = ["--mount", part, "--mount", &whole, &image, "sh", "-c"];
    let command = ["cat /p/f; test -x /image/bin/busybox && ! touch /image/x 2>/dev/null"];
    ensure!(engine.ok(&[&run[..], &words, &command].concat())? == "part");
    // Owners that are mapped.
    let host = tempfile::tempdir()?;
    std::fs::write(host.path().join("f"), "")?;
    let bind = format!(
        "type=bind,src={},dst=/b,idmap=uids=0-1234-1;gids=0-1234-1",
        host.path().display()
    );
    let words = ["--mount", &bind, &image, "stat", "-c", "%u:%g", "/b/f"];
    let owner = engine.ok(&[&run[..], &words].concat())?;
    ensure!(owner == "1234:1234", "{owner}");
    engine.audit_containers()
}

#[test]
fn another_runtime_makes_and_drives_a_container_for_its_whole_life() -> Result<()> {
    with_engine(|engine| lives(engine, &own_program()?))
}

#[test]
fn another_runtimes_container_has_its_streams_its_user_and_its_mounts() -> Result<()> {
    with_engine(|engine| runs(engine, &own_program()?))
}

#[test]
#[ignore = "make interop: needs runc"]
fn what_dockers_runc_makes_lives_as_what_we_make() -> Result<()> {
    with_engine(|engine| lives(engine, "runc"))
}

#[test]
#[ignore = "make interop: needs runc"]
fn what_dockers_runc_makes_has_its_streams_its_user_and_its_mounts() -> Result<()> {
    with_engine(|engine| runs(engine, "runc"))
}

#[test]
fn a_runtime_that_is_not_there_or_cannot_do_it_is_refused_before_anything_is_made() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        for verb in ["run", "create"] {
            for unknown in ["nosuch", "/nosuch", "../gantry-oci", "/etc/passwd"] {
                let refused = engine.gantry(&[verb, "--runtime", unknown, &image, "true"])?;
                let refused = refused.expect_code(if verb == "run" { 125 } else { 1 })?;
                let words = format!("unknown or invalid runtime name: {unknown}");
                ensure!(refused.stderr.contains(&words), "{refused}");
            }
            let own = own_program()?;
            let words = [verb, "--init", "--runtime", &own, &image, "true"];
            let refused = engine.gantry(&words)?;
            ensure!(
                refused.code != 0 && refused.stderr.contains("leave one of the two out"),
                "{refused}"
            );
        }
        ensure!(engine.ok(&["ps", "-aq"])?.is_empty());
        // Its own, by name.
        let id = engine.ok(&["create", "--runtime", "gantry", "--init", &image, "true"])?;
        let shown = ["inspect", "--format", "{{.HostConfig.Runtime}}", &id];
        ensure!(engine.ok(&shown)? == "gantry");
        ensure!(engine.ok(&["start", "-a", &id])?.is_empty());
        Ok(())
    })
}

#[test]
fn a_runtime_that_fails_is_heard_and_leaves_nothing() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let directory = tempfile::tempdir()?;
        // It says why in its log; or only prints; or makes all, and then fails.
        let logs = script(
            directory.path(),
            "logs",
            r#"while [ "$1" != --log ]; do shift; done
echo '{"level":"error","msg":"no such luck","time":"now"}' > "$2"; exit 1"#,
        )?;
        let prints = script(
            directory.path(),
            "prints",
            "echo 'no such luck' >&2; exit 3",
        )?;
        let late = script(
            directory.path(),
            "late",
            r#"case " $* " in
*" create "*) "$REAL" "$@" && exec "$REAL" nosuch-verb;;
*) exec "$REAL" "$@";;
esac"#,
        )?;
        for (runtime, words) in [
            (&logs, "no such luck"),
            (&prints, "no such luck"),
            (&late, "nosuch-verb"),
        ] {
            let failed = engine.gantry(&["run", "--runtime", runtime, &image, "true"])?;
            let failed = failed.expect_code(125)?;
            ensure!(
                failed.stderr.contains(words) && failed.stderr.contains(runtime.as_str()),
                "{failed}"
            );
            ensure!(engine.ok(&["ps", "-aq"])?.is_empty());
            engine.audit_containers()?;
        }
        Ok(())
    })
}

#[test]
fn a_runtime_that_hangs_hangs_no_verb_and_marks_its_container() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let directory = tempfile::tempdir()?;
        let hangs = script(
            directory.path(),
            "hangs",
            r#"case " $* " in *" pause "*) sleep 1000;; esac
exec "$REAL" "$@""#,
        )?;
        let words = ["run", "-d", "--name", "sick", "--runtime", &hangs, &image];
        engine.ok(&[&words[..], &["sleep", "600"]].concat())?;
        let begin = Instant::now();
        let failed = engine.gantry(&["pause", "sick"])?;
        ensure!(
            failed.code != 0 && failed.stderr.contains("did not pause the container"),
            "{failed}"
        );
        ensure!(begin.elapsed() < Duration::from_secs(15));
        // Its word holds beyond the look that the service takes every two seconds.
        let marked = || engine.ok(&["ps", "--format", "{{.Status}}"]);
        ensure!(marked()?.contains("did not pause"), "{}", marked()?);
        std::thread::sleep(Duration::from_secs(3));
        ensure!(marked()?.contains("did not pause"), "{}", marked()?);
        // What the next verb shows to be wrong is taken back.
        ensure!(engine.ok(&["exec", "sick", "echo", "fine"])? == "fine");
        let end = Instant::now() + Duration::from_secs(60);
        while marked()?.contains("did not pause") {
            ensure!(Instant::now() < end, "{}", marked()?);
            std::thread::sleep(Duration::from_millis(50));
        }
        engine.ok(&["rm", "-f", "sick"])?;
        engine.audit_containers()
    })
}

#[test]
fn another_runtimes_container_outlives_the_services_and_is_cleaned_up_after_its_shim() -> Result<()>
{
    with_engine(|engine| {
        let image = engine.busybox()?;
        let runtime = own_program()?;
        let words = [
            "run",
            "-d",
            "--name",
            "it",
            "--runtime",
            &runtime,
            &image,
            "sh",
            "-c",
        ];
        let script = "echo begun; trap 'echo bye; exit 9' TERM; while :; do sleep 0.05; done";
        let id = engine.ok(&[&words[..], &[script]].concat())?;
        engine.remember(&id);
        engine.kill_service("runtime", Signal::KILL)?;
        engine.kill_service("gateway", Signal::KILL)?;
        ensure!(engine.ok(&["exec", "it", "echo", "inside"])? == "inside");
        engine.ok(&["pause", "it"])?;
        engine.restart(Signal::TERM)?;
        let state = ["inspect", "--format", "{{.State.Status}}", "it"];
        // The gateway hears of it from the runtime, after it is ready.
        let end = Instant::now() + Duration::from_secs(60);
        while engine.ok(&state)? != "paused" {
            ensure!(Instant::now() < end, "{}", engine.ok(&state)?);
            std::thread::sleep(Duration::from_millis(50));
        }
        engine.ok(&["unpause", "it"])?;
        engine.ok(&["stop", "it"])?;
        let code = ["inspect", "--format", "{{.State.ExitCode}}", "it"];
        ensure!(engine.ok(&code)? == "9");
        let logs = engine.ok(&["logs", "it"])?;
        ensure!(logs == "begun\nbye", "{logs}");

        engine.ok(&["start", "it"])?;
        send(shim_of(engine, &id)?, Signal::KILL)?;
        ensure!(engine.ok(&["wait", "it"])? != "0");
        engine.ok(&["rm", "-f", "it"])?;
        engine.audit_containers()
    })
}

#[test]
fn a_runtime_of_the_configuration_gets_its_arguments() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let mine = script(
        directory.path(),
        "mine",
        &format!(
            r#"[ "$1" = --mine ] || exit 5
echo "$@" >> {}/calls; shift; exec "$REAL" "$@""#,
            directory.path().display()
        ),
    )?;
    let engine = Engine::with(Options {
        config: format!("[runtime.runtimes.mine]\npath = {mine:?}\nargs = [\"--mine\"]\n"),
        ..Options::default()
    })?;
    let image = engine.busybox()?;
    let said = engine.ok(&["run", "--rm", "--runtime", "mine", &image, "echo", "hello"])?;
    ensure!(said == "hello", "{said}");
    let calls = std::fs::read_to_string(directory.path().join("calls"))?;
    for verb in [" create ", " start ", " delete "] {
        ensure!(calls.contains(verb), "{calls}");
    }
    let refused = engine.gantry(&["run", "--runtime", "yours", &image, "true"])?;
    ensure!(refused.stderr.contains("mine"), "{refused}");
    engine.finish()
}
