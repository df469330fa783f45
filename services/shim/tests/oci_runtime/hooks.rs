//! What surrounds the life of a container: hooks, descriptors, sockets.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};

use crate::bundle::{Bundle, receive_descriptor};
use crate::tests;

pub const TESTS: &[crate::Test] = tests![
    a_hook_in_the_containers_mounts_finds_the_root_in_the_bundle,
    a_hook_without_an_environment_has_the_runtimes_or_the_programs,
    a_hook_gets_default_signals_and_no_descriptor_of_the_runtime,
    a_failing_poststart_hook_ends_the_container,
    a_failing_poststop_hook_is_a_warning,
    no_descriptor_of_the_runtime_passes_for_one_of_the_callers,
    sockets_of_the_caller_are_told_to_the_program,
    a_terminal_goes_to_the_console_socket,
    a_filter_that_notifies_sends_its_descriptor_to_the_listener,
    what_can_not_be_done_is_said_clearly,
];

fn a_hook_in_the_containers_mounts_finds_the_root_in_the_bundle() {
    let mut bundle = Bundle::script("cat /data/from-hook");
    // In the container's own mount namespace, with the bundle as working directory.
    bundle.config["hooks"]["createContainer"] = json!([{"path": "/bin/sh", "args": ["sh", "-c",
        "test -e rootfs/proc/self && test -c rootfs/dev/null && echo hello > rootfs/data/from-hook"]}]);
    assert_eq!(bundle.output(), "hello\n");
}

fn a_hook_without_an_environment_has_the_runtimes_or_the_programs() {
    let mut bundle = Bundle::script("cat /data/start");
    bundle.config["process"]["env"] = json!(["PATH=/bin", "ONE=two"]);
    let host = bundle.root().join("data/runtime");
    bundle.config["hooks"]["createRuntime"] = json!([{"path": "/bin/sh", "args": ["sh", "-c",
        format!("echo $GANTRY_TEST_HOOK > {}", host.display())]}]);
    bundle.config["hooks"]["startContainer"] = json!([{"path": "/bin/sh", "args": ["sh", "-c",
        "echo $ONE $GANTRY_TEST_HOOK > /data/start"]}]);
    let directory = bundle.directory.path().to_str().unwrap().to_owned();
    let output = bundle
        .command(&["run", "-b", &directory, &bundle.id])
        .env("GANTRY_TEST_HOOK", "inherited")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "two\n");
    assert_eq!(std::fs::read_to_string(host).unwrap(), "inherited\n");
}

/// `run` in the foreground blocks signals; what it inherits is the caller's.
fn a_hook_gets_default_signals_and_no_descriptor_of_the_runtime() {
    let mut bundle = Bundle::script("true");
    let said = bundle.root().join("data/said");
    let hook = |name: &str| {
        json!([{"path": "/bin/sh", "args": ["sh", "-c", format!(
            "exec >> {}; echo {name}; \
             for fd in 3 4 5 6 7 8 9; do test -e /proc/self/fd/$fd && echo $fd; done; \
             exec grep -E '^Sig(Blk|Ign)' /proc/self/status",
            said.display())]}])
    };
    let kinds = ["createRuntime", "createContainer", "poststart", "poststop"];
    for kind in kinds {
        bundle.config["hooks"][kind] = hook(kind);
    }
    let directory = bundle.directory.path().to_str().unwrap().to_owned();
    let oci = bundle.command(&["run", "-b", &directory, &bundle.id]);
    let mut words = vec![oci.get_program().to_str().unwrap().to_owned()];
    words.extend(oci.get_args().map(|word| word.to_str().unwrap().to_owned()));
    let script = format!("trap '' USR1 HUP; exec {} 3</ 7</", words.join(" "));
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let defaults = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";
    let expected: String = kinds
        .iter()
        .map(|kind| format!("{kind}\n{defaults}"))
        .collect();
    assert_eq!(std::fs::read_to_string(said).unwrap(), expected);
}

fn a_failing_poststart_hook_ends_the_container() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["hooks"]["poststart"] = json!([{"path": "/bin/false"}]);
    let error = bundle.failure();
    assert!(error.contains("poststart hook"), "{error}");
    let directory = bundle.directory.path().to_str().unwrap().to_owned();
    let mut create = bundle.command(&["create", "-b", &directory, &bundle.id]);
    create
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    assert!(create.status().unwrap().success());
    assert!(!bundle.oci(&["start", &bundle.id]).status.success());
    // It is gone, and so is the id; the drop of the bundle looks for the rest.
    let state = bundle.oci(&["state", &bundle.id]);
    assert!(String::from_utf8_lossy(&state.stderr).contains("does not exist"));
}

fn a_failing_poststop_hook_is_a_warning() {
    let mut bundle = Bundle::script("true");
    let mark = bundle.root().join("data/second");
    bundle.config["hooks"]["poststop"] = json!([
        {"path": "/bin/false"},
        {"path": "/bin/sh", "args": ["sh", "-c", format!("echo > {}", mark.display())]},
    ]);
    let output = bundle.run();
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("warning: poststop hook"), "{text}");
    assert!(mark.exists(), "the hooks behind it run all the same");
}

/// The kin of CVE-2024-21626: `--preserve-fds` beyond what the caller has would name descriptors of the runtime.
fn no_descriptor_of_the_runtime_passes_for_one_of_the_callers() {
    let bundle = Bundle::script("ls /proc/self/fd | tr '\\n' ' '; readlink /proc/self/fd/3");
    let directory = bundle.directory.path().to_str().unwrap().to_owned();
    let run = ["run", "--preserve-fds", "30", "-b", &directory, &bundle.id];
    let output = bundle.oci(&run);
    let text = String::from_utf8_lossy(&output.stdout);
    // 3 is the directory that ls reads, and nothing when readlink looks.
    assert_eq!(text, "0 1 2 3 ", "{output:?}");
    let exec = Bundle::new(&["sleep", "1000"]);
    let directory = exec.directory.path().to_str().unwrap().to_owned();
    assert!(
        exec.command(&["run", "-d", "-b", &directory, &exec.id])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let output = exec.oci(&[
        "exec",
        "--preserve-fds",
        "30",
        &exec.id,
        "ls",
        "/proc/self/fd",
    ]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n1\n2\n3\n");
    assert!(exec.oci(&["delete", "-f", &exec.id]).status.success());
}

fn sockets_of_the_caller_are_told_to_the_program() {
    let bundle = Bundle::script("echo $LISTEN_FDS $LISTEN_PID $$; cat <&3");
    std::fs::write(bundle.directory.path().join("passed"), "passed\n").unwrap();
    let directory = bundle.directory.path().to_str().unwrap().to_owned();
    let oci = bundle.command(&["run", "-b", &directory, &bundle.id]);
    // A shell, because it is the shell that opens a file as number 3.
    let mut words = vec![oci.get_program().to_str().unwrap().to_owned()];
    words.extend(oci.get_args().map(|word| word.to_str().unwrap().to_owned()));
    let output = std::process::Command::new("sh")
        .args([
            "-c",
            &format!("exec {} 3<{directory}/passed", words.join(" ")),
        ])
        .env("LISTEN_FDS", "1")
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "1 1 1\npassed\n",
        "{output:?}"
    );
}

fn a_terminal_goes_to_the_console_socket() {
    let mut bundle = Bundle::script("stty size; test -t 0 && echo terminal");
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({"width": 99, "height": 33});
    let socket = bundle.directory.path().join("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let directory = bundle.directory.path().to_str().unwrap().to_owned();
    let pid_file = bundle.directory.path().join("pid");
    let run = [
        "run",
        "--detach",
        "--console-socket",
        socket.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
        "-b",
        &directory,
        &bundle.id,
    ];
    let output = bundle.oci(&run);
    assert!(output.status.success(), "{output:?}");
    let (_, master) = receive_descriptor(&listener.accept().unwrap().0);
    let mut text = String::new();
    let mut buffer = [0_u8; 256];
    while let Ok(length @ 1..) = rustix::io::read(&master, &mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    assert_eq!(text, "33 99\r\nterminal\r\n");
    assert!(
        std::fs::read_to_string(pid_file)
            .unwrap()
            .parse::<i32>()
            .is_ok()
    );
    assert!(bundle.oci(&["delete", "-f", &bundle.id]).status.success());
}

fn a_filter_that_notifies_sends_its_descriptor_to_the_listener() {
    let mut bundle = Bundle::script("mkdir /data/x");
    let socket = bundle.directory.path().join("listener");
    let listener = UnixListener::bind(&socket).unwrap();
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": socket,
        "listenerMetadata": "told",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    });
    let directory = bundle.directory.path().to_str().unwrap().to_owned();
    let running = bundle
        .command(&["run", "-b", &directory, &bundle.id])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let (text, descriptor): (String, OwnedFd) = receive_descriptor(&listener.accept().unwrap().0);
    let state: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert_eq!(state["metadata"], "told");
    assert_eq!(state["state"]["id"], json!(bundle.id));
    assert_eq!(state["state"]["status"], "creating");
    let number = std::os::fd::AsRawFd::as_raw_fd(&descriptor);
    let link = std::fs::read_link(format!("/proc/self/fd/{number}")).unwrap();
    assert_eq!(link.to_str().unwrap(), "anon_inode:seccomp notify");
    // Nobody will answer: then the call does not exist.
    drop(descriptor);
    let output = running.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("Function not implemented"), "{text}");
}

fn what_can_not_be_done_is_said_clearly() {
    let bundle = Bundle::script("true");
    for (arguments, expected) in [
        (&["checkpoint", "x"][..], "checkpoint is not supported here"),
        (&["restore", "x"], "restore is not supported here"),
        (&["--log", "syslog:x", "list"], "the log goes to a file"),
        (&["state", "a/b"], "invalid character"),
        (&["exec", "--cap", "CAP_NONSENSE", "x", "true"], "x"),
    ] {
        let output = bundle.oci(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(text.starts_with("gantry-oci: error: "), "{text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
    let help = bundle.oci(&["exec", "--help"]);
    let text = String::from_utf8_lossy(&help.stdout);
    assert!(
        text.starts_with("Usage: gantry-oci") && text.contains("exec [-d]"),
        "{text}"
    );
    let features = bundle.oci(&["features"]);
    let features: Value = serde_json::from_slice(&features.stdout).unwrap();
    assert_eq!(features["linux"]["cgroup"]["v1"], true);
}
