//! Docker and Podman run their containers with `gantry-oci`.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use gantry_integration_tests::command::{self, DEADLINE, Outcome};
use gantry_integration_tests::engine::bin_dir;
use gantry_integration_tests::fixture::busybox_members;
use gantry_integration_tests::tar::archive;
use gantry_integration_tests::terminal::Terminal;

use crate::clients::DockerDaemon;

/// What both engines are asked for, in the words that they share.
struct Foreign<'a> {
    command: &'a dyn Fn(&[&str]) -> Command,
    /// Between `run` and the rest.
    run: &'a [&'a str],
}

impl Foreign<'_> {
    fn outcome(&self, words: &[&str]) -> Result<Outcome> {
        command::run(&mut (self.command)(words), b"", DEADLINE)
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        self.outcome(words)?.text()
    }

    fn run(&self, words: &[&str]) -> Result<Outcome> {
        self.outcome(&[&["run"], self.run, words].concat())
    }

    /// A container's whole life.
    fn lives(&self) -> Result<()> {
        let said = self.run(&["--rm", "box", "/bin/sh", "-c", "echo hello; exit 7"])?;
        ensure!(said.stdout == "hello\n" && said.code == 7, "{said}");
        self.run(&["--rm", "box", "nonexistent"])?
            .expect_code(127)?;
        self.run(&["--rm", "box", "/etc/passwd"])?
            .expect_code(126)?;

        self.run(&["-d", "--name", "it", "box", "/bin/sleep", "1000"])?
            .expect_code(0)?;
        let exec = self.outcome(&[
            "exec",
            "-u",
            "1000:1000",
            "it",
            "/bin/sh",
            "-c",
            "id -u; exit 3",
        ])?;
        ensure!(exec.stdout == "1000\n" && exec.code == 3, "{exec}");
        let tty = self.ok(&["exec", "-t", "it", "/bin/sh", "-c", "test -t 0 && tty"])?;
        ensure!(tty.contains("/dev/pts/"), "{tty}");
        let top = self.ok(&["top", "it"])?;
        ensure!(top.contains("sleep 1000"), "{top}");
        self.ok(&["pause", "it"])?;
        self.ok(&["unpause", "it"])?;
        self.ok(&["kill", "-s", "TERM", "it"])?;
        self.ok(&["stop", "-t", "0", "it"])?;
        let code = self.ok(&["inspect", "-f", "{{.State.ExitCode}}", "it"])?;
        ensure!(
            code == "137",
            "process 1 without a handler is killed: {code}"
        );
        self.ok(&["start", "it"])?;
        let terminal = Terminal::open(90, 20)?;
        let words = (self.command)(&["exec", "-it", "it", "/bin/sh"]);
        let line: Vec<_> = std::iter::once(words.get_program())
            .chain(words.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        terminal.enter(&format!("exec {}", line.join(" ")))?;
        terminal.wait_for("/ #")?;
        terminal.enter("stty size; echo do''ne")?;
        let screen = terminal.wait_for("done")?;
        ensure!(screen.contains("20 90"), "{screen}");
        drop(terminal);
        self.ok(&["rm", "-f", "it"])?;

        let restricted = self.run(&[
            "--rm",
            "--read-only",
            "--tmpfs",
            "/scratch:mode=1777",
            "--cap-drop",
            "ALL",
            "--security-opt",
            "no-new-privileges",
            "--memory",
            "32m",
            "--pids-limit",
            "20",
            "--user",
            "1000:1000",
            "--hostname",
            "here",
            "box",
            "/bin/sh",
            "-c",
            "id -u; hostname; touch /x 2>/dev/null || touch /scratch/x && echo scratch; grep CapBnd /proc/self/status",
        ])?;
        ensure!(
            restricted.stdout == "1000\nhere\nscratch\nCapBnd:\t0000000000000000\n",
            "{restricted}"
        );
        let privileged = self.run(&[
            "--rm",
            "--privileged",
            "box",
            "/bin/sh",
            "-c",
            "mount -t tmpfs t /tmp && echo mounted",
        ])?;
        ensure!(privileged.stdout == "mounted\n", "{privileged}");
        Ok(())
    }
}

fn box_archive(directory: &Path) -> Result<String> {
    let path = directory.join("box.tar");
    std::fs::write(&path, archive(&busybox_members()?))?;
    Ok(path.to_string_lossy().into_owned())
}

#[test]
#[ignore = "installs other engines on the machine: make interop"]
fn docker_runs_containers_with_this_runtime() -> Result<()> {
    let directory = tempfile::Builder::new().prefix("gt-docker-").tempdir()?;
    let runtime = bin_dir()?.join("gantry-oci");
    let option = format!("--add-runtime=gantry={}", runtime.display());
    let daemon = DockerDaemon::start_with(directory.path(), &[option])?;
    daemon.docker(&["import", &box_archive(directory.path())?, "box"])?;
    let docker = Foreign {
        command: &|words| daemon.command(words),
        run: &["--runtime", "gantry", "--network", "none"],
    };
    docker.lives()?;
    docker
        .run(&["-d", "--name", "it", "box", "/bin/sleep", "1000"])?
        .expect_code(0)?;
    docker.ok(&["update", "--pids-limit", "33", "it"])?;
    // (Podman's --ulimit raises others too, which not every root may.)
    let limited = docker.run(&[
        "--rm",
        "--ulimit",
        "nofile=99",
        "box",
        "/bin/sh",
        "-c",
        "ulimit -n",
    ])?;
    ensure!(limited.stdout == "99\n", "{limited}");
    let limit = docker.ok(&["stats", "--no-stream", "--format", "{{.PIDs}}", "it"])?;
    ensure!(limit == "1", "{limit}");
    docker.ok(&["rm", "-f", "it"])?;
    Ok(())
}

#[test]
#[ignore = "installs other engines on the machine: make interop"]
fn podman_runs_containers_with_this_runtime() -> Result<()> {
    let directory = tempfile::Builder::new().prefix("gt-podman-").tempdir()?;
    let runtime = bin_dir()?.join("gantry-oci");
    let configuration = directory.path().join("containers.conf");
    std::fs::write(
        &configuration,
        "[containers]\ndefault_ulimits = []\n[engine]\ncgroup_manager = \"cgroupfs\"\n",
    )?;
    let command = |words: &[&str]| {
        // By env(1), so that the terminal's shell needs no variable.
        let mut command = Command::new("env");
        command
            .arg(format!("CONTAINERS_CONF={}", configuration.display()))
            .arg("podman")
            .arg("--root")
            .arg(directory.path().join("root"))
            .arg("--runroot")
            .arg(directory.path().join("run"))
            .args(["--storage-driver", "vfs"])
            .arg("--runtime")
            .arg(&runtime)
            .args(words);
        command
    };
    let podman = Foreign {
        command: &command,
        run: &["--network", "none"],
    };
    podman.ok(&[
        "import",
        "-q",
        &box_archive(directory.path())?,
        "localhost/box:latest",
    ])?;
    podman.lives()?;
    // Ids of its own: with devices that are its root's.
    let mapped = podman.run(&[
        "--rm",
        "--uidmap",
        "0:100000:5000",
        "--gidmap",
        "0:100000:5000",
        "box",
        "/bin/sh",
        "-c",
        "id -u; stat -c %u /dev/null; tr -s ' ' < /proc/self/uid_map",
    ])?;
    ensure!(mapped.stdout == "0\n0\n 0 100000 5000\n", "{mapped}");
    Ok(())
}
