//! The command against a gateway of its own: output, exit codes, errors.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails where it cannot go on"
)]

mod gateway;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use gantry_sys::process::send_signal;
use gateway::{Gateway, ID};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

#[test]
fn run_shows_what_the_program_writes_and_ends_as_it_does() {
    let gateway = Gateway::start();
    let outcome = gateway.gantry(&["run", "--rm", "debian", "echo", "hello"]);
    assert_eq!(outcome.stdout, "hello\n");
    assert_eq!(outcome.stderr, "complaint\n");
    assert_eq!(outcome.code, Some(0));
    let outcome = gateway.gantry(&["run", "debian", "exit", "7"]);
    assert_eq!(outcome.code, Some(7));
}

#[test]
fn run_sends_what_the_flags_say() {
    let gateway = Gateway::start();
    gateway.gantry(&[
        "run",
        "-itd",
        "--rm=false",
        "--name",
        "n1",
        "-e",
        "A=1",
        "-p",
        "8080:80",
        "-m",
        "64m",
        "-v",
        "/a:/b:ro",
        "--net=none",
        "-h",
        "host1",
        "--entrypoint",
        "",
        "-l",
        "x=y",
        "--cpus",
        "1.5",
        "--pids-limit",
        "-1",
        "debian",
        "exit",
        "0",
    ]);
    let open = gateway.seen.last();
    let config = open.config.unwrap();
    assert!(open.detach && config.tty && config.stdin_open && !config.auto_remove);
    assert!(!open.attach_stdin && !open.attach_stdout);
    assert_eq!(open.name, "n1");
    assert_eq!(config.image, "debian");
    assert_eq!(config.command, ["exit", "0"]);
    assert_eq!(config.env, ["A=1"]);
    assert_eq!(config.ports[0].host_port, 8080);
    assert_eq!(config.mounts[0].target, "/b");
    assert_eq!(config.network_mode, "none");
    assert_eq!(config.hostname, "host1");
    assert_eq!(config.entrypoint.unwrap().args, [""; 0]);
    assert_eq!(config.labels["x"], "y");
    let resources = config.resources.unwrap();
    assert_eq!(resources.memory_bytes, 64 << 20);
    assert_eq!(resources.nano_cpus, 1_500_000_000);
    assert_eq!(resources.pids_limit, -1);
}

#[test]
fn flags_after_the_image_belong_to_the_program() {
    let gateway = Gateway::start();
    gateway.gantry(&[
        "container",
        "run",
        "-d",
        "debian",
        "exit",
        "-it",
        "--name",
        "--",
        "x",
    ]);
    let open = gateway.seen.last();
    assert_eq!(open.name, "");
    assert_eq!(
        open.config.unwrap().command,
        ["exit", "-it", "--name", "--", "x"]
    );
}

#[test]
fn run_in_the_background_prints_the_id() {
    let gateway = Gateway::start();
    let cidfile = gateway.path("cid");
    let outcome = gateway.gantry(&[
        "run",
        "-d",
        "--cidfile",
        cidfile.to_str().unwrap(),
        "debian",
        "exit",
        "0",
    ]);
    assert_eq!(outcome.stdout, format!("{ID}\n"));
    assert_eq!(std::fs::read_to_string(cidfile).unwrap(), ID);
}

#[test]
fn input_reaches_the_program_and_so_does_its_end() {
    let gateway = Gateway::start();
    let input = "line\n".repeat(100_000);
    let outcome = gateway.gantry_with_input(&["run", "-i", "debian", "cat"], input.as_bytes());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout == input);
}

#[test]
fn signals_are_passed_on() {
    let gateway = Gateway::start();
    let mut child = gateway.command(&["run", "debian", "trap"]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

/// Reads the first line, which says that the program runs.
fn until_ready(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
}

#[test]
fn every_signal_that_can_be_caught_is_passed_on_behind_unread_input() {
    let gateway = Gateway::start();
    // Those of the C library, and those that Docker keeps to itself too.
    let left_out = [9, 13, 17, 19, 23, 32, 33, 34];
    for signal in (1..=64).filter(|signal| !left_out.contains(signal)) {
        let number = signal.to_string();
        let mut command = gateway.command(&["run", "-i", "debian", "deaf", &number]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        // More input than all buffers on the way hold, which nobody reads.
        let mut input = child.stdin.take().unwrap();
        let typing =
            std::thread::spawn(move || while input.write_all(&[b'x'; 64 << 10]).is_ok() {});
        until_ready(&mut child);
        send_signal(child.id().cast_signed(), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(5), "signal {signal}");
        typing.join().unwrap();
    }
}

#[test]
fn a_slow_reader_of_the_output_does_not_hold_up_signals() {
    let gateway = Gateway::start();
    // Nobody reads its output but for the first line.
    let mut command = gateway.command(&["run", "--sig-proxy=false", "debian", "flood"]);
    let mut child = command.spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0]).unwrap();
    send_signal(child.id().cast_signed(), 15).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
}

#[test]
fn a_window_that_missed_output_ends_with_a_code_of_its_own() {
    let gateway = Gateway::start();
    for (bytes, said) in [("7", "7 bytes of the output"), ("0", "some of the output")] {
        let outcome = gateway.gantry(&["run", "debian", "gap", bytes]);
        assert_eq!(outcome.code, Some(122), "{}", outcome.stderr);
        assert_eq!(outcome.stdout, "the rest\n");
        assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
    }
}

#[test]
fn exit_codes_of_refusals_are_dockers() {
    let gateway = Gateway::start();
    for (arguments, code) in [
        (&["run", "debian", "refused", "COMMAND_NOT_FOUND"][..], 127),
        (&["run", "debian", "refused", "COMMAND_NOT_EXECUTABLE"], 126),
        (&["run", "debian", "refused", "IMAGE_NOT_FOUND"], 125),
        (&["run", "debian", "vanish"], 125),
        (&["run", "--frobnicate", "debian"], 125),
        (&["run", "-m", "5x", "debian"], 125),
        (&["run", "-p", "99999:80", "debian"], 125),
        (&["run", "--rm", "--restart", "always", "debian"], 125),
        (&["run", "-it", "debian", "exit", "0"], 1),
        (&["run", "-d", "-a", "stdout", "debian"], 1),
        (&["run", "--restart", "bogus", "debian"], 125),
        (&["create", "--restart", "bogus", "debian"], 1),
        (&["run"], 1),
        (&["ps", "web"], 1),
        (&["ps", "--frobnicate"], 125),
        (&["frobnicate"], 1),
        (&["inspect", "nothing"], 1),
        (&["rm", "nothing"], 1),
        (&["rm", "-f", "nothing"], 0),
    ] {
        let outcome = gateway.gantry(arguments);
        assert_eq!(outcome.code, Some(code), "{arguments:?}: {outcome:?}");
        assert_eq!(
            outcome.stderr.lines().count(),
            1,
            "{arguments:?}: {outcome:?}"
        );
        assert!(outcome.stderr.starts_with("gantry: "), "{outcome:?}");
    }
}

#[test]
fn one_failure_of_many_does_not_stop_the_others() {
    let gateway = Gateway::start();
    for verb in ["rm", "stop"] {
        let outcome = gateway.gantry(&[verb, "web", "nothing", "0123"]);
        assert_eq!(outcome.stdout, "web\n0123\n");
        assert_eq!(
            outcome.stderr,
            "gantry: there is no container \"nothing\"\n"
        );
        assert_eq!(outcome.code, Some(1));
    }
    let outcome = gateway.gantry(&["wait", "web"]);
    assert_eq!((outcome.stdout.as_str(), outcome.code), ("7\n", Some(0)));
}

#[test]
fn ps_is_a_table_as_dockers() {
    let gateway = Gateway::start();
    let lines: Vec<String> = gateway
        .gantry(&["ps"])
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        lines[0],
        "CONTAINER ID IMAGE COMMAND CREATED STATUS PORTS NAMES"
    );
    assert!(lines[1].starts_with("0123456789ab debian:12 \"sleep a-long-argume…\" "));
    assert!(
        lines[1].ends_with(" years 0.0.0.0:8080->80/tcp web"),
        "{}",
        lines[1]
    );
    for (arguments, expected) in [
        (&["ps", "-q"][..], "0123456789ab\n".to_owned()),
        (&["ps", "-q", "--no-trunc"], format!("{ID}\n")),
        (
            &[
                "ps",
                "--format",
                "{{.Names}} {{.State}} {{.Label \"tier\"}}",
            ],
            "web running front\n".to_owned(),
        ),
        (
            &[
                "container",
                "ls",
                "--format",
                "table {{.Names}}\\t{{.Image}}",
            ],
            "NAMES     IMAGE\nweb       debian:12\n".to_owned(),
        ),
        (
            &["images", "--format", "{{.Repository}}:{{.Tag}} {{.Size}}"],
            "debian:12 125MB\n".to_owned(),
        ),
        (&["image", "ls", "-q"], "0123456789ab\n".to_owned()),
        (&["port", "web"], "80/tcp -> 0.0.0.0:8080\n".to_owned()),
        (&["port", "web", "80"], "0.0.0.0:8080\n".to_owned()),
        (
            &[
                "inspect",
                "-f",
                "{{.State.Pid}} {{.NetworkSettings.IPAddress}} {{.Name}} {{.Path}} {{join .Args \",\"}}",
                "web",
            ],
            "42 10.66.0.5 /web /init sleep,a-long-argument-to-cut\n".to_owned(),
        ),
        (
            &[
                "inspect",
                "-f",
                "{{json .Config.Entrypoint}} {{json .Config.Cmd}}",
                "web",
            ],
            "[\"/init\"] [\"sleep\",\"a-long-argument-to-cut\"]\n".to_owned(),
        ),
        (
            &[
                "inspect",
                "-f",
                "{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}",
                "web",
            ],
            "8080\n".to_owned(),
        ),
    ] {
        let outcome = gateway.gantry(arguments);
        assert_eq!(
            outcome.stdout, expected,
            "{arguments:?}: {}",
            outcome.stderr
        );
    }
}

#[test]
fn inspect_prints_an_array_also_where_something_is_missing() {
    let gateway = Gateway::start();
    let outcome = gateway.gantry(&["inspect", "web", "nothing"]);
    let shown: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(shown[0]["Id"], ID);
    assert_eq!(shown[0]["State"]["Status"], "running");
    assert_eq!(shown[0]["State"]["StartedAt"], "2020-01-01T00:00:01.5Z");
    assert_eq!(
        shown[0]["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"],
        "8080"
    );
    assert_eq!(shown.as_array().unwrap().len(), 1);
    assert_eq!(outcome.code, Some(1));
    let outcome = gateway.gantry(&["inspect", "nothing"]);
    assert_eq!(outcome.stdout, "[]\n");
}

#[test]
fn logs_keep_streams_and_lines_apart() {
    let gateway = Gateway::start();
    let outcome = gateway.gantry(&["logs", "-t", "--tail", "5", "web"]);
    let time = "2020-01-01T00:00:00.000000005Z";
    assert_eq!(outcome.stdout, format!("{time} one\n{time} half line\n"));
    assert_eq!(outcome.stderr, format!("{time} wrong\n"));
    let outcome = gateway.gantry(&["logs", "web"]);
    assert_eq!(outcome.stdout, "one\nhalf line\n");
}

#[test]
fn a_pull_tells_what_docker_tells() {
    let gateway = Gateway::start();
    let outcome = gateway.gantry(&["pull", "debian:12"]);
    assert_eq!(
        outcome.stdout,
        format!(
            "12: Pulling from library/debian\n0123456789ab: Pulling fs layer\n0123456789ab: Download complete\n0123456789ab: Pull complete\nDigest: sha256:{ID}\nStatus: Downloaded newer image for debian:12\ndocker.io/library/debian:12\n"
        )
    );
    let outcome = gateway.gantry(&["pull", "-q", "debian:12"]);
    assert_eq!(outcome.stdout, "docker.io/library/debian:12\n");
    let outcome = gateway.gantry(&["pull", "Debian:"]);
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome.stderr.starts_with("gantry: image reference"),
        "{outcome:?}"
    );
}

#[test]
fn import_reads_a_file_or_standard_input() {
    let gateway = Gateway::start();
    let archive = vec![7; 1_000_000];
    let outcome = gateway.gantry_with_input(&["import", "-", "a:1"], &archive);
    assert_eq!(outcome.stdout, "sha256:1000000\n");
    let file = gateway.path("archive.tar");
    std::fs::write(&file, &archive).unwrap();
    let outcome = gateway.gantry(&["import", file.to_str().unwrap()]);
    assert_eq!(outcome.stdout, "sha256:1000000\n");
    let outcome = gateway.gantry(&["import", "/nonexistent.tar"]);
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("/nonexistent.tar"), "{outcome:?}");
}

#[test]
fn the_trace_of_a_start_is_a_table() {
    let gateway = Gateway::start();
    let outcome = gateway.gantry(&["trace", "web"]);
    assert!(
        outcome.stdout.contains("image.prepare   0.00 ms   2.50 ms"),
        "{outcome:?}"
    );
}

#[test]
fn an_engine_that_is_not_there_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_str().unwrap();
    let outcome = Command::new(env!("CARGO_BIN_EXE_gantry"))
        .args(["--root", root, "ps"])
        .output()
        .unwrap();
    let text = String::from_utf8(outcome.stderr).unwrap();
    assert!(
        text.contains(&format!(
            "cannot reach the engine at {root}/run/gateway.sock"
        )),
        "{text}"
    );
    assert!(text.contains("gantry up"), "{text}");
    assert_eq!(outcome.status.code(), Some(1));
}

#[test]
fn a_completion_script_is_written_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let outcome = Command::new(env!("CARGO_BIN_EXE_gantry"))
            .args(["completion", shell])
            .output()
            .unwrap();
        assert!(
            String::from_utf8(outcome.stdout)
                .unwrap()
                .contains("gantry")
        );
    }
}

#[test]
fn a_search_is_a_table_with_the_most_liked_first() {
    let gateway = Gateway::start();
    let outcome = gateway.gantry(&["search", "web"]);
    assert_eq!(
        outcome.stdout,
        "NAME      DESCRIPTION   STARS     OFFICIAL\n\
         many      web of 25     70        [OK]\n\
         some      web of 25     9         \n\
         few       web of 25     3         \n"
    );
    let outcome = gateway.gantry(&[
        "search",
        "--limit=7",
        "--filter=is-official",
        "-s",
        "3",
        "--automated",
        "web",
    ]);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert!(lines[0].ends_with("OFFICIAL   AUTOMATED"), "{outcome:?}");
    assert!(lines[2].ends_with("[OK]"), "{outcome:?}");
    let asked: Vec<&str> = lines[4..]
        .iter()
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(asked, ["is-official=true", "stars=3", "is-automated=true"]);
    assert!(lines[1].contains("web of 7"));
    let outcome = gateway.gantry(&["search", "--limit", "0", "web"]);
    assert_eq!(outcome.code, Some(125));
}

#[test]
fn credentials_are_kept_sent_along_and_forgotten() {
    let gateway = Gateway::start();
    let login = |user: &str, password: &str, server: &str| {
        let words = ["login", "-u", user, "--password-stdin", server];
        gateway.gantry_with_input(&words, password.as_bytes())
    };
    let file = gateway.path("docker").join("config.json");
    let outcome = login("ann", "x", "r.example");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("r.example does not know you"));
    assert!(!file.exists());
    let outcome = login("bob", "secret\n", "https://r.example:5000/v1/");
    assert_eq!(outcome.stdout, "Login Succeeded\n", "{outcome:?}");
    let outcome = login("bob", "for-a-token", "docker.io");
    assert_eq!(outcome.stdout, "Login Succeeded\n", "{outcome:?}");

    let sent = |image: &str| {
        gateway.gantry(&["run", "-d", image, "exit", "0"]);
        gateway.seen.last().auth
    };
    let auth = sent("r.example:5000/a").unwrap();
    assert_eq!(
        (auth.username.as_str(), auth.password.as_str()),
        ("bob", "secret")
    );
    let auth = sent("debian").unwrap();
    assert_eq!(
        (auth.identity_token.as_str(), auth.password.as_str()),
        ("tok", "")
    );
    assert_eq!(sent("other.example/a"), None);

    let out = |words: &[&str]| gateway.gantry(words).stdout;
    assert_eq!(
        out(&["logout"]),
        "Removing login credentials for https://index.docker.io/v1/\n"
    );
    assert_eq!(
        out(&["logout", "r.example"]),
        "Not logged in to r.example\n"
    );
    assert_eq!(sent("debian"), None);
    assert!(sent("r.example:5000/a").is_some());
    // A file that is damaged stops a login before anything is asked, and nothing else.
    std::fs::write(&file, "{").unwrap();
    let outcome = login("bob", "secret", "r.example");
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("config.json"), "{outcome:?}");
    let outcome = gateway.gantry(&["run", "debian", "echo", "hi"]);
    assert_eq!(outcome.stdout, "hi\n");
    assert!(outcome.stderr.contains("warning"), "{outcome:?}");
}

#[test]
fn a_credential_helper_gets_no_descriptor_that_the_command_inherited() {
    let gateway = Gateway::start();
    let docker = gateway.path("docker");
    std::fs::create_dir_all(&docker).unwrap();
    std::fs::write(docker.join("config.json"), r#"{"credsStore": "probe"}"#).unwrap();
    let helper = docker.join("docker-credential-probe");
    let said = docker.join("said");
    let script = format!(
        "#!/bin/sh\nexec > {}\nls -l /proc/self/fd\nexec grep -E '^Sig(Blk|Ign)' /proc/self/status\n",
        said.display()
    );
    std::fs::write(&helper, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&helper, mode).unwrap();
    let marker = tempfile::NamedTempFile::new().unwrap();
    rustix::io::fcntl_setfd(marker.as_file(), rustix::io::FdFlags::empty()).unwrap();
    let path = format!("{}:{}", docker.display(), std::env::var("PATH").unwrap());
    let mut command = gateway.command(&["run", "-d", "debian", "exit", "0"]);
    command.env("PATH", path).output().unwrap();
    let said = std::fs::read_to_string(said).unwrap();
    let marker = marker.path().to_string_lossy().into_owned();
    assert!(!said.contains(&marker), "{said}");
    let mask = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
    };
    assert_eq!(mask("SigBlk:"), 0);
    // The standard library ignores SIGPIPE, and its children must not.
    assert_eq!(mask("SigIgn:") >> (Signal::SIGPIPE as i32 - 1) & 1, 0);
}
