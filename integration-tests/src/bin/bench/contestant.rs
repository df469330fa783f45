//! One engine in the race: how it is started, called and stopped.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use gantry_integration_tests::audit;
use gantry_integration_tests::command::{self, Outcome};
use gantry_integration_tests::engine::{self, Engine, Options};
use rustix::process::Signal;
use tempfile::TempDir;

/// The slowest thing that any of them does is a pull.
const DEADLINE: Duration = Duration::from_secs(300);

pub(crate) enum Contestant {
    Gantry(Box<Engine>),
    Docker(Daemon),
    Podman { directory: TempDir },
}

/// A Docker daemon; it ends with the value.
pub(crate) struct Daemon {
    process: Child,
    directory: TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGTERM, so that it takes its containerd with it.
        let _ = engine::send(self.process.id().cast_signed(), Signal::TERM);
        let _ = self.process.wait();
    }
}

impl Contestant {
    /// None where it is not installed.
    pub(crate) fn start(name: &str, bin_dir: &Path) -> Result<Option<Self>> {
        match name {
            "gantry" => {
                let options = Options {
                    bin_dir: Some(bin_dir.to_owned()),
                    ..Options::default()
                };
                Ok(Some(Self::Gantry(Box::new(Engine::with(options)?))))
            }
            "docker" if installed("dockerd") && installed("docker") => start_docker().map(Some),
            "podman" if installed("podman") => start_podman().map(Some),
            _ => Ok(None),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Gantry(_) => "gantry",
            Self::Docker(_) => "docker",
            Self::Podman { .. } => "podman",
        }
    }

    /// Runs one command line of this engine, which must succeed.
    pub(crate) fn run(&self, words: &[&str]) -> Result<Outcome> {
        command::run(&mut self.command(words), b"", DEADLINE)?.expect_code(0)
    }

    fn command(&self, words: &[&str]) -> Command {
        match self {
            Self::Gantry(engine) => engine.command(words),
            Self::Docker(Daemon { directory, .. }) => {
                let mut command = Command::new("docker");
                command
                    .args(["--host", &docker_socket(directory.path())])
                    .args(words);
                command
            }
            Self::Podman { directory } => {
                let mut command = Command::new("podman");
                let path = directory.path();
                command
                    .env("CONTAINERS_CONF", path.join("containers.conf"))
                    .arg("--root")
                    .arg(path.join("root"))
                    .arg("--runroot")
                    .arg(path.join("run"))
                    .args(["--storage-driver", "overlay"])
                    .args(words.iter().take(1));
                if words.first() == Some(&"pull") {
                    command.arg("--tls-verify=false");
                }
                command.args(words.iter().skip(1));
                command
            }
        }
    }

    /// The processes that serve all of its containers.
    pub(crate) fn services(&self) -> Result<Vec<i32>> {
        Ok(match self {
            Self::Gantry(engine) => engine.service_processes()?.into_iter().collect(),
            Self::Docker(Daemon { directory, .. }) => {
                let mark = directory.path().to_string_lossy().into_owned();
                audit::all_processes()?
                    .into_iter()
                    .filter(|&pid| {
                        let line = audit::command_of(pid);
                        (line.starts_with("dockerd") || line.contains("containerd --config"))
                            && line.contains(&mark)
                    })
                    .collect()
            }
            Self::Podman { .. } => Vec::new(),
        })
    }

    /// Name of the program that stays with each container.
    pub(crate) fn keeper(&self) -> &'static str {
        match self {
            Self::Gantry(_) => "gantry-shim",
            Self::Docker(_) => "containerd-shim-runc-v2",
            Self::Podman { .. } => "conmon",
        }
    }

    /// Ends it with all it started; for Gantry with the leak audit.
    pub(crate) fn stop(self) -> Result<()> {
        let parent = match self {
            Self::Gantry(engine) => return engine.finish(),
            Self::Docker(_) => "docker",
            Self::Podman { .. } => "libpod_parent",
        };
        drop(self);
        // The peers leave the parents of their containers' cgroups. One that
        // somebody else uses is not empty and stays.
        for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
            let parent = hierarchy.path().join(parent);
            for child in fs::read_dir(&parent).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(child.path());
            }
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

fn docker_socket(directory: &Path) -> String {
    format!("unix://{}/docker.sock", directory.display())
}

fn start_docker() -> Result<Contestant> {
    let directory = tempfile::Builder::new().prefix("gt-docker-").tempdir()?;
    let path = directory.path();
    let log = File::create(path.join("log"))?;
    let process = Command::new("dockerd")
        .args(["--host", &docker_socket(path)])
        .arg("--data-root")
        .arg(path.join("data"))
        .arg("--exec-root")
        .arg(path.join("exec"))
        .arg("--pidfile")
        .arg(path.join("pid"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("dockerd")?;
    let logged = path.join("log");
    let contestant = Contestant::Docker(Daemon { process, directory });
    let end = Instant::now() + Duration::from_secs(60);
    while contestant.run(&["version"]).is_err() {
        if Instant::now() > end {
            let log = fs::read_to_string(logged)?;
            bail!("dockerd does not answer:\n{log}");
        }
        // It tells systemd only, which may not run here.
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(contestant)
}

fn start_podman() -> Result<Contestant> {
    let directory = tempfile::Builder::new().prefix("gt-podman-").tempdir()?;
    fs::write(
        directory.path().join("containers.conf"),
        "[containers]\ndefault_ulimits = []\n[engine]\ncgroup_manager = \"cgroupfs\"\nruntime = \"runc\"\nevents_logger = \"file\"\n[network]\nnetwork_backend = \"netavark\"\n",
    )?;
    Ok(Contestant::Podman { directory })
}
