//! `make bench`: Gantry beside Docker and Podman, where they are installed, on
//! the same machine, in the same run, taking turns.
//!
//! The whole benchmark lives in network and mount namespaces of its own, so
//! that the peers' bridges, firewall rules and mounts end with it and the
//! host's are left alone. What it prints are medians of wall-clock times of the
//! commands a person would type, and their ratios.
#![forbid(unsafe_code)]

mod archives;
mod commits;
mod contestant;
mod floor;
mod large_image;
mod memory;
mod oci;
mod statistics;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use gantry_integration_tests::registry::{ForeignRegistry, push};
use gantry_integration_tests::{command, fixture};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use contestant::Contestant;
use statistics::Table;

const USAGE: &str = "usage: bench --bin-dir DIR [--rounds N] [--pulls N] [--only NAME[,NAME]]
  --bin-dir DIR   where Gantry's binaries are
  --rounds N      runs of each short command (20)
  --pulls N       pulls, saves and loads of the large image (2); 0: none
  --only NAMES    contestants: gantry, docker, podman (all that are installed)";

struct Arguments {
    bin_dir: PathBuf,
    rounds: usize,
    pulls: usize,
    only: Option<Vec<String>>,
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| bench(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<Arguments> {
    let mut arguments = Arguments {
        bin_dir: PathBuf::new(),
        rounds: 20,
        pulls: 2,
        only: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().context(USAGE)?;
        match word.as_str() {
            "--bin-dir" => arguments.bin_dir = std::path::absolute(value)?,
            "--rounds" => arguments.rounds = value.parse().context(USAGE)?,
            "--pulls" => arguments.pulls = value.parse().context(USAGE)?,
            "--only" => arguments.only = Some(value.split(',').map(str::to_owned).collect()),
            _ => bail!(USAGE),
        }
    }
    ensure!(arguments.bin_dir.join("gantry").is_file(), USAGE);
    Ok(arguments)
}

fn bench(arguments: &Arguments) -> Result<()> {
    // Before any thread starts: each thread has its own namespaces.
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("namespaces for the benchmark: it needs root")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    command::run(
        Command::new("ip").args(["link", "set", "lo", "up"]),
        b"",
        Duration::from_secs(10),
    )
    .context("ip: install the Debian package iproute2")?
    .expect_code(0)?;

    let registry = ForeignRegistry::start()?;
    push(&registry.address, "busybox", "latest", &fixture::busybox()?)?;
    let small = format!("{}/busybox:latest", registry.address);

    let mut contestants = Vec::new();
    for name in ["gantry", "docker", "podman"] {
        let wanted = arguments
            .only
            .as_ref()
            .is_none_or(|only| only.iter().any(|wanted| wanted == name));
        if !wanted {
            continue;
        }
        match Contestant::start(name, &arguments.bin_dir)? {
            Some(contestant) => contestants.push(contestant),
            None => eprintln!("bench: {name} is not installed (`make peers` installs it)"),
        }
    }
    let names: Vec<&str> = contestants.iter().map(Contestant::name).collect();
    let mut table = Table::new(&names);

    for contestant in &contestants {
        contestant.run(&["pull", "--quiet", &small])?;
    }
    memory::services(&contestants, &mut table)?;
    short_commands(&contestants, &small, arguments.rounds, &mut table)?;
    memory::idle_containers(&contestants, &small, &mut table)?;
    if arguments.pulls > 0 {
        commits::compare(&contestants, &small, 3, &mut table)?;
        pulls(&contestants, &registry, arguments.pulls, &mut table)?;
    }
    for contestant in contestants {
        contestant.stop()?;
    }
    println!("{table}");
    if arguments.only.is_none() {
        println!("{}", oci::compare(&arguments.bin_dir, arguments.rounds)?);
    }
    Ok(())
}

fn short_commands(
    contestants: &[Contestant],
    image: &str,
    rounds: usize,
    table: &mut Table,
) -> Result<()> {
    for contestant in contestants {
        contestant.run(&["run", "-d", "--name", "resident", image, "sleep", "3600"])?;
    }
    for (label, words) in [
        ("run --rm true, bridge", vec!["run", "--rm", image, "true"]),
        (
            "run --rm true, no network",
            vec!["run", "--rm", "--network", "none", image, "true"],
        ),
        ("exec true", vec!["exec", "resident", "true"]),
        ("ps", vec!["ps"]),
    ] {
        let mut samples = vec![Vec::new(); contestants.len()];
        for round in 0..=rounds {
            for (contestant, samples) in contestants.iter().zip(&mut samples) {
                let took = contestant.run(&words)?.took;
                // The first of each fills caches.
                if round > 0 {
                    samples.push(took);
                }
            }
        }
        table.times(label, &samples);
    }
    for contestant in contestants {
        contestant.run(&["rm", "-f", "resident"])?;
    }
    Ok(())
}

fn pulls(
    contestants: &[Contestant],
    registry: &ForeignRegistry,
    rounds: usize,
    table: &mut Table,
) -> Result<()> {
    let large = large_image::load()?;
    eprintln!("bench: pushing the large image");
    push(&registry.address, "large", "latest", &large)?;
    let sibling = large_image::sibling(&large)?;
    push(&registry.address, "large", "sibling", &sibling)?;
    let floor = floor::measure(&large)?;
    drop((large, sibling));
    let reference = format!("{}/large:latest", registry.address);
    let sibling = format!("{}/large:sibling", registry.address);
    let mut samples = vec![Vec::new(); contestants.len()];
    let mut shared = samples.clone();
    for _ in 0..rounds {
        for ((contestant, samples), shared) in contestants.iter().zip(&mut samples).zip(&mut shared)
        {
            rustix::fs::sync();
            eprintln!("bench: {} pulls", contestant.name());
            samples.push(contestant.run(&["pull", "--quiet", &reference])?.took);
            // What the first has begun to write is not the second's to wait for.
            rustix::fs::sync();
            shared.push(contestant.run(&["pull", "--quiet", &sibling])?.took);
            contestant.run(&["rmi", &reference, &sibling])?;
        }
    }
    table.times("pull, 525 MB in 4 gzip layers", &samples);
    table.note(&format!(
        "unavoidable in it: inflate {:.2} s, hash {:.2} s, write {:.2} s; together {:.2} s",
        floor.inflate.as_secs_f64(),
        floor.hash.as_secs_f64(),
        floor.write.as_secs_f64(),
        floor.sum().as_secs_f64(),
    ));
    table.times("pull of an image with the same layers", &shared);
    memory::peaks(contestants, table)?;
    archives::compare(contestants, &reference, rounds, table)
}
