//! What people see of containers: limits that change, sizes, processes,
//! templates.

use std::fs;

use anyhow::{Context, Result, ensure};
use gantry_integration_tests::engine::{Engine, with_engine};

fn shows(engine: &Engine, arguments: &[&str], wanted: &str) -> Result<()> {
    let said = engine.ok(arguments)?;
    ensure!(
        said == wanted,
        "{arguments:?} says {said:?}, not {wanted:?}"
    );
    Ok(())
}

/// A file of the container's cgroup, by its names in v1 and v2.
fn limit(engine: &Engine, id: &str, v1: &str, v2: &str) -> Result<String> {
    let cgroup = format!("{}/{id}", engine.marks().cgroup);
    let root = std::path::Path::new("/sys/fs/cgroup");
    let first = root.join(v1.split('/').next().unwrap_or_default());
    let path = if first.is_dir() {
        let (controller, file) = v1.split_once('/').context("no controller")?;
        root.join(controller).join(&cgroup).join(file)
    } else {
        root.join(&cgroup).join(v2)
    };
    let read = fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
    Ok(read.trim().to_owned())
}

#[test]
fn limits_change_while_a_container_runs_and_for_its_next_start() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let id = engine.ok(&[
            "run", "-d", "--name", "c1", "-m", "64m", &image, "sleep", "600",
        ])?;
        let rests = engine.ok(&["create", "--name", "r1", &image, "sleep", "600"])?;
        let said = engine.ok(&[
            "update",
            "--pids-limit",
            "50",
            "-m",
            "100m",
            "--memory-swap",
            "-1",
            "--cpu-shares",
            "512",
            "--restart",
            "on-failure:3",
            "c1",
            "r1",
        ])?;
        ensure!(said == "c1\nr1", "{said}");
        let pids = |engine: &Engine, id: &str| limit(engine, id, "pids/pids.max", "pids.max");
        let memory = |engine: &Engine, id: &str| {
            limit(engine, id, "memory/memory.limit_in_bytes", "memory.max")
        };
        ensure!(pids(engine, &id)? == "50", "{}", pids(engine, &id)?);
        ensure!(memory(engine, &id)? == (100 << 20).to_string());
        engine.ok(&["update", "--pids-limit", "-1", "c1"])?;
        ensure!(pids(engine, &id)? == "max");
        engine.ok(&["start", "r1"])?;
        ensure!(pids(engine, &rests)? == "50", "it holds for the next start");
        let template = "{{.HostConfig.Memory}} {{.HostConfig.CpuShares}} {{.HostConfig.RestartPolicy.Name}}:{{.HostConfig.RestartPolicy.MaximumRetryCount}}";
        shows(
            engine,
            &["inspect", "-f", template, "r1"],
            "104857600 512 on-failure:3",
        )?;
        for (wrong, why) in [
            (&["-m", "1m"][..], "too few"),
            (&["--cpus", "1000"], "CPUs"),
            (&[], "one or more flags"),
        ] {
            let refused = engine.gantry(&[&["update"], wrong, &["c1"]].concat())?;
            let refused = refused.expect_code(1)?;
            ensure!(
                refused.stderr.contains(why),
                "{wrong:?}: {}",
                refused.stderr
            );
        }
        ensure!(
            memory(engine, &id)? == (100 << 20).to_string(),
            "nothing was changed"
        );
        engine.ok(&["rm", "-f", "c1", "r1"])?;
        Ok(())
    })
}

#[test]
fn what_does_not_run_is_pruned() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let runs = engine.ok(&["run", "-d", &image, "sleep", "600"])?;
        let ended = engine.ok(&["run", "-d", &image, "sh", "-c", "echo 12345678 > /file"])?;
        engine.ok(&["wait", &ended])?;
        let kept = engine.ok(&["create", "-l", "keep", &image, "true"])?;
        let asked = engine
            .gantry_with_input(&["container", "prune"], b"n\n")?
            .text()?;
        ensure!(
            asked.contains("WARNING! This will remove all stopped containers."),
            "{asked}"
        );
        let said = engine.ok(&["container", "prune", "-f", "--filter", "label!=keep"])?;
        let wanted = format!("Deleted Containers:\n{ended}\n\nTotal reclaimed space: 9B");
        ensure!(said == wanted, "{said}");
        shows(
            engine,
            &["container", "prune", "-f", "--filter", "until=24h"],
            "Total reclaimed space: 0B",
        )?;
        let said = engine.ok(&["system", "prune", "-f"])?;
        ensure!(
            said.starts_with(&format!("Deleted Containers:\n{kept}\n\n")),
            "{said}"
        );
        shows(engine, &["ps", "-aq", "--no-trunc"], &runs)?;
        engine.ok(&["rm", "-f", &runs])?;
        Ok(())
    })
}

#[test]
fn sizes_processes_logs_and_waits_are_shown() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let script = "echo 123456789 > /file; echo out; exec sleep 600";
        let id = engine.ok(&["run", "-d", "--name", "c1", &image, "sh", "-c", script])?;
        let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while engine.ok(&["logs", "c1"])? != "out" {
            ensure!(std::time::Instant::now() < until, "it says nothing");
        }
        let size = engine.ok(&["ps", "-s", "--format", "{{.Size}}"])?;
        ensure!(size.starts_with("10B (virtual "), "{size}");
        let table = engine.ok(&["ps", "--size"])?;
        ensure!(
            table
                .lines()
                .next()
                .is_some_and(|line| line.ends_with("SIZE")),
            "{table}"
        );
        shows(engine, &["inspect", "-s", "-f", "{{.SizeRw}}", "c1"], "10")?;
        let top = engine.ok(&["top", "c1", "-o", "pid,args"])?;
        let pid = engine.ok(&["inspect", "-f", "{{.State.Pid}}", "c1"])?;
        let line = top.lines().nth(1).context("no process")?;
        ensure!(
            line.split_whitespace().collect::<Vec<_>>() == [&*pid, "sleep", "600"],
            "{top}"
        );
        let top = engine.ok(&["top", "c1"])?;
        ensure!(top.starts_with("UID") && top.contains("sleep 600"), "{top}");
        engine
            .gantry(&["top", "c1", "-o", "comm"])?
            .expect_code(1)?;
        shows(engine, &["logs", "--details", "c1"], "out").or_else(|_| {
            let said = engine.gantry(&["logs", "--details", "c1"])?;
            ensure!(said.stdout == " out\n", "{said}");
            Ok(())
        })?;
        shows(engine, &["ps", "-n", "1", "-q"], &id[..12])?;
        engine.ok(&["kill", "c1"])?;
        shows(engine, &["wait", "--condition", "not-running", "c1"], "137")?;
        let stats = engine.ok(&[
            "stats",
            "--no-stream",
            "--format",
            "{{.Name}} {{.CPUPerc}} {{.PIDs}}",
            "c1",
        ])?;
        ensure!(stats == "c1 0.00% 0", "{stats}");
        shows(
            engine,
            &["stats", "--no-stream", "--format", "{{.Name}}"],
            "",
        )?;
        shows(
            engine,
            &["stats", "-a", "--no-stream", "--format", "{{.Name}}"],
            "c1",
        )?;
        engine.ok(&["rm", "c1"])?;
        Ok(())
    })
}

#[test]
fn templates_show_what_scripts_ask_for() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&[
            "run",
            "-d",
            "--name",
            "c1",
            "-p",
            "127.0.0.1::80",
            "-e",
            "A=1",
            "-l",
            "a.b=x y",
            "-v",
            "/etc:/host:ro",
            &image,
            "sleep",
            "600",
        ])?;
        let port = engine.ok(&["port", "c1", "80"])?;
        let port = port.rsplit(':').next().context("no port")?.to_owned();
        for (template, wanted) in [
            (
                "{{.Name}} {{.State.Status}} {{.State.ExitCode}}",
                "/c1 running 0",
            ),
            ("{{index .Config.Labels \"a.b\"}}", "x y"),
            ("{{json .Config.Cmd}}", "[\"sleep\",\"600\"]"),
            (
                "{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}",
                &port,
            ),
            (
                "{{range .Mounts}}{{.Type}} {{.Source}} {{.Destination}} {{.RW}}{{end}}",
                "bind /etc /host false",
            ),
            (
                "{{if .State.Running}}{{upper \"up\"}}{{else}}down{{end}}",
                "UP",
            ),
            ("{{with .HostConfig}}{{.NetworkMode}}{{end}}", "bridge"),
            ("{{printf \"%s-%d\" .Name .RestartCount}}", "/c1-0"),
            (
                "{{range $i, $e := .Config.Cmd}}{{if $i}},{{end}}{{$e}}{{end}}",
                "sleep,600",
            ),
            ("{{and .State.Running (not .State.Paused)}}", "true"),
            (
                "{{len .Config.Cmd}} {{eq .State.Status \"running\" \"paused\"}}",
                "2 true",
            ),
            ("{{join .Config.Cmd \" \"}}", "sleep 600"),
            ("{{.GraphDriver.Name}}", "overlay2"),
        ] {
            shows(engine, &["inspect", "-f", template, "c1"], wanted)?;
        }
        let address = engine.ok(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "c1"])?;
        let own = engine.ok(&[
            "inspect",
            "-f",
            "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}",
            "c1",
        ])?;
        ensure!(!address.is_empty() && address == own, "{address} {own}");
        shows(
            engine,
            &["ps", "--format", "table {{.Names}}\t{{.State}}"],
            "NAMES     STATE\nc1        running",
        )?;
        shows(engine, &["ps", "--format", "{{.Label \"a.b\"}}"], "x y")?;
        let refused = engine.gantry(&["inspect", "--type", "image", "c1"])?;
        refused.expect_code(1)?;
        for command in ["version", "info"] {
            let json = engine.ok(&[command, "--format", "{{json .}}"])?;
            serde_json::from_str::<serde_json::Value>(&json).context(command)?;
        }
        engine.ok(&["rm", "-f", "c1"])?;
        Ok(())
    })
}
