//! Power cuts: an engine on a disk that records its writes works for a while;
//! then, for points in time chosen at random, a new engine starts on what a power
//! cut at that point would have left. It must have all that was acknowledged
//! before the cut, nothing that was removed before it, and no leftovers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use gantry_integration_tests::GUEST;
use gantry_integration_tests::engine::{Engine, Options};
use gantry_integration_tests::image::Builder;
use gantry_integration_tests::recorded_disk::{Format, RecordedDisk, boot_wrapper};
use gantry_integration_tests::tar::Member;
use gantry_integration_tests::{grpc, http, registry};
use hyper::Method;

/// How long a started engine may take to remove what a cut interrupted.
const SETTLE_DEADLINE: Duration = Duration::from_secs(30);

/// The image that containers are made from.
const BASE: &str = "tag:base";

/// What an object is called in the records of the test: "container 3", "volume v1".
type Name = String;
/// How an object looks: its name, an image id. Absent: it does not exist.
type State = Option<String>;

/// A change of one object. Those of one object follow each other.
#[derive(Clone, Debug)]
struct Change {
    /// The disk's position when the command was given.
    began: usize,
    /// The disk's position when it was acknowledged.
    acknowledged: usize,
    after: State,
}

/// What was done to each object, in order.
#[derive(Debug, Default)]
struct Ledger(Mutex<BTreeMap<Name, Vec<Change>>>);

impl Ledger {
    fn record(&self, name: &str, change: Change) {
        let mut objects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        objects.entry(name.to_owned()).or_default().push(change);
    }

    /// The states that each object may have after a cut at `position`.
    fn at(&self, position: usize) -> BTreeMap<Name, Vec<State>> {
        let objects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        objects
            .iter()
            .map(|(name, changes)| {
                let settled = changes.partition_point(|change| change.acknowledged <= position);
                let last = settled.checked_sub(1).and_then(|at| changes.get(at));
                let mut states = vec![last.and_then(|change| change.after.clone())];
                // The command under way at the cut may or may not have happened.
                if let Some(next) = changes.get(settled)
                    && next.began <= position
                {
                    states.push(next.after.clone());
                }
                (name.clone(), states)
            })
            .collect()
    }
}

/// The engine at work, and its disk.
struct Work<'a> {
    engine: &'a Engine,
    disk: &'a RecordedDisk,
    ledger: &'a Ledger,
    image: &'a str,
}

impl Work<'_> {
    /// Does `action`, after which the object `name` is in the state that it answers.
    fn change(&self, name: &str, action: impl FnOnce() -> Result<State>) -> Result<()> {
        let began = self.disk.position();
        let after = action().with_context(|| name.to_owned())?;
        let change = Change {
            began,
            acknowledged: self.disk.position(),
            after,
        };
        self.ledger.record(name, change);
        Ok(())
    }

    /// Runs `gantry ARGUMENTS`, after which the object `name` is in the state `after`.
    fn gantry(&self, name: &str, arguments: &[&str], after: Option<&str>) -> Result<()> {
        self.change(name, || {
            self.engine.ok(arguments)?;
            Ok(after.map(str::to_owned))
        })
    }

    /// Lives of containers: created, renamed, started, updated, removed.
    fn containers(&self, worker: usize, rounds: usize) -> Result<()> {
        for round in 0..rounds {
            let key = format!("{worker}-{round}");
            let object = format!("container {key}");
            let label = format!("object={key}");
            let (first, second) = (format!("a{key}"), format!("b{key}"));
            let create = ["--label", &label, "--name", &first, self.image];
            match round % 3 {
                0 => {
                    let words = [&["create"], &create[..], &["true"]].concat();
                    self.gantry(&object, &words, Some(&first))?;
                    self.gantry(&object, &["rename", &first, &second], Some(&second))?;
                    self.gantry(&object, &["start", &second], Some(&second))?;
                    self.gantry(
                        &object,
                        &["update", "--restart", "on-failure", &second],
                        Some(&second),
                    )?;
                }
                1 => {
                    let words = [&["run", "-d"], &create[..], &["wait"]].concat();
                    self.gantry(&object, &words, Some(&first))?;
                    self.gantry(&object, &["stop", "-t", "0", &first], Some(&first))?;
                }
                _ => {
                    let words = [&["run", "--rm"], &create[..], &["true"]].concat();
                    self.gantry(&object, &words, None)?;
                    continue;
                }
            }
            // A part of them is left for the cut.
            if round % 2 == 0 {
                let name = if round % 3 == 0 { &second } else { &first };
                self.gantry(&object, &["rm", "-f", name], None)?;
            }
        }
        Ok(())
    }

    /// Tags, images by commit, and volumes.
    fn content(&self, rounds: usize) -> Result<()> {
        for round in 0..rounds {
            let tag = format!("tag:{round}");
            let id = self
                .engine
                .ok(&["images", "-q", "--no-trunc", self.image])?;
            let object = format!("image {tag}");
            self.gantry(&object, &["tag", self.image, &tag], Some(&id))?;
            let volume = format!("v{round}");
            let kept = format!("volume {volume}");
            self.gantry(&kept, &["volume", "create", &volume], Some(&volume))?;
            self.change(&format!("image commit:{round}"), || {
                let source = format!("source-{round}");
                let words = ["create", "--name", &source, self.image, "true"];
                self.engine.ok(&words)?;
                let id = self
                    .engine
                    .ok(&["commit", &source, &format!("commit:{round}")])?;
                self.engine.ok(&["rm", &source])?;
                Ok(Some(id))
            })?;
            if round % 2 == 0 {
                self.gantry(&object, &["rmi", &tag], None)?;
                self.gantry(&kept, &["volume", "rm", &volume], None)?;
            }
        }
        Ok(())
    }

    /// Pushes into the engine's registry, over tags that exist too.
    fn pushes(&self, rounds: usize) -> Result<()> {
        let address = grpc::registry_address(&self.engine.socket("registry"))?;
        for round in 0..rounds {
            let tag = format!("t{}", round % 3);
            let image = Builder::default()
                .layer(&[Member::file("note", format!("round {round}"))])
                .build()?;
            self.change(&format!("push {tag}"), || {
                registry::push(&address, "cuts", &tag, &image)?;
                Ok(Some(image.manifest.digest.clone()))
            })?;
        }
        Ok(())
    }
}

/// The states of all objects that a started engine has.
fn observed(engine: &Engine) -> Result<BTreeMap<Name, String>> {
    let mut states = BTreeMap::new();
    let format = r#"{{.Label "object"}} {{.Names}}"#;
    for line in engine.ok(&["ps", "-a", "--format", format])?.lines() {
        let (key, name) = line.split_once(' ').context("a row of ps")?;
        if !key.is_empty() {
            states.insert(format!("container {key}"), name.to_owned());
        }
    }
    let format = "{{.Repository}}:{{.Tag}} {{.ID}}";
    let images = engine.ok(&["images", "--no-trunc", "--format", format])?;
    for line in images.lines() {
        let (tag, id) = line.split_once(' ').context("a row of images")?;
        if tag.starts_with("tag:") || tag.starts_with("commit:") {
            states.insert(format!("image {tag}"), id.to_owned());
        }
    }
    for volume in engine.ok(&["volume", "ls", "-q"])?.lines() {
        states.insert(format!("volume {volume}"), volume.to_owned());
    }
    let address = grpc::registry_address(&engine.socket("registry"))?;
    for tag in ["t0", "t1", "t2"] {
        let url = format!("http://{address}/v2/cuts/manifests/{tag}");
        let accept = [("accept", "application/vnd.oci.image.manifest.v1+json")];
        let answer = http::request(Method::GET, &url, &accept, Bytes::new())?;
        if answer.status == 200 {
            let digest = gantry_integration_tests::image::digest(&answer.body);
            states.insert(format!("push {tag}"), digest);
        }
    }
    Ok(states)
}

/// What differs between the states that are allowed and those of the engine.
fn differences(
    allowed: &BTreeMap<Name, Vec<State>>,
    found: &BTreeMap<Name, String>,
) -> Vec<String> {
    allowed
        .iter()
        .filter_map(|(name, states)| {
            let state = found.get(name).cloned();
            (!states.contains(&state))
                .then(|| format!("{name} is {state:?}, and must be one of {states:?}"))
        })
        .collect()
}

/// Checks the engine that started after a cut.
fn check(engine: &Engine, allowed: &BTreeMap<Name, Vec<State>>) -> Result<()> {
    let end = Instant::now() + SETTLE_DEADLINE;
    loop {
        let found = observed(engine)?;
        let different = differences(allowed, &found);
        if different.is_empty() {
            break;
        }
        ensure!(Instant::now() < end, "{}", different.join("\n"));
        // A container that ends by --rm is removed in the engine's own time.
        std::thread::sleep(Duration::from_millis(50));
    }
    // What was pushed can be pulled, every byte of it.
    let address = grpc::registry_address(&engine.socket("registry"))?;
    for (name, states) in allowed.iter().filter(|(name, _)| name.starts_with("push ")) {
        if !states.contains(&None) {
            let tag = name.trim_start_matches("push ");
            engine.ok(&["pull", "--quiet", &format!("{address}/cuts:{tag}")])?;
        }
    }
    engine.ok(&["system", "check"])?;
    // What was committed or unpacked runs.
    for image in [BASE, "commit:0"] {
        if allowed
            .get(&format!("image {image}"))
            .is_some_and(|states| !states.contains(&None))
        {
            engine.ok(&["run", "--rm", "--network", "none", image, "echo", "it runs"])?;
        }
    }
    Ok(())
}

fn options(parent: &Path, boot: usize) -> Result<Options> {
    Ok(Options {
        parent: Some(parent.to_owned()),
        wrapper: boot_wrapper(parent.parent().context("no directory")?, boot)?,
        // Ready endpoints are not what is tested here, and cost a start each time.
        config: "network.warm_pool = 0\n".to_owned(),
        ..Options::default()
    })
}

/// Works for `rounds` rounds on a disk of that format, then cuts the power at
/// `cuts` points.
fn survives(format: Format, rounds: usize, cuts: usize) -> Result<()> {
    let directory = tempfile::Builder::new()
        .prefix("gt-cuts-")
        .tempdir_in("/tmp")?;
    let target = directory.path().join("m");
    fs::create_dir(&target)?;
    let disk = RecordedDisk::new(format)?;
    let mounted = disk.mount(&target)?;
    let engine = Engine::with(options(&target, 0)?)?;
    let marks = engine.marks().clone();
    let ledger = Ledger::default();
    let base = Builder::default()
        .layer(&[Member::directory("etc"), Member::program("guest", GUEST)])
        .entrypoint(&["/guest"])
        .build()?;
    let installed = engine.install("base", &base)?;
    let first = {
        let work = Work {
            engine: &engine,
            disk: &disk,
            ledger: &ledger,
            image: BASE,
        };
        let id = engine.ok(&["images", "-q", "--no-trunc", &installed])?;
        work.gantry(
            &format!("image {BASE}"),
            &["tag", &installed, BASE],
            Some(&id),
        )?;
        let first = disk.position();
        std::thread::scope(|scope| {
            let workers = [
                scope.spawn(|| work.containers(0, rounds)),
                scope.spawn(|| work.containers(1, rounds)),
                scope.spawn(|| work.content(rounds)),
                scope.spawn(|| work.pushes(rounds)),
            ];
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().unwrap_or_else(|_| bail!("a worker panicked")))
        })?;
        first
    };
    let last = disk.position();
    engine.cut_power();
    mounted.unmount()?;
    let mut recording = disk.finish()?;

    let mut seed = [0; 8];
    getrandom::fill(&mut seed).context("no random numbers")?;
    let seed = u64::from_le_bytes(seed) | 1;
    let mut state = seed;
    let mut random = move || {
        // xorshift64: reproducible from its seed.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut points: Vec<usize> = (0..cuts.saturating_sub(1))
        .map(|_| first + usize::try_from(random() % (last - first) as u64).unwrap_or(0))
        .collect();
    // The last one is after everything was acknowledged.
    points.push(last);
    points.sort_unstable();
    let mut lost = Vec::new();
    for (number, &position) in points.iter().enumerate() {
        let image = directory.path().join(format!("cut-{number}.img"));
        recording.cut(position, &image, &mut random)?;
        let mounted = recording.mount(&image, &target)?;
        // /run does not survive a boot.
        fs::remove_dir_all(marks.root.join("run")).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let outcome = (|| {
            let engine = Engine::on_files_of(&marks, options(&target, number + 1)?)?;
            check(&engine, &ledger.at(position))?;
            // Content that was to belong to an image that a cut prevented stays until
            // somebody prunes.
            engine.ok(&["image", "prune", "--force"])?;
            engine.finish()
        })();
        if let Err(error) = outcome {
            lost.push(format!("cut at {position} of {last}: {error:#}"));
        }
        mounted.unmount()?;
        fs::remove_file(image)?;
    }
    ensure!(
        lost.is_empty(),
        "{} of {cuts} power cuts on {} (seed {seed}):\n{}",
        lost.len(),
        format.name(),
        lost.join("\n")
    );
    eprintln!(
        "{}: {cuts} cuts of {last} writes and flushes, none lost",
        format.name()
    );
    Ok(())
}

#[test]
fn what_was_acknowledged_survives_power_cuts_on_ext4() -> Result<()> {
    survives(Format::Ext4, 6, 5)
}

#[test]
fn what_was_acknowledged_survives_power_cuts_on_xfs() -> Result<()> {
    survives(Format::Xfs, 6, 5)
}

#[test]
#[ignore = "takes minutes: make soak"]
fn soak_of_a_hundred_power_cuts_on_ext4() -> Result<()> {
    survives(Format::Ext4, 30, 100)
}

#[test]
#[ignore = "takes minutes: make soak"]
fn soak_of_a_hundred_power_cuts_on_xfs() -> Result<()> {
    survives(Format::Xfs, 30, 100)
}

/// The disk itself: what was not flushed may be lost, and what was is kept.
#[test]
fn a_cut_keeps_what_was_flushed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let target = directory.path().join("m");
    fs::create_dir(&target)?;
    let disk = RecordedDisk::new(Format::Ext4)?;
    let mounted = disk.mount(&target)?;
    fs::write(target.join("unsynced"), vec![b'u'; 1 << 20])?;
    let file = fs::File::create(target.join("synced"))?;
    std::io::Write::write_all(&mut &file, b"kept")?;
    file.sync_all()?;
    fs::File::open(&target)?.sync_all()?;
    let position = disk.position();
    drop(file);
    mounted.unmount()?;
    let mut recording = disk.finish()?;
    let image = directory.path().join("cut.img");
    recording.cut(position, &image, &mut || 0)?;
    let mounted = recording.mount(&image, &target)?;
    ensure!(fs::read(target.join("synced"))? == b"kept");
    let unsynced = fs::read(target.join("unsynced")).unwrap_or_default();
    ensure!(
        unsynced.is_empty(),
        "{} bytes that nobody synced",
        unsynced.len()
    );
    mounted.unmount()
}
