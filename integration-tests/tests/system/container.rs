//! What a program finds inside its container, flag by flag.

use anyhow::{Result, ensure};
use gantry_integration_tests::command::{DEADLINE, run};
use gantry_integration_tests::engine::{Engine, with_engine};

/// Runs `sh -c script` in a container with `flags`, for its output.
fn shell(engine: &Engine, flags: &[&str], script: &str) -> Result<String> {
    let image = image(engine)?;
    let words = [&["run", "--rm"], flags, &[&image, "sh", "-c", script]].concat();
    engine.ok(&words)
}

/// The busybox image's reference, installed on first use.
fn image(engine: &Engine) -> Result<String> {
    let listed = engine.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"])?;
    match listed.lines().find(|line| line.contains("busybox")) {
        Some(reference) => Ok(reference.to_owned()),
        None => engine.busybox(),
    }
}

#[test]
fn a_program_ends_with_its_own_exit_code_and_its_output_arrives_in_order() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let outcome = engine
            .gantry(&[
                "run",
                "--rm",
                &image,
                "sh",
                "-c",
                "echo out; echo err >&2; exit 42",
            ])?
            .expect_code(42)?;
        ensure!(
            outcome.stdout == "out\n" && outcome.stderr == "err\n",
            "{outcome}"
        );

        let outcome =
            engine.gantry_with_input(&["run", "--rm", "-i", &image, "wc", "-c"], b"12345")?;
        ensure!(outcome.stdout.trim() == "5", "{outcome}");

        // More than any buffer on the way holds.
        let outcome = engine
            .gantry(&["run", "--rm", &image, "seq", "1", "300000"])?
            .expect_code(0)?;
        let expected: String = (1..=300_000).map(|n| format!("{n}\n")).collect();
        ensure!(
            outcome.stdout == expected,
            "{} bytes arrived",
            outcome.stdout.len()
        );
        Ok(())
    })
}

#[test]
fn a_variable_that_the_caller_has_not_is_taken_out_by_a_flag_and_kept_by_a_file() -> Result<()> {
    with_engine(|engine| {
        let image = image(engine)?;
        let file = engine.root().join("env");
        std::fs::write(&file, "HOSTNAME\n")?;
        let file = file.to_string_lossy().into_owned();
        for (flag, value, count) in [("-e", "HOSTNAME", "0"), ("--env-file", &file, "1")] {
            let script = "env | grep -c ^HOSTNAME=; true";
            let words = ["run", "--rm", flag, value, &image, "sh", "-c", script];
            let mut command = engine.command(&words);
            command.env_remove("HOSTNAME");
            let said = run(&mut command, b"", DEADLINE)?.text()?;
            ensure!(said == count, "{flag}: {said}");
        }
        Ok(())
    })
}

#[test]
fn environment_directory_user_and_host_name_are_as_asked_for() -> Result<()> {
    with_engine(|engine| {
        let file = engine.root().join("env");
        std::fs::write(&file, "# a comment\nFROM_FILE=1 2\n")?;
        let file = file.to_string_lossy().into_owned();
        for (flags, script, expected) in [
            (&["-e", "A=b c"][..], "echo $A", "b c"),
            (&["--env-file", &file], "echo $FROM_FILE", "1 2"),
            (&["-e", "A=1", "-e", "A=2"], "env | grep ^A=", "A=2"),
            (&["-w", "/tmp"], "pwd", "/tmp"),
            (&["-w", "/made/for/it"], "pwd", "/made/for/it"),
            (
                &["-u", "alice"],
                "id -u; id -g; echo $HOME",
                "1000\n1000\n/home/alice",
            ),
            (&["-u", "alice"], "id -G", "1000 10"),
            (&["-u", "1234:99"], "id -u; id -g", "1234\n99"),
            (
                &["--hostname", "crane"],
                "hostname; cat /etc/hostname",
                "crane\ncrane",
            ),
            (&["--hostname", "crane"], "grep -c crane /etc/hosts", "1"),
            (&["--entrypoint", "echo"], "x", "-c x"),
            (&["--label", "a=b"], "echo $$", "1"),
        ] {
            let image = image(engine)?;
            let mut words = [&["run", "--rm"], flags, &[&image]].concat();
            if flags[0] != "--entrypoint" {
                words.push("sh");
            }
            words.extend(["-c", script]);
            let said = engine.ok(&words)?;
            ensure!(
                said == expected,
                "{flags:?} {script:?}: {said:?}, not {expected:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn the_default_container_is_confined() -> Result<()> {
    with_engine(|engine| {
        for (script, expected) in [
            // Docker's default capabilities.
            (
                "grep CapEff /proc/self/status | cut -f2",
                "00000000a80425fb",
            ),
            ("grep -E '^Seccomp:' /proc/self/status | cut -f2", "2"),
            (
                "echo x > /proc/sysrq-trigger 2>/dev/null || echo denied",
                "denied",
            ),
            ("wc -c < /proc/keys", "0"),
            (
                "echo x > /proc/sys/kernel/core_pattern 2>/dev/null || echo denied",
                "denied",
            ),
            (
                "mount -t tmpfs none /tmp 2>/dev/null || echo denied",
                "denied",
            ),
            ("unshare -U true 2>/dev/null || echo denied", "denied"),
            ("echo /proc/[0-9]*", "/proc/1"),
            ("ls /proc/self/fd | wc -l", "4"),
            ("cat /proc/sys/net/ipv4/ping_group_range | wc -l", "1"),
            (
                "test -c /dev/null && test -c /dev/urandom && test -d /dev/shm && test -d /dev/mqueue && test -L /dev/stdout && echo all",
                "all",
            ),
            (
                "mknod /tmp/sda b 8 0 && cat /tmp/sda 2>/dev/null || echo denied",
                "denied",
            ),
            ("cat /proc/1/cgroup | head -1 | cut -d: -f3", "/"),
        ] {
            let said = shell(engine, &[], script)?;
            ensure!(said == expected, "{script:?}: {said:?}, not {expected:?}");
        }
        Ok(())
    })
}

#[test]
fn capabilities_privileges_and_security_options_are_as_asked_for() -> Result<()> {
    with_engine(|engine| {
        let capabilities = "grep CapEff /proc/self/status | cut -f2";
        for (flags, script, expected) in [
            (&["--cap-drop", "ALL"][..], capabilities, "0000000000000000"),
            (
                &["--cap-drop", "all", "--cap-add", "CAP_NET_RAW"],
                capabilities,
                "0000000000002000",
            ),
            (
                &["--cap-drop", "ALL", "--cap-add", "chown"],
                capabilities,
                "0000000000000001",
            ),
            (
                &[
                    "--cap-add",
                    "SYS_ADMIN",
                    "--security-opt",
                    "seccomp=unconfined",
                ],
                "mount -t tmpfs none /tmp && echo mounted",
                "mounted",
            ),
            (
                &["--privileged"],
                "mount -t tmpfs none /tmp && echo mounted",
                "mounted",
            ),
            (
                &["--privileged"],
                "grep -E '^Seccomp:' /proc/self/status | cut -f2",
                "0",
            ),
            (
                &["--security-opt", "no-new-privileges"],
                "grep NoNewPrivs /proc/self/status | cut -f2",
                "1",
            ),
            (
                &["--security-opt", "seccomp=unconfined"],
                "grep -E '^Seccomp:' /proc/self/status | cut -f2",
                "0",
            ),
            (&["-u", "1000"], capabilities, "0000000000000000"),
            (
                &["--read-only"],
                "touch /x 2>/dev/null || echo denied",
                "denied",
            ),
            (
                &["--read-only", "--tmpfs", "/scratch"],
                "touch /scratch/x && echo fine",
                "fine",
            ),
            (
                &["--tmpfs", "/scratch:size=1m,mode=700"],
                "stat -c %a /scratch; df -k /scratch | tail -1 | awk '{print $2}'",
                "700\n1024",
            ),
            (
                &["--ulimit", "nofile=77:99"],
                "ulimit -Sn; ulimit -Hn",
                "77\n99",
            ),
            (
                &["--init"],
                "cat /proc/1/comm; head -c 17 /proc/1/cmdline | tr '\\0' ' '",
                "gantry-init\ngantry-init -- sh",
            ),
            // A user's own group is one of its supplementary ones.
            (
                &["-u", "77:78"],
                "id -G; grep -c '^Groups:.*78' /proc/self/status",
                "78\n1",
            ),
            (
                &["--ipc", "none"],
                "ls -d /dev/shm 2>/dev/null || echo none",
                "none",
            ),
        ] {
            let said = shell(engine, flags, script)?;
            ensure!(
                said == expected,
                "{flags:?} {script:?}: {said:?}, not {expected:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn limits_hold() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        // Both layouts: v2's file or v1's.
        let said = shell(
            engine,
            &["-m", "64m"],
            "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes",
        )?;
        ensure!(said == "67108864", "memory limit: {said}");
        let said = shell(
            engine,
            &["--cpus", "0.5"],
            "cat /sys/fs/cgroup/cpu.max 2>/dev/null || cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us",
        )?;
        ensure!(said.starts_with("50000"), "cpu limit: {said}");
        let outcome = engine.gantry(&[
            "run",
            "--rm",
            "--pids-limit",
            "8",
            &image,
            "sh",
            "-c",
            "i=0; while [ $i -lt 20 ]; do sleep 5 & i=$((i+1)); done; wait",
        ])?;
        ensure!(outcome.stderr.contains("fork"), "{outcome}");

        let guest = engine.install("guest", &gantry_integration_tests::fixture::guest()?)?;
        let outcome =
            engine.gantry(&["run", "--name", "eater", "-m", "32m", &guest, "eat", "256"])?;
        ensure!(outcome.code == 137, "{outcome}");
        let oom = engine.ok(&["inspect", "--format", "{{.State.OOMKilled}}", "eater"])?;
        ensure!(oom == "true", "OOMKilled is {oom}");
        Ok(())
    })
}

#[test]
fn mounts_are_as_asked_for_and_stay_out_of_the_host() -> Result<()> {
    with_engine(|engine| {
        let host = engine.root().join("host");
        std::fs::create_dir(&host)?;
        std::fs::write(host.join("file"), "from the host\n")?;
        let host = host.to_string_lossy().into_owned();
        let said = shell(
            engine,
            &["-v", &format!("{host}:/data")],
            "cat /data/file; echo back > /data/new",
        )?;
        ensure!(said == "from the host", "{said}");
        ensure!(std::fs::read_to_string(format!("{host}/new"))? == "back\n");
        for flags in [
            ["-v", &format!("{host}:/data:ro")],
            [
                "--mount",
                &format!("type=bind,source={host},target=/data,readonly"),
            ],
        ] {
            let said = shell(engine, &flags, "touch /data/x 2>/dev/null || echo denied")?;
            ensure!(said == "denied", "{flags:?}: {said}");
        }
        let said = shell(
            engine,
            &["-v", &format!("{host}/file:/etc/motd:ro")],
            "cat /etc/motd",
        )?;
        ensure!(
            said == "from the host",
            "a file bound over a path that is not there: {said}"
        );
        // As Docker's: a source of -v that does not exist is made.
        shell(
            engine,
            &["-v", &format!("{host}/made:/data")],
            "touch /data/x",
        )?;
        ensure!(std::fs::exists(format!("{host}/made/x"))?);
        // No mount of a container is visible outside of it.
        let name = engine.ok(&[
            "run",
            "-d",
            "-v",
            &format!("{host}:/data"),
            &image(engine)?,
            "sleep",
            "600",
        ])?;
        let visible = std::fs::read_to_string("/proc/self/mountinfo")?;
        let root = engine.root().to_string_lossy().into_owned();
        let seen: Vec<&str> = visible
            .lines()
            .filter(|line| line.contains(&root) && !line.contains("/run/netns"))
            .collect();
        ensure!(seen.is_empty(), "mounts on the host: {seen:?}");
        engine.ok(&["rm", "-f", &name])?;
        Ok(())
    })
}
