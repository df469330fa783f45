//! Many runs on one engine: no hang, no failure, no leak.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use gantry_integration_tests::engine::{Engine, with_engine};
use gantry_integration_tests::footprint::{Footprint, Slack};

fn run_many(count: usize) -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let services = engine.service_processes()?;
        for _ in 0..10 {
            engine.ok(&["run", "--rm", &image, "true"])?;
        }
        let before = Footprint::of(&services, engine.root())?;
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
        before.holds(&Footprint::of(&services, engine.root())?, Slack::default())?;
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

/// Creates, starts and removes containers, every other one of which cannot start.
fn live_and_die(engine: &Engine, image: &str, worker: usize, count: usize) -> Result<()> {
    for number in 0..count {
        let name = format!("w{worker}-{number}");
        let program = if number % 2 == 0 { "true" } else { "/no/such" };
        engine.ok(&["create", "--name", &name, image, program])?;
        let outcome = engine.gantry(&["start", "-a", &name])?;
        let wanted = if number % 2 == 0 { 0 } else { 127 };
        ensure!(outcome.code == wanted, "{name}: {outcome}");
        engine.ok(&["rm", "-f", &name])?;
    }
    Ok(())
}

/// Runs programs in a container, every other one of which fails in its own way.
fn execute(engine: &Engine, container: &str, worker: usize, count: usize) -> Result<()> {
    let table: [(&[&str], i32, &str); 6] = [
        (&["true"], 0, ""),
        (&["false"], 1, ""),
        (&["echo", "said"], 0, "said\n"),
        (&["/no/such"], 127, ""),
        (&["sh", "-c", "cat /etc/hostname >/dev/null"], 0, ""),
        (&["sh", "-c", "kill -9 $$"], 137, ""),
    ];
    for number in 0..count {
        let (program, code, said) = table[(number + worker) % table.len()];
        let mut arguments = vec!["exec", container];
        arguments.extend(program);
        let outcome = engine.gantry(&arguments)?;
        ensure!(
            outcome.code == code && outcome.stdout == said,
            "exec {number}: {outcome}"
        );
    }
    Ok(())
}

/// Lives and executions from several callers at a time; nothing may grow.
fn lives_and_executions(lives: usize, executions: usize) -> Result<()> {
    const WORKERS: usize = 4;
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&["run", "-d", "--name", "box", &image, "sleep", "100000"])?;
        let engine = &*engine;
        let round = |lives: usize, executions: usize| -> Result<()> {
            std::thread::scope(|scope| {
                let workers: Vec<_> = (0..WORKERS)
                    .map(|worker| {
                        let image = image.as_str();
                        scope.spawn(move || {
                            live_and_die(engine, image, worker, lives / WORKERS)?;
                            execute(engine, "box", worker, executions / WORKERS)
                        })
                    })
                    .collect();
                for worker in workers {
                    match worker.join() {
                        Ok(outcome) => outcome?,
                        Err(panic) => std::panic::resume_unwind(panic),
                    }
                }
                Ok(())
            })
        };
        // Pools and caches fill first.
        round(lives / 10, executions / 10)?;
        let mut processes = engine.service_processes()?;
        processes.extend(engine.shims()?);
        let before = Footprint::of(&processes, engine.root())?;
        round(lives, executions)?;
        let after = Footprint::of(&processes, engine.root())?;
        eprintln!("before\n{before}\nafter {lives} lives and {executions} executions\n{after}");
        before.holds(&after, Slack::default())?;
        engine.ok(&["rm", "-f", "box"])?;
        engine.audit_containers()
    })
}

#[test]
fn nothing_grows_with_lives_and_executions_half_of_which_fail() -> Result<()> {
    lives_and_executions(80, 400)
}

#[test]
#[ignore = "takes an hour: make soak"]
fn soak_of_ten_thousand_lives_and_a_hundred_thousand_executions() -> Result<()> {
    lives_and_executions(10_000, 100_000)
}
