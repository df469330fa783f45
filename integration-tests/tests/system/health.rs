//! Health checks of real containers.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use gantry_integration_tests::command::DEADLINE;
use gantry_integration_tests::engine::{Engine, with_engine};
use rustix::process::Signal;

fn status(engine: &Engine, container: &str) -> Result<String> {
    engine.ok(&["inspect", "-f", "{{.State.Health.Status}}", container])
}

/// Waits until a template shows something.
fn until_shows(engine: &Engine, container: &str, template: &str, wanted: &str) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    loop {
        let shown = engine.ok(&["inspect", "-f", template, container])?;
        if shown == wanted {
            return Ok(());
        }
        if Instant::now() > end {
            bail!("{container}: {template} is {shown}, and never {wanted}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn until(engine: &Engine, container: &str, wanted: &str) -> Result<()> {
    until_shows(engine, container, "{{.State.Health.Status}}", wanted)
}

#[test]
fn a_container_is_starting_then_healthy_then_unhealthy_as_its_check_says() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&[
            "run",
            "-d",
            "--name",
            "c1",
            "--health-cmd",
            "echo looked; test -e /well",
            "--health-interval",
            "100ms",
            "--health-retries",
            "2",
            "--health-start-period",
            "1h",
            "--health-start-interval",
            "50ms",
            &image,
            "sleep",
            "600",
        ])?;
        until_shows(engine, "c1", "{{len .State.Health.Log}}", "5")?;
        ensure!(
            status(engine, "c1")? == "starting",
            "failures do not count at first"
        );
        let shown = engine.ok(&["ps", "--format", "{{.Status}}"])?;
        ensure!(shown.ends_with("(health: starting)"), "{shown}");
        engine.ok(&["exec", "c1", "touch", "/well"])?;
        until(engine, "c1", "healthy")?;
        let shown = engine.ok(&[
            "ps",
            "--filter",
            "health=healthy",
            "--format",
            "{{.Status}}",
        ])?;
        ensure!(shown.ends_with("(healthy)"), "{shown}");
        ensure!(
            engine
                .ok(&["ps", "-q", "--filter", "health=unhealthy"])?
                .is_empty()
        );
        engine.ok(&["exec", "c1", "rm", "/well"])?;
        until(engine, "c1", "unhealthy")?;
        let log = engine.ok(&[
            "inspect", "-f",
            "{{len .State.Health.Log}} {{with index .State.Health.Log 4}}{{.ExitCode}} {{.Output}}{{end}}",
            "c1",
        ])?;
        ensure!(log == "5 1 looked", "{log}");
        let events = engine.ok(&[
            "events",
            "--since",
            "1h",
            "--until",
            "0s",
            "--filter",
            "event=health_status",
            "--format",
            "{{.Action}}",
        ])?;
        ensure!(
            events == "health_status: healthy\nhealth_status: unhealthy",
            "{events}"
        );
        engine.ok(&["rm", "-f", "c1"])?;
        engine.audit_containers()
    })
}

#[test]
fn a_check_that_does_not_end_is_killed_and_never_piles_up() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&[
            "run",
            "-d",
            "--name",
            "c1",
            "--health-cmd",
            "trap '' TERM; echo begun; sleep 60",
            "--health-interval",
            "50ms",
            "--health-timeout",
            "200ms",
            "--health-retries",
            "3",
            &image,
            "sleep",
            "600",
        ])?;
        until(engine, "c1", "unhealthy")?;
        let log = engine.ok(&[
            "inspect",
            "-f",
            "{{with index .State.Health.Log 0}}{{.ExitCode}} {{.Output}}{{end}}",
            "c1",
        ])?;
        ensure!(
            log == "-1 Health check exceeded timeout (200ms): begun",
            "{log}"
        );
        // That of the present one at most: what an earlier one started went with it.
        let script = "ps | grep -c '[s]leep 60$'";
        let sleeps = engine.gantry(&["exec", "c1", "sh", "-c", script])?.stdout;
        ensure!(
            sleeps.trim().parse::<u32>()? <= 1,
            "{sleeps} checks at once"
        );
        // Nothing is checked while it is paused.
        engine.ok(&["pause", "c1"])?;
        let streak = "{{.State.Health.FailingStreak}}";
        let before = engine.ok(&["inspect", "-f", streak, "c1"])?;
        std::thread::sleep(Duration::from_millis(600));
        ensure!(engine.ok(&["inspect", "-f", streak, "c1"])? == before);
        engine.ok(&["unpause", "c1"])?;
        let later = (before.parse::<u32>()? + 1).to_string();
        until_shows(engine, "c1", streak, &later)?;
        engine.ok(&["rm", "-f", "c1"])?;
        engine.audit_containers()
    })
}

#[test]
fn checks_go_on_when_the_gateway_was_killed() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&[
            "run",
            "-d",
            "--name",
            "c1",
            "--health-cmd",
            "test ! -e /ill",
            "--health-interval",
            "100ms",
            "--health-retries",
            "1",
            &image,
            "sleep",
            "600",
        ])?;
        until(engine, "c1", "healthy")?;
        engine.kill_service("gateway", Signal::KILL)?;
        ensure!(
            status(engine, "c1")? == "healthy",
            "what was known is known"
        );
        engine.ok(&["exec", "c1", "touch", "/ill"])?;
        until(engine, "c1", "unhealthy")?;
        engine.ok(&["rm", "-f", "c1"])?;
        engine.audit_containers()
    })
}

#[test]
fn an_unhealthy_container_is_restarted_stopped_or_killed_as_wanted() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let run = |engine: &Engine, action: &str| {
            engine.ok(&[
                "run",
                "-d",
                "--name",
                action,
                "--on-unhealthy",
                action,
                "--health-cmd",
                "test ! -e /ill",
                "--health-interval",
                "100ms",
                "--health-retries",
                "1",
                "--stop-timeout",
                "0",
                &image,
                "sleep",
                "600",
            ])
        };
        for action in ["none", "restart", "stop", "kill"] {
            run(engine, action)?;
            until(engine, action, "healthy")?;
        }
        let started = engine.ok(&["inspect", "-f", "{{.State.StartedAt}}", "restart"])?;
        for action in ["none", "restart", "stop", "kill"] {
            engine.ok(&["exec", action, "touch", "/ill"])?;
        }
        until(engine, "none", "unhealthy")?;
        until_shows(engine, "stop", "{{.State.Status}}", "exited")?;
        until_shows(
            engine,
            "kill",
            "{{.State.Status}} {{.State.ExitCode}}",
            "exited 137",
        )?;
        let end = Instant::now() + DEADLINE;
        while engine.ok(&["inspect", "-f", "{{.State.StartedAt}}", "restart"])? == started {
            ensure!(Instant::now() < end, "it is never restarted");
            std::thread::sleep(Duration::from_millis(50));
        }
        ensure!(engine.ok(&["inspect", "-f", "{{.State.Status}}", "none"])? == "running");
        engine.ok(&["rm", "-f", "none", "restart", "stop", "kill"])?;
        engine.audit_containers()
    })
}

#[test]
fn an_images_check_is_used_changed_and_left_out() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&["run", "--name", "base", &image, "true"])?;
        engine.ok(&[
            "commit",
            "-c",
            "HEALTHCHECK --interval=100ms --retries=1 CMD test ! -e /ill",
            "base",
            "checked",
        ])?;
        engine.ok(&["run", "-d", "--name", "own", "checked", "sleep", "600"])?;
        until(engine, "own", "healthy")?;
        engine.ok(&[
            "run",
            "-d",
            "--name",
            "other",
            "--health-cmd",
            "false",
            "checked",
            "sleep",
            "600",
        ])?;
        until(engine, "other", "unhealthy")?;
        engine.ok(&[
            "run",
            "-d",
            "--name",
            "none",
            "--no-healthcheck",
            "checked",
            "sleep",
            "600",
        ])?;
        let shown = engine.ok(&["inspect", "-f", "{{json .State.Health}}", "none"]);
        ensure!(shown.is_err() || shown.is_ok_and(|shown| shown == "null"));
        let names = engine.ok(&["ps", "--filter", "health=none", "--format", "{{.Names}}"])?;
        ensure!(names == "none", "{names}");
        for wrong in [
            &["--no-healthcheck", "--health-cmd", "true"][..],
            &["--health-interval", "1us", "--health-cmd", "true"],
            &["--health-retries", "-1"],
        ] {
            let refused = engine.gantry(&[&["create"], wrong, &[&image, "true"]].concat())?;
            refused.expect_code(125).or_else(|_| {
                engine
                    .gantry(&[&["create"], wrong, &[&image, "true"]].concat())?
                    .expect_code(1)
            })?;
        }
        engine.ok(&["rm", "-f", "own", "other", "none", "base"])?;
        engine.audit_containers()
    })
}
