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
    // What there is none of, in templates.
    "create --name nil -h nil -l tier=front --network none box true",
    "inspect -f {{.State.Health}}|{{.Config.Healthcheck}}|{{.Config.Volumes}}|{{.ExecIDs}}|{{.HostConfig.CapAdd}} nil",
    "inspect -f {{.HostConfig.PidsLimit}}|{{.HostConfig.MemorySwappiness}}|{{.Config.StopTimeout}}|{{.HostConfig.Init}} nil",
    "inspect -f \"{{if .State.Health}}y{{else}}n{{end}}{{with .Config.Healthcheck}}y{{end}}\" nil",
    "inspect -f \"{{.Config.Labels.nope}} {{index .Config.Labels \\\"nope\\\"}} {{.Config.Labels.tier}}\" nil",
    "inspect -f \"{{len .HostConfig.CapAdd}} {{range .Config.Entrypoint}}x{{end}} {{json .Config.Volumes}}\" nil",
    "inspect -f {{.NetworkSettings.Ports}}|{{.HostConfig.PortBindings}}|{{.NetworkSettings.Networks.bridge}} nil",
    "inspect -f \"{{printf \\\"%.12s|%q\\\" .Id .Name}} {{slice .Id 0 12}}\" nil",
    "inspect -f {{.HostConfig.RestartPolicy}}|{{.HostConfig.LogConfig.Config}} nil",
    "inspect -f \"{{json .Config}}\" nil",
    "rm nil",
    // What was asked for.
    "create --name all -h all --network none --tmpfs /t:size=1m --tmpfs /u -v /etc:/x:ro --mount type=tmpfs,dst=/m --expose 80 -p 81:81 --stop-timeout 0 --stop-signal INT -m 64m --health-cmd true --health-retries 2 --cgroup-parent shop --ipc none -i box sh",
    "inspect -f \"{{json .HostConfig.Tmpfs}} {{json .HostConfig.Mounts}} {{json .HostConfig.Binds}}\" all",
    "inspect -f \"{{json .Config}}\" all",
    "inspect -f \"{{json .HostConfig.PortBindings}} {{.HostConfig.MemorySwap}} {{.HostConfig.CgroupParent}} {{.HostConfig.IpcMode}}\" all",
    "inspect -f \"{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.Privileged}} {{.HostConfig.ReadonlyRootfs}}\" all",
    "rm all",
    "create --name vol --network none -v data:/d -v /anonymous box true",
    "inspect -f \"{{json .Config.Volumes}} {{json .HostConfig.Binds}} {{len .Mounts}}\" vol",
    "ps -a --filter volume=data --format {{.Names}}|{{.LocalVolumes}}",
    "volume inspect -f {{.Labels}}|{{.Options}}|{{.Labels.x}}|{{.Status}}|{{.UsageData}} data",
    "volume ls -q --filter name=^data$",
    "rm -v vol",
    "volume rm data nope",
    // Streams, switches, operands.
    "create --name at -a stdout -a stdin --network none box true",
    "inspect -f \"{{.Config.AttachStdin}}{{.Config.AttachStdout}}{{.Config.AttachStderr}}\" at",
    "create --name rm --rm --rm=false --network none box true",
    "inspect -f \"{{.HostConfig.AutoRemove}}\" rm",
    "create -a bogus box true",
    "ps -a --filter name=^/at$ --format {{.Names}}",
    "ps -a --filter \"name=^(at|rm)$\" --format {{.Names}}",
    "ps -a --filter is-task=true -q",
    "ps -a --filter is-task=false --format {{.Names}}",
    "ps -a --filter is-task=x",
    "ps -aq --no-trunc",
    "ps -q --format {{.Names}}",
    "ps -a --format \"table {{.Names}}\\t{{.Label \\\"com.example.a-tier\\\"}}\"",
    "ps extra",
    "rename a b c",
    "images a b",
    "tag a",
    "history a b",
    "logs a b",
    "port a b c",
    "info x",
    "system df x",
    "container ls x",
    "exec at",
    "rm at rm",
    // Users and namespaces.
    "run --rm --network none box id",
    "run --rm --network none -u alice box id",
    "run --rm --network none -u alice:root box id",
    "run --rm --network none -u 77 box id",
    "run --rm --network none -u 77:78 --group-add 99 --group-add wheel box id",
    "run --rm --network none -u nobody box true",
    "run --rm --network none -w /etc/passwd box true",
    "run --rm --network none --ipc none box ls /dev",
    "run --rm --network none --ipc bogus box true",
    "run --rm --network none --ipc container:nobody box true",
    "run --rm --network none --pid bogus box true",
    "run --rm --network none --group-add nogroup box true",
    "run --rm --network none --cap-drop all --cap-add chown box grep CapEff /proc/self/status",
    "run --rm --network none --gpus all box true",
    "run --rm --network none --gpus bogus=1 box true",
    "create --storage-opt size=1g box true",
    "create --storage-opt bogus box true",
    "start --checkpoint x nobody",
    "run -d -a stdout --network none box true",
    "run --rm -it --network none box true",
    // What is refused, and by whom.
    "create --restart bogus box true",
    "create --restart always:3 box true",
    "create -v /a:/b:bogus box true",
    "create -v /a:/b:c:d box true",
    "create --mount type=bogus,dst=/x box true",
    "create --mount bogus box true",
    "create --tmpfs bogus box true",
    "create --oom-score-adj 2000 box true",
    "create --ulimit nofile=10:5 box true",
    "create --security-opt bogus box true",
    "create --sysctl kernel.panic=1 box true",
    "create --cpuset-cpus 4096 box true",
    "create --cpuset-cpus 0-x box true",
    "create --cpu-period 5 box true",
    "create --memory-reservation 50m -m 10m box true",
    "create --uts host -h x box true",
    "create --platform bogus/x/y/z box true",
    "create --log-opt bogus=1 box true",
    "update --restart bogus nobody",
    "logs --since bogus nobody",
    "inspect --type bogus nobody",
    // Images.
    "inspect -f {{.Comment}}|{{.Author}}|{{.Parent}} box",
    "image inspect -f {{.Config.ExposedPorts}}|{{.Config.Cmd}}|{{.Config.User}}|{{.Config.Labels}}|{{.RepoDigests}} box",
    "history --format {{.Comment}}|{{.CreatedBy}} box",
    "images --format {{.Repository}}:{{.Tag}}",
    "images --filter dangling=true -q",
    "images --filter bogus=x",
    "tag box a:1",
    "tag box UPPER",
    "rmi a:1 nope",
    "save nope",
    "load -i /etc/passwd",
    "network inspect none -f {{.Name}}|{{.Driver}}|{{.Scope}}|{{.Internal}}",
    "network ls --filter name=none --format {{.Name}}|{{.Driver}}",
    "info --format {{.Containers}}|{{.Images}}|{{.OSType}}|{{.Architecture}}|{{.NCPU}}|{{.MemTotal}}|{{.OperatingSystem}}|{{.Swarm.LocalNodeState}}",
    "system prune --volumes --filter until=1h -f",
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
