//! A container's life through the command line.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_integration_tests::audit;
use gantry_integration_tests::command::run;
use gantry_integration_tests::engine::with_engine;

#[test]
fn a_container_is_created_started_stopped_and_removed() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let id = engine.ok(&[
            "create",
            "--name",
            "one",
            "--label",
            "kind=test",
            &image,
            "sleep",
            "600",
        ])?;
        ensure!(id.len() == 64, "{id}");
        let state = |engine: &gantry_integration_tests::engine::Engine| {
            engine.ok(&["inspect", "--format", "{{.State.Status}}", "one"])
        };
        ensure!(state(engine)? == "created");
        ensure!(engine.ok(&["start", "one"])? == "one");
        ensure!(state(engine)? == "running");
        let listed = engine.ok(&["ps"])?;
        for word in ["one", &id[..12], "sleep 600", "Up", "busybox"] {
            ensure!(listed.contains(word), "no {word:?} in {listed}");
        }
        let by_label = engine.ok(&["ps", "-q", "--no-trunc", "--filter", "label=kind=test"])?;
        ensure!(by_label == id, "{by_label}");
        ensure!(
            engine
                .ok(&["ps", "-q", "--filter", "label=kind=other"])?
                .is_empty()
        );

        // By a prefix of its id too. sleep ignores nothing: pid 1 without a
        // handler does not get SIGTERM, so this ends in SIGKILL after 1 s.
        engine.ok(&["stop", "-t", "1", &id[..8]])?;
        ensure!(state(engine)? == "exited");
        let code = engine.ok(&["inspect", "--format", "{{.State.ExitCode}}", "one"])?;
        ensure!(code == "137", "exit code {code}");
        ensure!(engine.ok(&["ps", "-q"])?.is_empty());
        ensure!(engine.ok(&["ps", "-aq"])? == id[..12]);

        engine.ok(&["start", "one"])?;
        ensure!(
            state(engine)? == "running",
            "a stopped container starts again"
        );
        engine.ok(&["kill", "one"])?;
        ensure!(engine.ok(&["wait", "one"])? == "137");
        ensure!(engine.ok(&["rm", "one"])? == "one");
        engine.remember(&id);
        engine.audit_containers()
    })
}

#[test]
fn a_program_that_handles_its_stop_signal_ends_by_itself() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
        let id = engine.ok(&["run", "-d", &image, "sh", "-c", script])?;
        let mut follow = engine.command(&["logs", "--follow", &id]);
        // Once it has said "ready" its trap is set.
        let mut follow = follow.stdout(std::process::Stdio::piped()).spawn()?;
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
            follow.stdout.take().context("no output")?,
        ));
        ensure!(lines.next().transpose()?.as_deref() == Some("ready"));
        engine.ok(&["stop", &id])?;
        ensure!(lines.next().transpose()?.as_deref() == Some("bye"));
        ensure!(
            lines.next().is_none(),
            "logs --follow goes on after the end"
        );
        ensure!(follow.wait()?.success());
        ensure!(engine.ok(&["wait", &id])? == "3");
        Ok(())
    })
}

#[test]
fn output_is_kept_and_shown_as_asked_for() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let id = engine.ok(&[
            "run",
            "-d",
            &image,
            "sh",
            "-c",
            "seq 1 100; echo oops >&2; printf partial",
        ])?;
        engine.ok(&["wait", &id])?;
        let logs = engine.gantry(&["logs", &id])?.expect_code(0)?;
        let expected: String = (1..=100).map(|n| format!("{n}\n")).collect();
        ensure!(logs.stdout == format!("{expected}partial"), "{logs}");
        ensure!(logs.stderr == "oops\n", "{logs}");
        let tail = engine.gantry(&["logs", "--tail", "2", &id])?;
        ensure!(
            tail.stdout.lines().count() + tail.stderr.lines().count() == 2,
            "{tail}"
        );
        let stamped = engine.ok(&["logs", "-t", "--tail", "1", &id])?;
        ensure!(
            stamped.contains('T') && stamped.contains('Z'),
            "no time stamp: {stamped}"
        );
        Ok(())
    })
}

#[test]
fn a_second_program_runs_inside_by_exec() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let id = engine.ok(&["run", "-d", "-e", "FROM=config", &image, "sleep", "600"])?;
        for (arguments, code, stdout) in [
            (&["sh", "-c", "echo $FROM; exit 5"][..], 5, "config\n"),
            (&["hostname"], 0, &*format!("{}\n", &id[..12])),
        ] {
            let outcome = engine.gantry(&[&["exec", &id], arguments].concat())?;
            ensure!(
                outcome.code == code && outcome.stdout == stdout,
                "{outcome}"
            );
        }
        for (flags, script, expected) in [
            (&["-e", "A=1"][..], "echo $A", "1"),
            (&["-w", "/tmp"], "pwd", "/tmp"),
            (&["-u", "alice"], "id -un; echo $HOME", "alice\n/home/alice"),
            (&[], "grep -E '^Seccomp:' /proc/self/status | cut -f2", "2"),
            (
                &[],
                "grep CapEff /proc/self/status | cut -f2",
                "00000000a80425fb",
            ),
            (&[], "cat /proc/1/comm", "sleep"),
        ] {
            let words = [&["exec"], flags, &[&id, "sh", "-c", script]].concat();
            let said = engine.ok(&words)?;
            ensure!(
                said == expected,
                "{flags:?} {script:?}: {said:?}, not {expected:?}"
            );
        }
        let outcome = engine.gantry_with_input(&["exec", "-i", &id, "wc", "-c"], b"123")?;
        ensure!(outcome.stdout.trim() == "3", "{outcome}");
        engine.ok(&["exec", "-d", &id, "touch", "/tmp/detached"])?;
        let there = "until test -e /tmp/detached; do sleep 0.05; done; echo there";
        ensure!(engine.ok(&["exec", &id, "sh", "-c", there])? == "there");
        Ok(())
    })
}

#[test]
fn a_background_process_does_not_outlive_its_container() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let script = "sleep 600 & setsid sleep 601 & exit 0";
        engine
            .gantry(&["run", "--rm", &image, "sh", "-c", script])?
            .expect_code(0)?;
        engine.audit_containers()
    })
}

#[test]
fn a_cut_off_client_does_not_end_its_container() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let mut client = engine
            .command(&[
                "run",
                "--name",
                "kept",
                &image,
                "sh",
                "-c",
                "echo up; sleep 600",
            ])
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
            client.stdout.take().context("no output")?,
        ));
        ensure!(lines.next().transpose()?.as_deref() == Some("up"));
        client.kill()?;
        client.wait()?;
        let state = engine.ok(&["inspect", "--format", "{{.State.Status}}", "kept"])?;
        ensure!(state == "running", "{state}");
        Ok(())
    })
}

#[test]
fn a_window_that_reads_nothing_holds_up_nobody() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        // 40 MB, more than every buffer between the program and a window.
        let script = "read line; seq 1 5000000 > /dev/stdout; echo done > /tmp/done; sleep 600";
        let id = engine.ok(&["run", "-d", "-i", &image, "sh", "-c", script])?;
        let mut slow = engine
            .command(&["attach", "--no-stdin", &id])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        let mut starter = engine.command(&["attach", &id]);
        starter
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let mut starter = starter.spawn()?;
        std::io::Write::write_all(starter.stdin.as_mut().context("no input")?, b"go\n")?;
        let until = "until test -e /tmp/done; do sleep 0.05; done; echo finished";
        let said = run(
            &mut engine.command(&["exec", &id, "sh", "-c", until]),
            b"",
            Duration::from_secs(60),
        )?
        .text()?;
        ensure!(said == "finished", "{said}");
        slow.kill()?;
        slow.wait()?;
        starter.kill()?;
        starter.wait()?;
        Ok(())
    })
}

#[test]
fn twenty_containers_start_at_the_same_time() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let mut started = Vec::new();
        for number in 0..20 {
            let mut command =
                engine.command(&["run", "--rm", &image, "sh", "-c", &format!("echo {number}")]);
            command
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped());
            started.push((number, command.spawn()?));
        }
        for (number, child) in started {
            let output = child.wait_with_output()?;
            ensure!(
                output.stdout == format!("{number}\n").into_bytes(),
                "container {number}: {output:?}"
            );
        }
        engine.audit_containers()
    })
}

#[test]
fn services_keep_no_file_open_for_a_container_that_is_gone() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let services = engine.service_processes()?;
        let round = |count: usize| -> Result<()> {
            for _ in 0..count {
                engine.ok(&["run", "--rm", &image, "true"])?;
            }
            Ok(())
        };
        // The first runs fill caches and open connections between services.
        round(5)?;
        let before = audit::open_files(&services);
        round(20)?;
        let grown = || -> Vec<String> {
            audit::open_files(&services)
                .into_iter()
                .filter(|(pid, count)| *count > before.get(pid).copied().unwrap_or(0) + 4)
                .map(|(pid, count)| {
                    format!(
                        "{}: {count} open files after {before:?}",
                        audit::command_of(pid)
                    )
                })
                .collect()
        };
        audit::nothing_left("open files", Duration::from_secs(5), || Ok(grown()))
    })
}
