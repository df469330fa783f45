//! Through the library, as the shim does.

use std::os::fd::AsFd;
use std::path::PathBuf;

use gantry_shim::container::{
    Container, Error, ExecOptions, Gate, Overlay, Status, Stdio, Target, TerminalSize,
};
use oci_spec::runtime::{LinuxSeccomp, Process};
use serde_json::json;

use crate::bundle::{Bundle, finish, read_all};
use crate::tests;

pub const TESTS: &[crate::Test] = tests![
    a_program_runs_and_its_code_comes_back,
    layers_are_seen_as_one_and_writes_go_to_the_top,
    more_layers_than_one_overlay_takes_are_seen_as_one,
    a_missing_program_is_told_before_start,
    a_user_name_is_looked_up_in_the_containers_own_files,
    a_missing_working_directory_is_made_if_asked_for,
    a_missing_mount_source_is_told_and_nothing_is_left,
    a_terminal_has_its_size_from_the_first_byte,
    a_process_enters_every_namespace_and_the_cgroup,
    exec_tells_absent_from_not_executable,
    another_process_can_start_through_the_gate,
    memory_that_is_wanting_is_counted,
    killing_all_ends_what_left_the_session,
    a_filter_denies_what_its_profile_denies,
    signals_are_at_their_defaults,
    no_descriptor_of_the_caller_reaches_the_program,
    a_user_namespace_maps_root_to_somebody_else,
];

fn a_program_runs_and_its_code_comes_back() {
    let bundle = Bundle::script("echo hello; exit 7");
    let (created, reader) = bundle.create(|_| {});
    let mut created = created.unwrap();
    assert_eq!(created.container.status().unwrap(), Status::Created);
    assert!(!created.timings.is_empty());
    created.container.start().unwrap();
    assert_eq!(read_all(reader), "hello\n");
    assert_eq!(finish(&created), (7, 0));
}

fn layers_are_seen_as_one_and_writes_go_to_the_top() {
    let bundle = Bundle::script("cat /data/file; echo new > /data/written");
    std::fs::write(bundle.root().join("data/file"), "below").unwrap();
    let overlay = bundle.overlay();
    std::fs::create_dir(overlay.lower[0].join("data")).unwrap();
    std::fs::write(overlay.lower[0].join("data/file"), "above").unwrap();
    let upper = overlay.upper.clone().unwrap();
    let (created, reader) = bundle.create(|options| options.overlay = Some(overlay));
    let mut created = created.unwrap();
    created.container.start().unwrap();
    assert_eq!(read_all(reader), "above");
    assert_eq!(finish(&created), (0, 0));
    assert_eq!(
        std::fs::read_to_string(upper.join("data/written")).unwrap(),
        "new\n"
    );
    assert!(!bundle.root().join("data/written").exists());
}

fn more_layers_than_one_overlay_takes_are_seen_as_one() {
    let bundle = Bundle::script(
        "cat /data/top /data/file600 /data/file1; ls /data/gone; echo new > /data/written",
    );
    let mut overlay = bundle.overlay();
    let layers = upper_directories(&overlay, 1_100);
    std::fs::write(bundle.root().join("data/gone"), "x").unwrap();
    for (number, layer) in layers.iter().enumerate() {
        std::fs::create_dir(layer.join("data")).unwrap();
        std::fs::write(
            layer.join(format!("data/file{number}")),
            format!("{number}\n"),
        )
        .unwrap();
        std::fs::write(layer.join("data/top"), format!("top {number}\n")).unwrap();
    }
    // Removed in one overlay, of what is in another.
    let mode = rustix::fs::Mode::empty();
    let gone = layers[1_000].join("data/gone");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        gone,
        rustix::fs::FileType::CharacterDevice,
        mode,
        0,
    )
    .unwrap();
    let upper = overlay.upper.clone().unwrap();
    // The same layer twice, as images have empty ones.
    overlay.lower = layers
        .iter()
        .rev()
        .cloned()
        .chain([layers[5].clone(), bundle.root()])
        .collect();
    let (created, reader) = bundle.create(|options| options.overlay = Some(overlay));
    let mut created = created.unwrap();
    created.container.start().unwrap();
    let text = read_all(reader);
    assert!(text.starts_with("top 1099\n600\n1\n"), "{text}");
    assert!(text.contains("No such file"), "{text}");
    finish(&created);
    assert_eq!(
        std::fs::read_to_string(upper.join("data/written")).unwrap(),
        "new\n"
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(&layers[0].display().to_string()),
        "{mounts}"
    );
}

/// Directories for layers, beside the others.
fn upper_directories(overlay: &Overlay, count: usize) -> Vec<std::path::PathBuf> {
    let beside = overlay.lower[0].parent().unwrap().join("layers");
    let make = |number: usize| {
        let layer = beside.join(number.to_string());
        std::fs::create_dir_all(&layer).unwrap();
        layer
    };
    (0..count).map(make).collect()
}

fn a_missing_program_is_told_before_start() {
    for (program, code) in [
        ("no-such-program", 127),
        ("/etc/passwd", 126),
        ("/data", 126),
    ] {
        let bundle = Bundle::new(&[program]);
        let (created, _reader) = bundle.create(|_| {});
        let error = created.unwrap_err();
        assert!(matches!(error, Error::Exec { .. }), "{error:?}");
        assert_eq!(error.exit_code(), code, "{program}");
    }
}

fn a_user_name_is_looked_up_in_the_containers_own_files() {
    let bundle = Bundle::script("id -u; id -g; id -G; echo $HOME");
    let (created, reader) = bundle.create(|options| options.user = Some("alice".to_owned()));
    let mut created = created.unwrap();
    created.container.start().unwrap();
    assert_eq!(read_all(reader), "1000\n1001\n1001 50\n/home/alice\n");
    assert_eq!(finish(&created), (0, 0));
    let (refused, _reader) = bundle.create(|options| options.user = Some("mallory".to_owned()));
    assert!(matches!(refused, Err(Error::UnknownUser { .. })));
}

fn a_missing_working_directory_is_made_if_asked_for() {
    let mut bundle = Bundle::script("pwd");
    bundle.config["process"]["cwd"] = json!("/not/there");
    let (refused, _reader) = bundle.create(|_| {});
    let error = refused.unwrap_err().to_string();
    assert_eq!(error, "cannot enter the working directory \"/not/there\"");
    let (created, reader) = bundle.create(|options| options.create_cwd = true);
    let mut created = created.unwrap();
    created.container.start().unwrap();
    assert_eq!(read_all(reader), "/not/there\n");
    finish(&created);
}

fn a_missing_mount_source_is_told_and_nothing_is_left() {
    let mut bundle = Bundle::script("true");
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/data", "source": "/no/such/source", "options": ["bind"]}));
    let (refused, _reader) = bundle.create(|_| {});
    let Err(Error::MissingSource { from, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(from, PathBuf::from("/no/such/source"));
}

fn a_terminal_has_its_size_from_the_first_byte() {
    let mut bundle = Bundle::script(
        "stty size; test -t 0 && test -t 1 && echo terminal; test -c /dev/console && echo console",
    );
    bundle.config["process"]["terminal"] = json!(true);
    let (created, _reader) = bundle.create(|options| {
        options.stdio = Stdio::Terminal {
            size: Some(TerminalSize {
                width: 132,
                height: 43,
            }),
        };
    });
    let mut created = created.unwrap();
    let master = created.terminal.take().unwrap();
    created.container.start().unwrap();
    finish(&created);
    let mut buffer = [0_u8; 256];
    let mut text = String::new();
    // A terminal whose other side is closed ends with an error, not with an end of file.
    while let Ok(length @ 1..) = rustix::io::read(&master, &mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    assert_eq!(text, "43 132\r\nterminal\r\nconsole\r\n");
}

fn process(bundle: &Bundle, arguments: &[&str]) -> Process {
    let mut process = bundle.spec().process().clone().unwrap();
    process.set_args(Some(
        arguments.iter().map(|word| (*word).to_owned()).collect(),
    ));
    process
}

fn pipes() -> (Stdio, std::os::fd::OwnedFd) {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdio = Stdio::Pipes {
        stdin: std::fs::File::open("/dev/null").unwrap().into(),
        stdout: writer.try_clone().unwrap(),
        stderr: writer,
    };
    (stdio, reader)
}

fn wait(pidfd: &std::os::fd::OwnedFd) -> i32 {
    let status = rustix::process::waitid(
        rustix::process::WaitId::PidFd(pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    );
    status.unwrap().unwrap().exit_status().unwrap()
}

fn a_process_enters_every_namespace_and_the_cgroup() {
    let list = "for i in mnt net ipc uts pid cgroup; do readlink /proc/self/ns/$i; done; cat /proc/self/cgroup";
    let bundle = Bundle::script(&format!("{list}; echo; exec sleep 1000"));
    let (created, reader) = bundle.create(|_| {});
    let mut created = created.unwrap();
    created.container.start().unwrap();
    let mut expected = String::new();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(std::fs::File::from(reader)));
    loop {
        let line = lines.next().unwrap().unwrap();
        if line.is_empty() {
            break;
        }
        expected.push_str(&line);
        expected.push('\n');
    }
    let (stdio, reader) = pipes();
    let executed = created
        .container
        .exec(ExecOptions {
            process: &process(&bundle, &["sh", "-c", &format!("{list}; exit 3")]),
            filter: None,
            personality: None,
            user: None,
            stdio,
            create_cwd: false,
            preserve_fds: 0,
            cgroups: Vec::new(),
            ignore_paused: false,
        })
        .unwrap();
    assert_eq!(read_all(reader), expected);
    assert!(!expected.contains("/gantry"), "{expected}");
    assert_eq!(wait(&executed.pidfd), 3);
    // The caller is where it was.
    let own = std::fs::read_link("/proc/self/ns/pid_for_children").unwrap();
    assert_eq!(own, std::fs::read_link("/proc/self/ns/pid").unwrap());
    created.container.kill(libc::SIGKILL, Target::Init).unwrap();
    assert_eq!(finish(&created), (0, 9));
}

fn exec_tells_absent_from_not_executable() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let (created, _reader) = bundle.create(|_| {});
    let mut created = created.unwrap();
    created.container.start().unwrap();
    for (program, code) in [("absent", 127), ("/etc/passwd", 126)] {
        let (stdio, _reader) = pipes();
        let refused = created.container.exec(ExecOptions {
            process: &process(&bundle, &[program]),
            filter: None,
            personality: None,
            user: None,
            stdio,
            create_cwd: false,
            preserve_fds: 0,
            cgroups: Vec::new(),
            ignore_paused: false,
        });
        assert_eq!(refused.unwrap_err().exit_code(), code);
    }
    // A deletion kills what runs.
    created.container.delete().unwrap();
    created.container.delete().unwrap();
    assert_eq!(finish(&created), (0, 9));
}

fn another_process_can_start_through_the_gate() {
    let bundle = Bundle::script("echo started");
    // Longer than a socket's address can be.
    let deep = bundle.directory.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let gate = deep.join("start.sock");
    let (created, reader) = bundle.create(|options| options.gate = Gate::Socket(gate.clone()));
    let created = created.unwrap();
    let text = serde_json::to_string(created.container.record()).unwrap();
    let mut reopened = Container::reopen(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(reopened.status().unwrap(), Status::Created);
    reopened.start().unwrap();
    assert!(!gate.exists());
    assert_eq!(read_all(reader), "started\n");
    assert_eq!(finish(&created), (0, 0));
    assert_eq!(reopened.status().unwrap(), Status::Stopped);
}

fn memory_that_is_wanting_is_counted() {
    let mut bundle = Bundle::script("dd if=/dev/zero of=/dev/null bs=200M count=1");
    bundle.config["linux"]["resources"]["memory"] = json!({"limit": 32 << 20, "swap": 32 << 20});
    let (created, _reader) = bundle.create(|_| {});
    let mut created = created.unwrap();
    let watch = created.container.oom_watch().unwrap().unwrap();
    created.container.start().unwrap();
    assert!(created.container.wait(std::time::Duration::from_secs(20)));
    assert_eq!(created.container.oom_kills().unwrap(), 1);
    let mut buffer = [0_u8; 8];
    rustix::io::read(&watch, &mut buffer).unwrap();
    finish(&created);
}

fn killing_all_ends_what_left_the_session() {
    let bundle = Bundle::script("sleep 1000 & sleep 1000 & echo ready; wait");
    let (created, reader) = bundle.create(|_| {});
    let mut created = created.unwrap();
    created.container.start().unwrap();
    let mut buffer = [0_u8; 6];
    rustix::io::read(&reader, &mut buffer).unwrap();
    assert_eq!(created.container.processes().unwrap().len(), 3);
    created.container.pause().unwrap();
    assert_eq!(created.container.status().unwrap(), Status::Paused);
    created.container.resume().unwrap();
    assert_eq!(created.container.stats().unwrap().pids.current, 3);
    created.container.kill(libc::SIGKILL, Target::All).unwrap();
    assert_eq!(finish(&created), (0, 9));
}

fn a_filter_denies_what_its_profile_denies() {
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::EXDEV}]});
    for no_new_privileges in [true, false] {
        let mut bundle = Bundle::script("mkdir /data/x 2>&1; grep Seccomp: /proc/self/status");
        bundle.config["linux"]["seccomp"] = profile.clone();
        bundle.config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        let output = bundle.output();
        assert!(output.contains("Invalid cross-device link"), "{output}");
        assert!(output.contains("Seccomp:\t2"), "{output}");
    }
    let _: LinuxSeccomp = serde_json::from_value(profile).unwrap();
}

fn signals_are_at_their_defaults() {
    let bundle = Bundle::new(&["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]);
    assert_eq!(
        bundle.output(),
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    );
}

fn no_descriptor_of_the_caller_reaches_the_program() {
    let bundle = Bundle::script("ls /proc/self/fd | tr '\\n' ' '");
    // Even one that is not close-on-exec.
    let leak = std::fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let (created, reader) = bundle.create(|_| {});
    let mut created = created.unwrap();
    created.container.start().unwrap();
    // 3 is the directory that ls reads.
    assert_eq!(read_all(reader), "0 1 2 3 ");
    finish(&created);
}

fn a_user_namespace_maps_root_to_somebody_else() {
    let mut bundle =
        Bundle::script("id -u; cat /proc/self/uid_map; echo > /data/x || echo refused");
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    std::fs::set_permissions(
        bundle.directory.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    // Mount points that are missing could not be made by a stranger.
    std::os::unix::fs::chown(bundle.root(), Some(100_000), Some(100_000)).unwrap();
    let (created, reader) = bundle.create(|_| {});
    let mut created = created.unwrap();
    created.container.start().unwrap();
    let output = read_all(reader);
    assert!(output.starts_with("0\n"), "{output}");
    assert!(output.contains("100000      65536"), "{output}");
    assert!(output.ends_with("refused\n"), "{output}");
    finish(&created);
}
