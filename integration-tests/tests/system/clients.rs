//! Images that other people's tools pushed, into Debian's registry and ours.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gantry_integration_tests::command::Outcome;
use gantry_integration_tests::engine::{Engine, with_engine};
use gantry_integration_tests::fixture::busybox_members;
use gantry_integration_tests::image::{Builder, Image};
use gantry_integration_tests::registry::{ForeignRegistry, push};
use gantry_integration_tests::tar::{Member, archive};
use gantry_integration_tests::{GUEST, command, grpc};

const MINUTE: Duration = Duration::from_secs(60);

pub(crate) fn tool(command: &mut Command) -> Result<String> {
    command::run(command, b"", MINUTE)?.text()
}

fn source() -> Result<Image> {
    Ok(Builder::default()
        .layer(&[Member::program("guest", GUEST)])
        .command(&["/guest", "echo", "hello"])
        .build()?)
}

fn pulls_and_runs(engine: &Engine, reference: &str, words: &[&str]) -> Result<()> {
    engine.ok(&["pull", reference])?;
    let said = engine.ok(&[&["run", "--rm", reference], words].concat())?;
    ensure!(said == "hello", "{reference} said {said:?}");
    engine.ok(&["rmi", reference])?;
    Ok(())
}

#[test]
fn what_skopeo_pushed_pulls_and_runs() -> Result<()> {
    with_engine(|engine| {
        let debians = ForeignRegistry::start()?;
        let ours = grpc::registry_address(&engine.socket("registry"))?;
        push(&debians.address, "source", "latest", &source()?)?;
        for registry in [&debians.address, &ours] {
            for (tag, flags) in [
                ("gzip", &["--dest-compress-format", "gzip"][..]),
                (
                    "zstd",
                    &[
                        "--dest-compress-format",
                        "zstd",
                        "--dest-compress",
                        "--format",
                        "oci",
                    ],
                ),
                ("docker", &["--format", "v2s2"]),
                ("oci", &["--format", "oci"]),
            ] {
                // By way of a directory, so that skopeo packs anew.
                let directory = engine.root().join(format!("skopeo-{tag}"));
                let local = format!("dir:{}", directory.display());
                tool(Command::new("skopeo").args([
                    "copy",
                    "--quiet",
                    "--src-tls-verify=false",
                    "--dest-decompress",
                    &format!("docker://{}/source", debians.address),
                    &local,
                ]))?;
                tool(
                    Command::new("skopeo")
                        .args(["copy", "--quiet", "--dest-tls-verify=false"])
                        .args(flags)
                        .args([&local, &format!("docker://{registry}/by/skopeo:{tag}")]),
                )?;
                std::fs::remove_dir_all(&directory)?;
                pulls_and_runs(engine, &format!("{registry}/by/skopeo:{tag}"), &[])
                    .with_context(|| format!("{tag} by way of {registry}"))?;
            }
        }
        Ok(())
    })
}

#[test]
fn skopeo_and_our_own_pull_agree_on_what_our_registry_holds() -> Result<()> {
    with_engine(|engine| {
        let ours = grpc::registry_address(&engine.socket("registry"))?;
        let image = source()?;
        push(&ours, "team/app", "v1", &image)?;
        let seen = tool(Command::new("skopeo").args([
            "inspect",
            "--tls-verify=false",
            &format!("docker://{ours}/team/app:v1"),
        ]))?;
        ensure!(seen.contains(&image.manifest.digest), "{seen}");
        let tags = tool(Command::new("skopeo").args([
            "list-tags",
            "--tls-verify=false",
            &format!("docker://{ours}/team/app"),
        ]))?;
        ensure!(tags.contains("\"v1\""), "{tags}");
        Ok(())
    })
}

/// The root file system that the peers import.
fn root_archive(directory: &Path) -> Result<String> {
    let path = directory.join("root.tar");
    std::fs::write(&path, archive(&[Member::program("guest", GUEST)]))?;
    Ok(path.to_string_lossy().into_owned())
}

/// Podman with all that it keeps in a directory.
pub(crate) fn podman(directory: &Path, words: &[&str]) -> Result<String> {
    tool(
        Command::new("podman")
            .arg("--root")
            .arg(directory.join("root"))
            .arg("--runroot")
            .arg(directory.join("run"))
            .args(["--storage-driver", "vfs"])
            .args(words),
    )
}

#[test]
#[ignore = "installs other engines on the machine: make interop"]
fn what_podman_pushed_pulls_and_runs() -> Result<()> {
    with_engine(|engine| {
        let registry = ForeignRegistry::start()?;
        let directory = tempfile::Builder::new().prefix("gt-podman-").tempdir()?;
        let podman = |words: &[&str]| podman(directory.path(), words);
        let archive = root_archive(directory.path())?;
        podman(&["import", "--quiet", &archive, "localhost/guest:latest"])?;
        for (tag, flags) in [
            ("gzip", &["--compression-format", "gzip"][..]),
            ("zstd", &["--compression-format", "zstd"]),
            ("docker", &["--format", "v2s2"]),
        ] {
            let reference = format!("{}/by/podman:{tag}", registry.address);
            let destination = format!("docker://{reference}");
            podman(
                &[
                    &["push", "--quiet", "--tls-verify=false"],
                    flags,
                    &["localhost/guest:latest", &destination],
                ]
                .concat(),
            )?;
            pulls_and_runs(engine, &reference, &["/guest", "echo", "hello"]).context(tag)?;
        }
        Ok(())
    })
}

#[test]
#[ignore = "installs other engines on the machine: make interop"]
fn what_docker_pushed_pulls_and_runs() -> Result<()> {
    with_engine(|engine| {
        let registry = ForeignRegistry::start()?;
        let directory = tempfile::Builder::new().prefix("gt-docker-").tempdir()?;
        let daemon = DockerDaemon::start(directory.path())?;
        let archive = root_archive(directory.path())?;
        let reference = format!("{}/by/docker:latest", registry.address);
        daemon.docker(&["import", &archive, &reference])?;
        daemon.docker(&["push", &reference])?;
        pulls_and_runs(engine, &reference, &["/guest", "echo", "hello"])
    })
}

#[test]
#[ignore = "installs other engines on the machine: make interop"]
fn docker_lists_the_same_changes_and_runs_what_a_commit_pushed() -> Result<()> {
    const CHANGE: &str = "echo more >> /etc/passwd; rm /etc/group; rm -r /home; mkdir -p /home/new; \
        mkdir -p /a/b; echo x > /a/b/c; ln /a/b/c /a/d; chmod 700 /tmp; touch /root; \
        rm /bin/vi; mkdir /bin/vi; echo x > /bin/vi/f; ln -s /a /s; mknod /n c 1 3; chmod 755 /bin";
    with_engine(|engine| {
        let registry = ForeignRegistry::start()?;
        let directory = tempfile::Builder::new().prefix("gt-docker-").tempdir()?;
        let daemon = DockerDaemon::start(directory.path())?;
        let path = directory.path().join("box.tar");
        std::fs::write(&path, archive(&busybox_members()?))?;
        let path = path.to_string_lossy().into_owned();
        engine.ok(&["import", &path, "box"])?;
        daemon.docker(&["import", &path, "box"])?;
        let run = [
            "run",
            "--name",
            "it",
            "--network",
            "none",
            "box",
            "/bin/sh",
            "-c",
            CHANGE,
        ];
        engine.ok(&run)?;
        daemon.docker(&run)?;
        let sorted = |text: String| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        let (ours, dockers) = (
            sorted(engine.ok(&["diff", "it"])?),
            sorted(daemon.docker(&["diff", "it"])?),
        );
        ensure!(ours == dockers, "ours: {ours:#?}\nDocker's: {dockers:#?}");

        let reference = format!("{}/by/commit:latest", registry.address);
        engine.ok(&["commit", "it", &reference])?;
        engine.ok(&["push", &reference])?;
        let look = "cat /a/d; ls /home /bin/vi; stat -c '%a %h' /tmp /a/b/c; test -e /etc/group || echo gone; readlink /s";
        let look = [
            "run",
            "--rm",
            "--network",
            "none",
            &reference,
            "/bin/sh",
            "-c",
            look,
        ];
        let there = daemon.docker(&look)?;
        ensure!(engine.ok(&look)? == there, "{there}");
        ensure!(there.contains("new") && there.contains("gone"), "{there}");
        engine.ok(&["rm", "it"])?;
        Ok(())
    })
}

/// A Docker daemon that touches nothing of the host's network.
pub(crate) struct DockerDaemon {
    child: std::process::Child,
    socket: String,
}

impl DockerDaemon {
    pub(crate) fn start(directory: &Path) -> Result<Self> {
        Self::start_with(directory, &[])
    }

    /// With further options for the daemon.
    pub(crate) fn start_with(directory: &Path, options: &[String]) -> Result<Self> {
        let socket = format!("unix://{}/docker.sock", directory.display());
        let log = std::fs::File::create(directory.join("log"))?;
        let child = Command::new("dockerd")
            .args([
                "--iptables=false",
                "--ip6tables=false",
                "--bridge=none",
                "--host",
                &socket,
            ])
            .arg("--data-root")
            .arg(directory.join("data"))
            .arg("--exec-root")
            .arg(directory.join("exec"))
            .arg("--pidfile")
            .arg(directory.join("pid"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("dockerd: `make peers` installs it")?;
        let daemon = Self { child, socket };
        let end = Instant::now() + MINUTE;
        while daemon.docker(&["version"]).is_err() {
            if Instant::now() > end {
                bail!(
                    "dockerd does not answer: {}",
                    std::fs::read_to_string(directory.join("log"))?
                );
            }
            // It tells systemd only, which does not run here.
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(daemon)
    }

    pub(crate) fn socket(&self) -> &str {
        &self.socket
    }

    pub(crate) fn docker(&self, words: &[&str]) -> Result<String> {
        self.outcome(words)?.text()
    }

    pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new("docker");
        command.args(["--host", &self.socket]).args(words);
        command
    }

    /// What it says, whether it succeeds or not.
    pub(crate) fn outcome<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Result<Outcome> {
        command::run(&mut self.command(words), b"", MINUTE)
    }
}

impl Drop for DockerDaemon {
    fn drop(&mut self) {
        // SIGTERM, so that it takes its containerd with it.
        let _ = gantry_integration_tests::engine::send(
            self.child.id().cast_signed(),
            rustix::process::Signal::TERM,
        );
        let _ = self.child.wait();
    }
}
