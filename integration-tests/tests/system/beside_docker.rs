//! The same command lines on Gantry and on the machine's Docker: the same
//! standard output, the same exit code, whatever each says on standard error.
//!
//! Ids, ages and sizes differ between any two engines and are compared as
//! such. What differs on purpose is in `docs/containers.md`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use gantry_integration_tests::command::{self, Outcome};
use gantry_integration_tests::engine::{Engine, with_engine};
use gantry_integration_tests::fixture::busybox_members;
use gantry_integration_tests::tar::archive;

use super::clients::DockerDaemon;

/// Command lines, in order: words are split at blanks, "…" is one word.
const LINES: &[&str] = &[
    // Creating and starting.
    "create --name one -l tier=front -e A=1 --network none box sleep 600",
    "ps -q",
    "ps -a --format {{.Names}}|{{.State}}|{{.Image}}|{{.Command}}|{{.Status}}",
    "inspect -f {{.State.Status}}|{{.State.Running}}|{{.State.Pid}}|{{.State.ExitCode}}|{{.RestartCount}} one",
    "start one",
    "start one",
    "start nobody",
    "start",
    "ps --format {{.Names}}|{{.State}}|{{.Ports}}|{{.Labels}}|{{.Networks}}",
    "ps --format \"table {{.Names}}\\t{{.Image}}\"",
    "ps --filter status=exited -q",
    "ps --filter label=tier=front --format {{.Names}}",
    "ps --filter name=on --format {{.Names}}",
    "ps --filter status=asleep",
    "ps --format {{.Nome}}",
    "create --name one box true",
    "create --name /bad/ box true",
    "create --network none nosuchimage:none true --pull never",
    // Running, and how it ends.
    "run --rm --network none box echo hello",
    "run --rm --network none box sh -c \"exit 7\"",
    "run --rm --network none box sh -c \"kill -9 $$\"",
    "run --rm --network none box /nope",
    "run --rm --network none box /etc/passwd",
    "run --rm --network none --nope box true",
    "run --rm --network none -e A=1 -e B -w /tmp -u 12:34 box sh -c \"pwd; id -u; id -g; echo $A\"",
    "run --rm --network none --hostname web box hostname",
    "run --rm --network none --entrypoint echo box a b",
    "run -d --name two --network none --restart on-failure:2 box sh -c \"exit 3\"",
    // Inside.
    "exec one echo inside",
    "exec one sh -c \"exit 5\"",
    "exec -e X=y -w /tmp -u 1 one sh -c \"echo $X; pwd; id -u\"",
    "exec -d one true",
    "exec nobody true",
    "exec one",
    "logs one",
    "logs nobody",
    "port one",
    "port nobody",
    "top nobody",
    // Formats.
    "inspect -f \"{{.Name}} {{.Path}} {{json .Args}}\" one",
    "inspect -f \"{{index .Config.Labels \\\"tier\\\"}} {{.Config.Image}}\" one",
    "inspect -f \"{{range .Config.Env}}[{{.}}]{{end}}\" one",
    "inspect -f \"{{.HostConfig.NetworkMode}} {{.HostConfig.RestartPolicy.Name}}\" one",
    "inspect -f \"{{json .NetworkSettings.Ports}} {{json .Mounts}}\" one",
    "inspect -f \"{{if .State.Running}}yes{{else}}no{{end}}\" one",
    "inspect nobody",
    "inspect --type container nobody",
    // Pausing, renaming, updating.
    "pause one",
    "inspect -f {{.State.Status}} one",
    "exec one true",
    "pause one",
    "unpause one",
    "unpause one",
    "rename one uno",
    "rename nobody x",
    "rename uno two",
    "update --pids-limit 100 uno",
    "update nobody",
    "update",
    "inspect -f {{.HostConfig.PidsLimit}} uno",
    // Ending.
    "stop -t 0 uno",
    "stop -t 0 uno",
    "stop nobody",
    "inspect -f \"{{.State.Status}} {{.State.ExitCode}}\" uno",
    "wait uno",
    "wait nobody",
    "kill uno",
    "restart -t 0 uno",
    "rm uno",
    "kill -s TERM nobody",
    "kill -s NOPE uno",
    "kill uno",
    "wait uno",
    "ps -a --filter exited=137 --format {{.Names}}",
    "rm uno nobody",
    "rm -f nobody",
    "rm -f two",
    "rm",
    "ps -aq",
    // Output as it is.
    "run --name said --network none box sh -c \"echo one; echo two; echo three\"",
    "logs said",
    "logs --tail 1 said",
    "logs -n 0 said",
    "logs --details said",
    "logs --since 1h said",
    "logs --until 1h said",
    "start -a said",
    "logs said",
    "container prune -f --filter until=24h",
    "rm said",
    // Copies.
    "create --name cc --network none box true",
    "cp cc:/nope /tmp",
    "cp cc:/etc/passwd /no/such/directory/x",
    "cp /no/such/file cc:/",
    "cp cc:/etc cc:/x",
    "cp /etc/hostname /etc/hostname",
    "cp /etc/hostname cc:/none/",
    "cp /etc/hostname cc:/none/x",
    "cp /etc cc:/bin/busybox",
    "cp /etc/hostname nobody:/",
    "cp cc:/etc/passwd/ /tmp",
    "rm cc",
];

/// Words of a line, as a shell splits them.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut escaped, mut any) = (false, false, false);
    for character in line.chars() {
        match character {
            '\\' if quoted && !escaped => {
                escaped = true;
                continue;
            }
            '"' if !escaped => (quoted, any) = (!quoted, true),
            't' if escaped => word.push('\t'),
            ' ' if !quoted => {
                if !word.is_empty() || any {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            other => word.push(other),
        }
        escaped = false;
    }
    if !word.is_empty() || any {
        words.push(word);
    }
    words
}

/// Without what no two engines have in common.
fn compared(outcome: &Outcome) -> String {
    let shown: Vec<String> = outcome
        .stdout
        .split_inclusive([' ', '\n', '|', '\t', '[', ']'])
        .map(|part| {
            let word = part.trim_end_matches([' ', '\n', '|', '\t', '[', ']']);
            let end = &part[word.len()..];
            let is_id =
                matches!(word.len(), 12 | 64) && word.bytes().all(|byte| byte.is_ascii_hexdigit());
            match is_id {
                true => format!("<id of {}>{end}", word.len()),
                false => part.to_owned(),
            }
        })
        .collect();
    let mut shown = shown.concat();
    for age in ["Less than a second", "1 second", "2 seconds", "3 seconds"] {
        shown = shown.replace(age, "<age>");
    }
    format!("exit code {}\n{shown}", outcome.code)
}

fn engines(engine: &Engine, docker: &DockerDaemon, line: &str) -> Result<[Outcome; 2]> {
    let words = words(line);
    let mut other = Command::new("docker");
    other.args(["--host", docker.socket()]).args(&words);
    let deadline = command::DEADLINE;
    Ok([
        engine.gantry(&words)?,
        command::run(other.current_dir("/"), b"", deadline)?,
    ])
}

#[test]
#[ignore = "installs other engines on the machine: make interop"]
fn the_same_command_lines_say_the_same_as_dockers() -> Result<()> {
    with_engine(|engine| {
        let directory = tempfile::Builder::new().prefix("gt-docker-").tempdir()?;
        let docker = DockerDaemon::start(directory.path())?;
        let path = directory.path().join("box.tar");
        std::fs::write(&path, archive(&busybox_members()?))?;
        let path = path.to_string_lossy().into_owned();
        engine.ok(&["import", &path, "box"])?;
        docker.docker(&["import", &path, "box"])?;
        let mut differences = Vec::new();
        for line in LINES {
            let [ours, theirs] = engines(engine, &docker, line)?;
            if compared(&ours) != compared(&theirs) {
                differences.push(format!(
                    "`{line}`\n--- gantry: {}\n{}--- docker: {}\n{}",
                    compared(&ours),
                    ours.stderr,
                    compared(&theirs),
                    theirs.stderr
                ));
            }
        }
        ensure!(Path::new(&path).exists(), "the archive was taken away");
        let count = LINES.len();
        ensure!(
            differences.is_empty(),
            "{} of {count} lines differ:\n{}",
            differences.len(),
            differences.join("\n")
        );
        Ok(())
    })
    .context("beside Docker")
}
