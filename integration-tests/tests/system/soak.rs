//! Many runs on one engine: no hang, no failure, no leak.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use gantry_integration_tests::audit;
use gantry_integration_tests::engine::with_engine;

fn run_many(count: usize) -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let services = engine.service_processes()?;
        for _ in 0..10 {
            engine.ok(&["run", "--rm", &image, "true"])?;
        }
        let files = audit::open_files(&services);
        let started = Instant::now();
        for number in 0..count {
            // Codes, so that a lost exit status is seen, and output, so that a
            // lost byte is.
            let code = number % 256;
            let outcome = engine
                .gantry(&[
                    "run",
                    "--rm",
                    &image,
                    "sh",
                    "-c",
                    &format!("echo {number}; exit {code}"),
                ])
                .with_context(|| format!("run {number}"))?;
            ensure!(
                outcome.code == i32::try_from(code)? && outcome.stdout == format!("{number}\n"),
                "run {number}: {outcome}"
            );
        }
        let each = started.elapsed() / u32::try_from(count)?;
        eprintln!("{count} runs, {each:?} each");
        let after = audit::open_files(&services);
        for (pid, before) in files {
            let now = after
                .get(&pid)
                .copied()
                .context("a service was restarted")?;
            ensure!(
                now <= before + 8,
                "{} has {now} files open, {before} before the runs",
                audit::command_of(pid)
            );
        }
        engine.audit_containers()
    })
}

#[test]
fn two_hundred_runs_end_without_a_hang_a_failure_or_a_leak() -> Result<()> {
    run_many(200)
}

#[test]
#[ignore = "takes minutes: make soak"]
fn soak_of_two_thousand_runs() -> Result<()> {
    run_many(2_000)
}
