//! User and time namespaces, mounts, and what a process is given.

use std::os::unix::fs::{PermissionsExt, chown, symlink};

use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::tests;

pub const TESTS: &[crate::Test] = tests![
    a_user_namespace_without_mappings_has_every_id_as_it_is,
    a_private_source_is_bound_into_a_user_namespace,
    an_id_mapped_mount_shows_the_containers_ids,
    a_container_joins_users_and_the_network_that_they_own,
    devices_of_a_user_namespace_have_their_owner_and_mode,
    a_time_namespace_has_its_offsets,
    a_missing_working_directory_is_made_in_a_read_only_root,
    a_tmpfs_has_the_mode_of_what_it_covers,
    a_recursive_bind_stays_recursive,
    a_link_can_be_bound_itself,
    propagation_is_what_the_specification_says,
    a_mount_on_the_root_takes_its_place,
    mounts_in_the_hosts_mount_namespace_go_with_the_container,
    an_unknown_capability_is_passed_over_with_a_warning,
    scheduling_priority_and_personality_are_the_programs,
    exec_replaces_variables_and_enters_groups_below,
    a_paused_container_takes_a_process_only_when_asked,
    throttles_of_block_devices_are_set,
];

fn with_user_namespace(bundle: &mut Bundle, first: u32) {
    let map = json!([{"containerID": 0, "hostID": first, "size": 65_536}]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    namespace(bundle, json!({"type": "user"}));
    // It must be able to walk to its root, and to make what is missing in it.
    std::fs::set_permissions(bundle.directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    chown(bundle.root(), Some(first), Some(first)).unwrap();
}

fn namespace(bundle: &mut Bundle, entry: Value) {
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(entry);
}

fn mount(bundle: &mut Bundle, entry: Value) {
    bundle.config["mounts"].as_array_mut().unwrap().push(entry);
}

fn a_user_namespace_without_mappings_has_every_id_as_it_is() {
    let mut bundle = Bundle::script("id -u; cat /proc/self/uid_map");
    namespace(&mut bundle, json!({"type": "user"}));
    let output = bundle.output();
    assert!(output.starts_with("0\n"), "{output}");
    let map: Vec<&str> = output.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", "0", "4294967295"]);
}

fn a_private_source_is_bound_into_a_user_namespace() {
    let mut bundle = Bundle::script("cat /data/file; echo x > /data/new");
    with_user_namespace(&mut bundle, 100_000);
    let private = bundle.directory.path().join("private");
    let source = private.join("source");
    std::fs::create_dir_all(&source).unwrap();
    std::fs::write(source.join("file"), "reached\n").unwrap();
    std::fs::set_permissions(&private, PermissionsExt::from_mode(0o700)).unwrap();
    mount(
        &mut bundle,
        json!({"destination": "/data", "source": source, "options": ["rbind", "ro"]}),
    );
    let output = bundle.run();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "reached\n");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("Read-only file system"), "{errors}");
}

fn an_id_mapped_mount_shows_the_containers_ids() {
    for option in ["idmap", "ridmap"] {
        let mut bundle = Bundle::script("stat -c %u:%g /data/file; touch /data/mine");
        with_user_namespace(&mut bundle, 100_000);
        let source = bundle.directory.path().join("source");
        std::fs::create_dir(&source).unwrap();
        std::fs::write(source.join("file"), "").unwrap();
        // Without mappings of its own it has the container's.
        mount(
            &mut bundle,
            json!({"destination": "/data", "source": source, "options": ["bind", option]}),
        );
        assert_eq!(bundle.output(), "0:0\n", "{option}");
        let owner = std::os::unix::fs::MetadataExt::uid(&source.join("mine").metadata().unwrap());
        assert_eq!(
            owner, 0,
            "what root of the container makes is the host's root's"
        );
    }
}

/// What a pod's second container does: the first one's users and network, its own everything else.
fn a_container_joins_users_and_the_network_that_they_own() {
    let mut first = Bundle::new(&["sleep", "1000"]);
    with_user_namespace(&mut first, 200_000);
    run_detached(&first);
    let state: Value = serde_json::from_slice(&first.oci(&["state", &first.id]).stdout).unwrap();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", state["pid"]);
    let mut second = Bundle::script(
        "id -u; cat /proc/self/uid_map; readlink /proc/self/ns/net; hostname; echo $$; \
         mount -t tmpfs none /tmp && echo mounted; touch /sys/x 2>/dev/null; echo > /made && echo made",
    );
    with_user_namespace(&mut second, 200_000);
    second.config["process"]["oomScoreAdj"] = json!(100);
    second.config["hostname"] = json!("second");
    second.capabilities(&["CAP_SYS_ADMIN"]);
    let namespaces = second.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|entry| entry["type"] != "user" && entry["type"] != "network");
    namespaces.push(json!({"type": "user", "path": path("user")}));
    namespaces.push(json!({"type": "network", "path": path("net")}));
    mount(
        &mut second,
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}),
    );
    let network = std::fs::read_link(path("net")).unwrap();
    let output = second.output();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "0", "{output}");
    assert!(lines[1].contains("200000"), "{output}");
    assert_eq!(lines[2], network.to_str().unwrap(), "{output}");
    assert_eq!(lines[3..], ["second", "1", "mounted", "made"], "{output}");
    assert!(first.oci(&["delete", "-f", &first.id]).status.success());
}

fn devices_of_a_user_namespace_have_their_owner_and_mode() {
    let mut bundle = Bundle::script(
        "stat -c '%u:%g %a %t:%T' /dev/other /dev/null; echo x > /dev/other; grep ' /dev/other ' /proc/self/mountinfo",
    );
    with_user_namespace(&mut bundle, 100_000);
    bundle.config["linux"]["devices"] = json!([{"path": "/dev/other", "type": "c", "major": 1, "minor": 3,
        "uid": 10, "gid": 11, "fileMode": 0o622}]);
    let output = bundle.output();
    let mut lines = output.lines();
    assert_eq!(lines.next(), Some("10:11 622 1:3"));
    assert_eq!(lines.next(), Some("0:0 666 1:3"));
    assert!(lines.next().unwrap().contains("nosuid,noexec"), "{output}");
}

fn a_time_namespace_has_its_offsets() {
    for user in [false, true] {
        let mut bundle = Bundle::script("cat /proc/self/timens_offsets");
        if user {
            with_user_namespace(&mut bundle, 100_000);
        }
        namespace(&mut bundle, json!({"type": "time"}));
        bundle.config["linux"]["timeOffsets"] =
            json!({"boottime": {"secs": 1337, "nanosecs": 3_141_519}, "monotonic": {"secs": 7}});
        let output = bundle.output();
        let words: Vec<&str> = output.split_whitespace().collect();
        assert_eq!(
            words,
            ["monotonic", "7", "0", "boottime", "1337", "3141519"],
            "with a user namespace: {user}"
        );
    }
}

fn a_missing_working_directory_is_made_in_a_read_only_root() {
    let mut bundle = Bundle::script("pwd; stat -c %u .; mkdir /x 2>&1");
    bundle.config["root"]["readonly"] = json!(true);
    bundle.config["process"]["cwd"] = json!("/not/there");
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let output = String::from_utf8(bundle.run().stdout).unwrap();
    assert!(output.starts_with("/not/there\n1000\n"), "{output}");
    assert!(output.contains("Read-only"), "{output}");
    // A link on the way leads nowhere but inside.
    let mut bundle = Bundle::script("pwd");
    symlink("/../../../../tmp", bundle.root().join("link")).unwrap();
    let name = format!("cwd-{}", bundle.id);
    bundle.config["process"]["cwd"] = json!(format!("/link/{name}"));
    assert_eq!(bundle.output(), format!("/tmp/{name}\n"));
    assert!(bundle.root().join("tmp").join(&name).is_dir());
    assert!(!std::path::Path::new("/tmp").join(&name).exists());
}

fn a_tmpfs_has_the_mode_of_what_it_covers() {
    let mut bundle = Bundle::script("stat -c %a /data /other");
    std::fs::set_permissions(bundle.root().join("data"), PermissionsExt::from_mode(0o712)).unwrap();
    mount(
        &mut bundle,
        json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs"}),
    );
    mount(
        &mut bundle,
        json!({"destination": "/other", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700"]}),
    );
    assert_eq!(bundle.output(), "712\n700\n");
    let mut bundle = Bundle::script("stat -c %a /data; cat /data/file");
    std::fs::write(bundle.root().join("data/file"), "copied\n").unwrap();
    mount(
        &mut bundle,
        json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "mode=1777"]}),
    );
    assert_eq!(bundle.output(), "1777\ncopied\n");
}

fn a_recursive_bind_stays_recursive() {
    let mut bundle = Bundle::script("grep -c ' /data/' /proc/self/mountinfo");
    mount(
        &mut bundle,
        json!({"destination": "/data", "type": "bind", "source": "/sys", "options": ["rbind", "rprivate", "bind"]}),
    );
    let count: u32 = bundle.output().trim().parse().unwrap();
    assert!(count > 0, "the mounts below did not come along");
}

fn a_link_can_be_bound_itself() {
    let source = |bundle: &Bundle| bundle.directory.path().join("link");
    for (options, expected) in [
        (json!(["bind", "dest-nofollow", "src-nofollow"]), "where"),
        (json!(["bind", "dest-nofollow"]), "content"),
    ] {
        let mut bundle =
            Bundle::script("readlink /target || cat /target; test -e /nowhere && echo made");
        std::fs::write(bundle.directory.path().join("where"), "content\n").unwrap();
        symlink("where", source(&bundle)).unwrap();
        symlink("nowhere", bundle.root().join("target")).unwrap();
        let from = source(&bundle);
        mount(
            &mut bundle,
            json!({"destination": "/target", "source": from, "options": options}),
        );
        let output = String::from_utf8(bundle.run().stdout).unwrap();
        assert_eq!(output, format!("{expected}\n"));
    }
}

fn propagation_is_what_the_specification_says() {
    for (option, field) in [
        ("shared", " shared:"),
        ("rslave", ""),
        ("private", ""),
        ("unbindable", " unbindable "),
    ] {
        let mut bundle = Bundle::script("grep ' /data ' /proc/self/mountinfo");
        mount(
            &mut bundle,
            json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": [option]}),
        );
        let output = bundle.output();
        assert!(output.contains(field), "{option}: {output}");
        if field.is_empty() {
            assert!(!output.contains("shared:"), "{option}: {output}");
        }
    }
    for (root, field) in [("shared", " shared:"), ("unbindable", " unbindable ")] {
        let mut bundle = Bundle::script(
            "grep ' / / ' /proc/self/mountinfo || grep ' / rw' /proc/self/mountinfo",
        );
        bundle.config["linux"]["rootfsPropagation"] = json!(root);
        let output = bundle.output();
        assert!(output.contains(field), "{root}: {output}");
    }
    // A root that is a mount of its own, as engines have it.
    let mut bundle =
        Bundle::script("grep -q ' / rw.* shared:' /proc/self/mountinfo && echo shared");
    bundle.config["linux"]["rootfsPropagation"] = json!("rshared");
    let root = bundle.root();
    let made = |words: &[&str]| {
        let mut done = std::process::Command::new(words[0]);
        assert!(
            done.args(&words[1..])
                .arg(&root)
                .status()
                .unwrap()
                .success(),
            "{words:?}"
        );
    };
    made(&["mount", "--bind", root.to_str().unwrap()]);
    let output = bundle.run();
    made(&["umount", "-l"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("shared"), "{output:?}");
}

fn a_mount_on_the_root_takes_its_place() {
    for destination in ["/", "//"] {
        let mut bundle = Bundle::script("cat /mark; grep -c . /proc/self/mountinfo; mkdir /x 2>&1");
        let other = bundle.directory.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::rename(bundle.root().join("bin"), other.join("bin")).unwrap();
        for name in ["proc", "dev", "sys"] {
            std::fs::create_dir(other.join(name)).unwrap();
        }
        std::fs::write(other.join("mark"), "other\n").unwrap();
        let mounts = bundle.config["mounts"].as_array_mut().unwrap();
        mounts.insert(
            0,
            json!({"destination": destination, "source": other, "options": ["bind", "ro"]}),
        );
        let output = String::from_utf8(bundle.run().stdout).unwrap();
        assert!(output.starts_with("other\n"), "{output}");
        assert!(output.contains("Read-only file system"), "{output}");
    }
    let mut bundle = Bundle::script("true");
    mount(
        &mut bundle,
        json!({"destination": "/", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
    );
    assert!(bundle.failure().contains("tmpcopyup"));
}

fn mounts_in_the_hosts_mount_namespace_go_with_the_container() {
    let mut bundle = Bundle::script(
        "readlink /proc/self/ns/mnt; stat -f -c %T /dev /sys/firmware; ls /data; touch /x || echo sealed",
    );
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|entry| entry["type"] != "mount");
    bundle.config["root"]["readonly"] = json!(true);
    let source = bundle.directory.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("seen"), "").unwrap();
    mount(
        &mut bundle,
        json!({"destination": "/data", "source": source, "options": ["bind"]}),
    );
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    assert_eq!(
        bundle.output(),
        format!("{}\ntmpfs\ntmpfs\nseen\nsealed\n", own.display())
    );
    // And with a container that came to nothing; the audit of the bundle looks for either's.
    bundle.config["process"]["args"] = json!(["no-such-program"]);
    bundle.failure();
}

fn an_unknown_capability_is_passed_over_with_a_warning() {
    let mut bundle = Bundle::script("grep CapBnd /proc/self/status");
    bundle.capabilities(&["CAP_KILL", "CAP_NONSENSE"]);
    let output = bundle.run();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "CapBnd:\t0000000000000020\n"
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.contains("warning: ignoring unknown or unavailable capabilities: [CAP_NONSENSE]"),
        "{errors}"
    );
}

fn scheduling_priority_and_personality_are_the_programs() {
    let mut bundle =
        Bundle::script("grep -E '^policy' /proc/self/sched; cat /proc/self/personality");
    bundle.config["process"]["scheduler"] =
        json!({"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    bundle.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    bundle.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    bundle.config["process"]["args"] = json!([
        "sh",
        "-c",
        "grep ^policy /proc/$$/sched | tr -d ' '; cat /proc/self/personality; cut -d' ' -f19 /proc/$$/stat"
    ]);
    let root = bundle.root();
    symlink("busybox", root.join("bin/cut")).unwrap();
    // 3 is SCHED_BATCH, 8 is PER_LINUX32.
    assert_eq!(bundle.output(), "policy:3\n00000008\n5\n");
    let mut bundle = Bundle::script("true");
    bundle.config["process"]["scheduler"] = json!({"policy": "SCHED_DEADLINE", "runtime": 5000});
    let error = bundle.failure();
    assert!(error.contains("process.scheduler.deadline"), "{error}");
}

fn run_detached(bundle: &Bundle) {
    let directory = bundle.directory.path().to_str().unwrap();
    let mut run = bundle.command(&["run", "-d", "-b", directory, &bundle.id]);
    run.stdout(std::process::Stdio::null());
    run.stderr(std::process::Stdio::null());
    assert!(run.status().unwrap().success());
}

fn exec_replaces_variables_and_enters_groups_below() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["process"]["env"] = json!(["PATH=/bin", "WHO=container"]);
    run_detached(&bundle);
    let exec = |options: &[&str], script: &str| {
        let mut arguments = vec!["exec"];
        arguments.extend(options);
        arguments.extend([bundle.id.as_str(), "sh", "-c", script]);
        bundle.oci(&arguments)
    };
    let text = |output: std::process::Output| String::from_utf8(output.stdout).unwrap();
    let environment = "env | grep WHO";
    assert_eq!(text(exec(&[], environment)), "WHO=container\n");
    assert_eq!(text(exec(&["-e", "WHO=exec"], environment)), "WHO=exec\n");
    for wrong in ["..", "a/../b", "nowhere", "nocontroller:/"] {
        let output = exec(&["--cgroup", wrong], "true");
        assert!(!output.status.success(), "{wrong}");
    }
    let state = bundle.oci(&["state", &bundle.id]);
    let state: Value = serde_json::from_slice(&state.stdout).unwrap();
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", state["pid"])).unwrap();
    // A group of the first hierarchy that is there: v1's pids, or v2's only one.
    let (point, line) = own
        .lines()
        .find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            match (fields.next()?, fields.next()?) {
                ("pids", path) => Some(("/sys/fs/cgroup/pids", path)),
                _ => None,
            }
        })
        .unwrap_or(("/sys/fs/cgroup", own.trim().trim_start_matches("0::")));
    let below = format!("{point}{line}/below");
    std::fs::create_dir(&below).unwrap();
    let listing = text(exec(&["--cgroup", "/below"], "cat /proc/self/cgroup"));
    assert!(listing.contains(":/below"), "{listing}");
    assert!(bundle.oci(&["delete", "-f", &bundle.id]).status.success());
}

fn a_paused_container_takes_a_process_only_when_asked() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    run_detached(&bundle);
    assert!(bundle.oci(&["pause", &bundle.id]).status.success());
    let refused = bundle.oci(&["exec", &bundle.id, "true"]);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(text.contains("it is paused"), "{text}");
    let waiting = bundle
        .command(&["exec", "--ignore-paused", &bundle.id, "echo", "resumed"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    assert!(bundle.oci(&["resume", &bundle.id]).status.success());
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "resumed\n");
    assert!(bundle.oci(&["delete", "-f", &bundle.id]).status.success());
}

fn throttles_of_block_devices_are_set() {
    // Any disk will do.
    let Some(disk) = std::fs::read_dir("/sys/block")
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let number = std::fs::read_to_string(entry.path().join("dev")).ok()?;
            let (major, minor) = number.trim().split_once(':')?;
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        })
    else {
        panic!("this machine has no block device");
    };
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    let rate = |rate: u64| json!([{"major": disk.0, "minor": disk.1, "rate": rate}]);
    bundle.config["linux"]["resources"]["blockIO"] = json!({
        "throttleReadBpsDevice": rate(1_048_576),
        "throttleWriteIOPSDevice": rate(123),
    });
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/gantry-test/{}", bundle.id));
    run_detached(&bundle);
    let number = format!("{}:{}", disk.0, disk.1);
    let v1 = format!("/sys/fs/cgroup/blkio/gantry-test/{}", bundle.id);
    if std::path::Path::new(&v1).is_dir() {
        let read = |file: &str| std::fs::read_to_string(format!("{v1}/{file}")).unwrap();
        assert_eq!(
            read("blkio.throttle.read_bps_device").trim(),
            format!("{number} 1048576")
        );
        assert_eq!(
            read("blkio.throttle.write_iops_device").trim(),
            format!("{number} 123")
        );
    } else {
        let file = format!("/sys/fs/cgroup/gantry-test/{}/io.max", bundle.id);
        let limits = std::fs::read_to_string(file).unwrap();
        assert!(limits.contains("rbps=1048576"), "{limits}");
        assert!(limits.contains("wiops=123"), "{limits}");
    }
    assert!(bundle.oci(&["delete", "-f", &bundle.id]).status.success());
}
