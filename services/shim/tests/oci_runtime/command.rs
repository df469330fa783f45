//! Through the command, as engines do.

use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::tests;

pub const TESTS: &[crate::Test] = tests![
    run_gives_the_programs_exit_code,
    the_verbs_of_a_life_in_their_order,
    an_id_is_used_once,
    exec_passes_options_and_code_on,
    exec_begins_and_stays_on_the_cpus_that_it_is_given,
    limits_are_set_and_updated,
    a_running_container_is_deleted_only_by_force,
    hooks_run_at_their_moments,
    a_failing_hook_undoes_the_creation,
    bad_specifications_are_refused_in_one_line,
    errors_are_logged_as_json,
    mounts_have_their_options,
    rlimits_and_oom_score_are_set,
    sysctls_are_the_containers_own,
    devices_that_are_not_allowed_can_not_be_used,
    a_hundred_containers_leave_nothing,
];

fn run_gives_the_programs_exit_code() {
    let bundle = Bundle::script("exit 42");
    assert_eq!(bundle.run().status.code(), Some(42));
    let bundle = Bundle::new(&["no-such-program"]);
    assert!(
        bundle
            .failure()
            .contains("executable file not found in $PATH")
    );
}

fn state(bundle: &Bundle) -> Value {
    let output = bundle.oci(&["state", &bundle.id]);
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

fn until_stopped(bundle: &Bundle) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while state(bundle)["status"] != "stopped" {
        assert!(std::time::Instant::now() < deadline, "it does not stop");
    }
}

fn start(bundle: &Bundle) {
    let directory = bundle.directory.path().to_str().unwrap();
    for arguments in [
        &["create", "-b", directory, &bundle.id][..],
        &["start", &bundle.id],
    ] {
        // Its output is the container's, which lives on: not a pipe to be read to its end.
        let mut command = bundle.command(arguments);
        command.stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::null());
        assert!(command.status().unwrap().success(), "{arguments:?}");
    }
}

fn delete(bundle: &Bundle) {
    let output = bundle.oci(&["delete", "-f", &bundle.id]);
    assert!(output.status.success(), "{output:?}");
}

fn the_verbs_of_a_life_in_their_order() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let pid_file = bundle.directory.path().join("pid");
    let mut create = bundle.command(&[
        "create",
        "--bundle",
        bundle.directory.path().to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
        &bundle.id,
    ]);
    create.stdout(std::process::Stdio::null());
    create.stderr(std::process::Stdio::null());
    assert!(create.status().unwrap().success());
    let pid = std::fs::read_to_string(pid_file).unwrap();
    assert_eq!(state(&bundle)["status"], "created");
    assert_eq!(state(&bundle)["pid"].to_string(), pid);
    let verb = |name: &str| bundle.oci(&[name, &bundle.id]).status.success();
    assert!(verb("start"));
    assert!(!verb("start"), "twice");
    assert_eq!(state(&bundle)["status"], "running");
    assert!(verb("pause"));
    assert_eq!(state(&bundle)["status"], "paused");
    assert!(verb("resume"));
    let list = bundle.oci(&["list", "-q"]);
    assert_eq!(String::from_utf8_lossy(&list.stdout).trim(), bundle.id);
    let ps = bundle.oci(&["ps", "-f", "json", &bundle.id]);
    assert_eq!(
        String::from_utf8_lossy(&ps.stdout).trim(),
        format!("[{pid}]")
    );
    assert!(bundle.oci(&["kill", &bundle.id, "KILL"]).status.success());
    until_stopped(&bundle);
    let again = bundle.oci(&["kill", &bundle.id, "KILL"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("container not running"));
    assert!(verb("delete"));
    let gone = bundle.oci(&["state", &bundle.id]);
    assert!(String::from_utf8_lossy(&gone.stderr).contains("does not exist"));
}

fn an_id_is_used_once() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    start(&bundle);
    assert!(bundle.failure().contains("exists already"));
    assert_eq!(state(&bundle)["status"], "running", "the first is not hurt");
    delete(&bundle);
}

fn exec_passes_options_and_code_on() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    start(&bundle);
    let exec = |options: &[&str], script: &str| {
        let mut arguments = vec!["exec"];
        arguments.extend(options);
        arguments.extend([bundle.id.as_str(), "sh", "-c", script]);
        let output = bundle.oci(&arguments);
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    assert_eq!(exec(&[], "exit 9").0, Some(9));
    assert_eq!(exec(&[], "kill -KILL $$").0, Some(137));
    assert_eq!(exec(&["--cwd", "/data"], "pwd").1, "/data\n");
    assert_eq!(exec(&["-e", "X=1", "--env", "Y=2"], "echo $X$Y").1, "12\n");
    assert_eq!(exec(&["-u", "5:6"], "id -u; id -g").1, "5\n6\n");
    assert_eq!(exec(&["--user", "alice"], "id -u").1, "1000\n");
    let with = exec(&["--cap", "CAP_NET_RAW"], "grep CapEff /proc/self/status").1;
    assert!(with.contains("2420"), "{with}");
    delete(&bundle);
}

fn exec_begins_and_stays_on_the_cpus_that_it_is_given() {
    let own = rustix::thread::sched_getaffinity(None).unwrap();
    let cpus: Vec<usize> = (0..64).filter(|cpu| own.is_set(*cpu)).collect();
    let (first, last) = (cpus[0], cpus[cpus.len() - 1]);
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    let affinity = json!({"initial": first.to_string(), "final": last.to_string()});
    bundle.config["process"]["execCPUAffinity"] = affinity;
    start(&bundle);
    let allowed = [
        "grep",
        "Cpus_allowed_list",
        "/proc/self/status",
        "/proc/1/status",
    ];
    let exec = bundle.oci(&[&["--debug", "exec", &bundle.id], &allowed[..]].concat());
    let output = String::from_utf8_lossy(&exec.stdout);
    let lists: Vec<&str> = output
        .lines()
        .filter_map(|line| line.split('\t').nth(1))
        .collect();
    assert_eq!(lists[0], last.to_string(), "{output}");
    let errors = String::from_utf8_lossy(&exec.stderr);
    assert!(
        errors.ends_with(&format!("affinity: {:#x}\n", 1_u64 << first)),
        "{errors}"
    );
    if cpus.len() > 1 {
        assert_ne!(
            lists[1],
            last.to_string(),
            "the first process has no part in it: {output}"
        );
    }
    // One that no machine of ours has; and one that is no list.
    for (list, said) in [("1023", "none of these CPUs"), ("1-", "\"1-\"")] {
        let mut process = bundle.config["process"].clone();
        process["execCPUAffinity"] = json!({"final": list});
        let path = bundle.directory.path().join("process.json");
        std::fs::write(&path, process.to_string()).unwrap();
        let refused = bundle.oci(&["exec", "-p", path.to_str().unwrap(), &bundle.id]);
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(error.contains("process.execCPUAffinity.final: "), "{error}");
        assert!(error.contains(said), "{error}");
    }
    delete(&bundle);
}

fn limits_are_set_and_updated() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["linux"]["resources"]["pids"] = json!({"limit": 33});
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 64 << 20});
    bundle.config["linux"]["resources"]["cpu"] = json!({"quota": 50_000, "period": 100_000});
    start(&bundle);
    let stats = || -> Value {
        let output = bundle.oci(&["events", "--stats", &bundle.id]);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(stats()["data"]["pids"]["limit"], 33);
    assert_eq!(stats()["data"]["memory"]["usage"]["limit"], 64 << 20);
    let update = bundle.oci(&[
        "update",
        "--pids-limit",
        "44",
        "--memory",
        "32m",
        &bundle.id,
    ]);
    assert!(update.status.success(), "{update:?}");
    assert_eq!(stats()["data"]["pids"]["limit"], 44);
    assert_eq!(stats()["data"]["memory"]["usage"]["limit"], 32 << 20);
    delete(&bundle);
}

fn a_running_container_is_deleted_only_by_force() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    start(&bundle);
    assert!(!bundle.oci(&["delete", &bundle.id]).status.success());
    delete(&bundle);
    delete(&bundle);
}

/// One that appends its name and the state, in one write: the program writes beside `poststart`.
fn hook(name: &str, file: &str) -> Value {
    json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("printf '{name}\\n%s\\n' \"$(cat)\" >> {file}")]}])
}

fn hooks_run_at_their_moments() {
    let mut bundle = Bundle::script("echo program >> /data/log");
    let host = bundle.root().join("data/log");
    let host = host.to_str().unwrap().to_owned();
    for name in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        bundle.config["hooks"][name] = hook(name, &host);
    }
    bundle.config["hooks"]["startContainer"] = hook("startContainer", "/data/log");
    assert!(bundle.run().status.success());
    let log = std::fs::read_to_string(&host).unwrap();
    let order: Vec<&str> = log.lines().filter(|line| !line.starts_with('{')).collect();
    // The program and poststart run side by side.
    let order: Vec<&str> = order
        .into_iter()
        .filter(|line| *line != "program")
        .collect();
    assert_eq!(
        order,
        [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop"
        ]
    );
    let states: Vec<Value> = log
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(states.iter().all(|state| state["id"] == json!(bundle.id)));
    assert_eq!(states[0]["status"], "creating");
    assert_eq!(states[5]["status"], "stopped");
}

fn a_failing_hook_undoes_the_creation() {
    for kind in [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
    ] {
        let mut bundle = Bundle::script("true");
        let path = if kind == "startContainer" {
            "/bin/false-not-there"
        } else {
            "/bin/false"
        };
        bundle.config["hooks"][kind] = json!([{"path": path}]);
        let error = bundle.failure();
        assert!(error.contains(&format!("{kind} hook")), "{error}");
    }
}

fn bad_specifications_are_refused_in_one_line() {
    let cases: [(&str, Value, &str); 9] = [
        ("/process/args", json!([]), "process.args"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/root/path", json!("nowhere"), "root.path"),
        ("/ociVersion", json!("2.0.0"), "ociVersion"),
        (
            "/linux/rootfsPropagation",
            json!("sideways"),
            "rootfsPropagation",
        ),
        (
            "/linux/sysctl",
            json!({"vm.swappiness": "1"}),
            "would change the host",
        ),
        ("/linux/cgroupsPath", json!("/"), "cgroupsPath"),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 1, "size": 1}]),
            "user namespace",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]),
            "rlimits",
        ),
    ];
    for (pointer, value, expected) in cases {
        let mut bundle = Bundle::script("true");
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        bundle.config.pointer_mut(parent).unwrap()[key] = value;
        let error = bundle.failure();
        assert!(error.contains(expected), "{pointer}: {error}");
        assert_eq!(error.trim().lines().count(), 1, "{error}");
    }
}

fn errors_are_logged_as_json() {
    let bundle = Bundle::new(&["no-such-program"]);
    let log = bundle.directory.path().join("log.json");
    let output = bundle.oci(&[
        "--log",
        log.to_str().unwrap(),
        "--log-format=json",
        "run",
        "-b",
        bundle.directory.path().to_str().unwrap(),
        &bundle.id,
    ]);
    assert_eq!(output.status.code(), Some(1));
    let entry: Value = serde_json::from_str(&std::fs::read_to_string(log).unwrap()).unwrap();
    assert_eq!(entry["level"], "error");
    assert!(
        entry["msg"]
            .as_str()
            .unwrap()
            .contains("executable file not found")
    );
}

fn mounts_have_their_options() {
    let mut bundle = Bundle::script(
        "grep -E ' /(data|scratch|new/dir|file) ' /proc/self/mounts; cat /file; echo x > /data/x || true",
    );
    let source = bundle.directory.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(bundle.directory.path().join("one-file"), "content\n").unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/data", "source": source, "options": ["rbind", "ro", "nosuid", "noexec", "noatime"]}));
    mounts.push(json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=1777", "nodev"]}));
    mounts.push(json!({"destination": "/new/dir", "source": "source", "options": ["bind"]}));
    mounts.push(json!({"destination": "/file", "source": "one-file", "options": ["bind", "ro"]}));
    let output = bundle.output();
    let line = |path: &str| {
        output
            .lines()
            .find(|line| line.contains(&format!(" {path} ")))
            .unwrap_or_else(|| panic!("{path}: {output}"))
            .to_owned()
    };
    assert!(
        line("/data").contains(" ro,nosuid,noexec,noatime"),
        "{output}"
    );
    assert!(
        line("/scratch").contains("rw,nodev,relatime,size=64k"),
        "{output}"
    );
    assert!(line("/new/dir").contains(" rw,"), "{output}");
    assert!(line("/file").contains(" ro,"), "{output}");
    assert!(output.contains("\ncontent\n"), "{output}");
    assert!(
        !source.join("x").exists(),
        "written through a read-only mount"
    );
}

fn rlimits_and_oom_score_are_set() {
    let mut bundle = Bundle::script("ulimit -n; ulimit -c; cat /proc/self/oom_score_adj");
    bundle.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 123, "hard": 456}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]);
    bundle.config["process"]["oomScoreAdj"] = json!(500);
    assert_eq!(bundle.output(), "123\n0\n500\n");
}

fn sysctls_are_the_containers_own() {
    let own = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let before = std::fs::read_to_string(own).unwrap();
    let mut bundle = Bundle::script(&format!("cat {own}"));
    bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_unprivileged_port_start": "77"});
    assert_eq!(bundle.output(), "77\n");
    assert_eq!(std::fs::read_to_string(own).unwrap(), before);
}

fn devices_that_are_not_allowed_can_not_be_used() {
    let mut bundle = Bundle::script(
        "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem 2>&1; head -c 3 /dev/zero | wc -c",
    );
    bundle.capabilities(&["CAP_MKNOD", "CAP_SYS_RAWIO", "CAP_DAC_OVERRIDE"]);
    let output = bundle.output();
    assert!(output.contains("Operation not permitted"), "{output}");
    assert!(output.ends_with("3\n"), "{output}");
}

fn a_hundred_containers_leave_nothing() {
    let bundle = Bundle::new(&["true"]);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for _ in 0..100 {
        let (created, _reader) = bundle.create(|_| {});
        let mut created = created.unwrap();
        created.container.start().unwrap();
        assert_eq!(crate::bundle::finish(&created), (0, 0));
    }
    assert_eq!(descriptors(), before);
}
