//! Many runs on one engine: no hang, no failure, no leak.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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

/// Removed endpoints may wait for the kernel, up to a bound that is far from the
/// 1,023 ports of a bridge: `BACKLOG_MAX` of the network service and one batch.
const PORTS_UNDER_CHURN: usize = 320;

/// Clients that each run one container after the other with a network of its
/// own. Returns how many ran, and the most ports that the bridge had.
fn churn(engine: &Engine, image: &str, clients: usize, time: Duration) -> Result<(usize, usize)> {
    let end = Instant::now() + time;
    let ended = AtomicBool::new(false);
    let ports = || -> usize {
        let ports = format!("/sys/class/net/{}/brif", engine.marks().bridge);
        std::fs::read_dir(ports).map_or(0, Iterator::count)
    };
    let client = |number: usize| -> Result<usize> {
        let mut count = 0;
        while Instant::now() < end {
            let said = format!("{number}-{count}");
            let outcome = engine.gantry(&["run", "--rm", image, "echo", &said])?;
            ensure!(
                outcome.code == 0 && outcome.stdout.trim_end() == said,
                "run {said}: {outcome}"
            );
            count += 1;
        }
        Ok(count)
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|number| scope.spawn(move || client(number)))
            .collect();
        let most = scope.spawn(|| {
            let mut most = 0;
            while !ended.load(Ordering::Relaxed) {
                most = most.max(ports());
                std::thread::sleep(Duration::from_millis(20));
            }
            most
        });
        let outcomes: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
        ended.store(true, Ordering::Relaxed);
        let most = most
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let mut count = 0;
        for outcome in outcomes {
            count += outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok((count, most))
    })
}

/// Nothing fails and nothing grows while containers with networks come and go.
fn networks_come_and_go(clients: usize, time: Duration) -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let services = engine.service_processes()?;
        // Pools, arenas and caches fill first.
        churn(engine, &image, clients, time / 5)?;
        engine.audit_containers()?;
        let before = Footprint::of(&services, engine.root())?;
        let (count, most) = churn(engine, &image, clients, time)?;
        engine.audit_containers()?;
        let after = Footprint::of(&services, engine.root())?;
        eprintln!(
            "{count} runs by {clients} clients in {time:?}, at most {most} ports\nbefore\n{before}\nafter\n{after}"
        );
        ensure!(most <= PORTS_UNDER_CHURN, "the bridge had {most} ports");
        before.holds(&after, Slack::default())
    })
}

#[test]
fn clients_that_run_containers_all_the_time_leave_no_endpoint_behind() -> Result<()> {
    networks_come_and_go(12, Duration::from_secs(5))
}

#[test]
#[ignore = "takes six minutes: make soak"]
fn soak_of_sixteen_clients_that_run_containers_for_five_minutes() -> Result<()> {
    networks_come_and_go(16, Duration::from_secs(300))
}
