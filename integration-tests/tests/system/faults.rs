//! A container whose shim fails: it says so, it can be removed, and no other one
//! notices.

use anyhow::{Context as _, Result, ensure};
use gantry_integration_tests::audit::command_of;
use gantry_integration_tests::engine::{Engine, send, with_engine};
use rustix::process::Signal;

/// The process of a container's shim.
pub(crate) fn shim_of(engine: &Engine, id: &str) -> Result<i32> {
    engine
        .shims()?
        .into_iter()
        .find(|&pid| command_of(pid).contains(id))
        .with_context(|| format!("no shim of {id}"))
}

#[test]
fn a_shim_that_dies_ends_its_container_with_the_cause() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&["run", "-d", "--name", "well", &image, "sleep", "600"])?;
        let id = engine.ok(&["run", "-d", "--name", "sick", &image, "sleep", "600"])?;
        send(shim_of(engine, &id)?, Signal::KILL)?;
        let code = engine.ok(&["wait", "sick"])?;
        ensure!(code != "0", "a lost exit status is no success");
        let state = "{{.State.Status}} {{.State.Error}}";
        let state = engine.ok(&["inspect", "--format", state, "sick"])?;
        ensure!(
            state.starts_with("exited") && state.contains("shim died"),
            "{state}"
        );
        ensure!(engine.ok(&["exec", "well", "echo", "fine"])? == "fine");
        // It can be started again.
        engine.ok(&["start", "sick"])?;
        ensure!(engine.ok(&["exec", "sick", "echo", "back"])? == "back");
        engine.ok(&["rm", "-f", "sick", "well"])?;
        engine.audit_containers()
    })
}

#[test]
fn a_shim_that_stands_still_is_marked_and_removed_by_force() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&["run", "-d", "--name", "well", &image, "sleep", "600"])?;
        let id = engine.ok(&["run", "-d", "--name", "sick", &image, "sleep", "600"])?;
        let shim = shim_of(engine, &id)?;
        send(shim, Signal::STOP)?;
        let refused = engine.gantry(&["exec", "sick", "true"])?;
        ensure!(
            refused.code == 125 || refused.code == 126 || refused.code == 1,
            "{refused}"
        );
        ensure!(refused.stderr.contains("is stopped"), "{refused}");
        let listed = engine.ok(&["ps", "--format", "{{.Names}}: {{.Status}}"])?;
        let line = listed.lines().find(|line| line.starts_with("sick: "));
        let line = line.with_context(|| format!("it is listed: {listed}"))?;
        ensure!(line.contains("Up") && line.contains("stopped"), "{line}");
        ensure!(engine.ok(&["exec", "well", "echo", "fine"])? == "fine");
        // It is well again as soon as it goes on.
        send(shim, Signal::CONT)?;
        ensure!(engine.ok(&["exec", "sick", "echo", "back"])? == "back");
        send(shim, Signal::STOP)?;
        engine.ok(&["rm", "-f", "sick"])?;
        ensure!(engine.ok(&["ps", "-q"])?.lines().count() == 1);
        engine.ok(&["rm", "-f", "well"])?;
        engine.audit_containers()
    })
}
