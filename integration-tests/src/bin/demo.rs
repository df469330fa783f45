//! `make demo`: Gantry from an image's first byte to a container's last trace,
//! in one minute, on a private engine, without a network or a package.
#![forbid(unsafe_code)]

use std::io::{BufRead, BufReader};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use gantry_integration_tests::command::Outcome;
use gantry_integration_tests::engine::Engine;
use gantry_integration_tests::{fixture, grpc, http, registry};

fn main() -> ExitCode {
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let started = Instant::now();
    step("An engine of its own: private directory, bridge and firewall table");
    let engine = Engine::start()?;
    println!(
        "    up in {:.0?}: {} services below {}",
        started.elapsed(),
        engine.service_processes()?.len() - 1,
        engine.root().display()
    );

    step("An image of one static program goes into Gantry's own registry, over HTTP");
    let address = grpc::registry_address(&engine.socket("gateway"))?;
    let guest = fixture::guest()?;
    registry::push(&address, "demo/web", "latest", &guest)?;
    println!("    pushed {} as {address}/demo/web", guest.manifest.digest);
    // The engine itself reaches its registry on a Unix socket, under this name.
    let web = "gantry.localhost/demo/web".to_owned();
    show(&engine, &["pull", &web])?;

    step("It runs on the bridge, with a published port");
    let container = show(
        &engine,
        &[
            "run",
            "-d",
            "--name",
            "web",
            "-p",
            "127.0.0.1::80",
            &web,
            "web",
            "80",
        ],
    )?;
    wait_for_line(&engine, "web", "listening")?;
    let ports = engine.ok(&["ps", "--format", "{{.Ports}}"])?;
    let published = ports.split("->").next().context("no published port")?;
    let page = http::get(&format!("http://{published}/"))?;
    println!("    $ curl http://{published}/\n{}", indented(&page.text()));
    ensure!(
        page.text().contains(&container.trim()[..12]),
        "the wrong page"
    );

    step("What runs, what it said, and where the time of its start went");
    show(&engine, &["ps"])?;
    show(&engine, &["logs", "web"])?;
    show(&engine, &["trace", "web"])?;

    step("A container for one command, and its exit code");
    match fixture::busybox() {
        Ok(image) => {
            registry::push(&address, "demo/busybox", "latest", &image)?;
            let busybox = "gantry.localhost/demo/busybox";
            show(&engine, &["pull", "--quiet", busybox])?;
            let outcome = engine.gantry(&[
                "run",
                "--rm",
                busybox,
                "sh",
                "-c",
                "echo I am $(id -un), pid $$, on $(uname -sr); exit 7",
            ])?;
            print_outcome(&outcome);
            ensure!(outcome.code == 7, "exit code {}", outcome.code);
            println!("    exit code 7, in {:.0?}", outcome.took);
        }
        Err(_) => {
            println!("    (this machine has no static busybox: the workspace's own program it is)");
            let outcome = engine.gantry(&["run", "--rm", &web, "exit", "7"])?;
            print_outcome(&outcome);
            ensure!(outcome.code == 7, "exit code {}", outcome.code);
            println!("    exit code 7, in {:.0?}", outcome.took);
        }
    }

    step("An error says what is wrong");
    let outcome = engine.gantry(&["run", "--rm", &web.replace("web", "ghost")])?;
    print_outcome(&outcome);
    ensure!(outcome.code == 125, "exit code {}", outcome.code);

    step("Stopped and removed");
    show(&engine, &["stop", "--time", "1", "web"])?;
    show(&engine, &["rm", "web"])?;
    show(&engine, &["ps", "--all"])?;

    step("Nothing is left");
    let bridge = engine.marks().bridge.clone();
    engine.finish()?;
    println!(
        "    no process, mount, cgroup, network namespace, interface ({bridge}), firewall table or file"
    );
    println!("\nDone in {:.1?}.", started.elapsed());
    Ok(())
}

fn step(what: &str) {
    println!("\n==> {what}");
}

/// Runs a command that must succeed, and shows it with what it said.
fn show(engine: &Engine, arguments: &[&str]) -> Result<String> {
    let outcome = engine.gantry(arguments)?;
    print_outcome(&outcome);
    Ok(outcome.expect_code(0)?.stdout)
}

fn print_outcome(outcome: &Outcome) {
    // Where the private engine is, is of no interest to a reader.
    let line: Vec<&str> = outcome.line.splitn(4, ' ').collect();
    println!("    $ gantry {}", line.last().unwrap_or(&""));
    for text in [&outcome.stdout, &outcome.stderr] {
        if !text.is_empty() {
            println!("{}", indented(text));
        }
    }
}

fn indented(text: &str) -> String {
    text.trim_end()
        .lines()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Waits until the container's log has a line with `word`.
fn wait_for_line(engine: &Engine, container: &str, word: &str) -> Result<()> {
    let mut follow = engine
        .command(&["logs", "--follow", container])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = follow.stdout.take().context("no output")?;
    let end = Instant::now() + Duration::from_secs(10);
    let found = BufReader::new(output)
        .lines()
        .map_while(Result::ok)
        .take_while(|_| Instant::now() < end)
        .any(|line| line.contains(word));
    follow.kill()?;
    follow.wait()?;
    ensure!(found, "{container} never said {word:?}");
    Ok(())
}
