//! Old ways out of a container, each closed.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::bundle::{Bundle, GANTRY_OCI};
use crate::tests;

pub const TESTS: &[crate::Test] = tests![
    the_runtimes_own_file_can_not_be_written,
    a_working_directory_outside_of_the_root_is_refused,
    a_mount_through_a_link_stays_in_the_root,
    a_linked_proc_is_refused,
    the_mask_of_a_file_is_the_hosts_null_device,
    masked_and_read_only_paths_hold,
    what_the_kernel_tells_of_itself_is_not_mounted_over,
    a_mask_through_a_link_of_the_image_stays_inside,
    the_hosts_root_is_gone,
    a_mount_target_that_is_swapped_for_a_link_never_leads_out,
    a_masked_path_that_is_swapped_for_a_link_never_leads_out,
];

/// CVE-2019-5736: the program is `/proc/self/exe`, that is, the runtime itself, in the container; whoever gets hold of it tries
/// to write to it through /proc/PID/exe.
fn the_runtimes_own_file_can_not_be_written() {
    let before = std::fs::read(GANTRY_OCI).unwrap();
    let mut bundle = Bundle::script(
        "ln -s /proc/self/exe /tmp/self; for i in 1 2 3; do (exec 3</proc/1/exe; echo evil > /proc/self/fd/3) 2>&1; done; true",
    );
    bundle.capabilities(&["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
    bundle.output();
    let bundle = Bundle::new(&["sleep", "1000"]);
    let directory = bundle.directory.path().to_str().unwrap().to_owned();
    let mut create = bundle.command(&["create", "-b", &directory, &bundle.id]);
    create.stdout(std::process::Stdio::null());
    create.stderr(std::process::Stdio::null());
    assert!(create.status().unwrap().success());
    let state = bundle.oci(&["state", &bundle.id]);
    let state: serde_json::Value = serde_json::from_slice(&state.stdout).unwrap();
    // Init has not yet executed the program: it is the runtime. Keep hold of its file, as the attack does.
    let exe = rustix::fs::open(
        format!("/proc/{}/exe", state["pid"]),
        rustix::fs::OFlags::PATH,
        rustix::fs::Mode::empty(),
    )
    .unwrap();
    assert!(bundle.oci(&["delete", "-f", &bundle.id]).status.success());
    // Nobody executes it any more, and still even the host's root can not write to it that way.
    let through = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&exe));
    let refused = std::fs::OpenOptions::new().write(true).open(through);
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert!(std::fs::read(GANTRY_OCI).unwrap() == before);
}

/// CVE-2024-21626: a working directory through a descriptor of the runtime.
fn a_working_directory_outside_of_the_root_is_refused() {
    for descriptor in 3..16 {
        let mut bundle = Bundle::script("cat ../../../../etc/hostname");
        bundle.config["process"]["cwd"] = json!(format!("/proc/self/fd/{descriptor}"));
        let error = bundle.failure();
        assert!(
            error.contains("working directory") && error.contains("/proc/self/fd"),
            "{error}"
        );
    }
}

fn a_mount_through_a_link_stays_in_the_root() {
    let mut bundle = Bundle::script("cat /link/probe/file");
    let source = bundle.directory.path().join("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "inside\n").unwrap();
    symlink("/../../../../../../tmp", bundle.root().join("link")).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/link/probe", "source": source, "options": ["bind"]}));
    assert_eq!(bundle.output(), "inside\n");
    assert!(bundle.root().join("tmp/probe").is_dir());
    assert!(!std::path::Path::new("/tmp/probe/file").exists());
}

/// CVE-2019-19921 and its kin: what is written to /proc must reach a procfs.
fn a_linked_proc_is_refused() {
    let bundle = Bundle::script("true");
    std::fs::remove_dir(bundle.root().join("proc")).unwrap();
    symlink("data", bundle.root().join("proc")).unwrap();
    let error = bundle.failure();
    assert!(error.contains("symbolic link"), "{error}");
}

/// CVE-2025-31133: the image's /dev/null is a link to something worth having.
fn the_mask_of_a_file_is_the_hosts_null_device() {
    let mut bundle = Bundle::script("cat /proc/keys | wc -c; stat -c %t:%T /proc/keys");
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    std::fs::create_dir_all(bundle.root().join("dev")).unwrap();
    bundle.config["linux"]["devices"] = json!([]);
    std::fs::write(bundle.root().join("secret"), "secret").unwrap();
    // The devices are made where they are missing; this one is there, and is no device.
    symlink("/secret", bundle.root().join("dev/null")).unwrap();
    let error = bundle.failure();
    assert!(error.contains("/dev/null"), "{error}");
    std::fs::remove_file(bundle.root().join("dev/null")).unwrap();
    assert_eq!(bundle.output(), "0\n1:3\n");
}

fn masked_and_read_only_paths_hold() {
    let mut bundle = Bundle::script(
        "cat /proc/timer_list | wc -c; ls /proc/acpi /sys/firmware | grep -v : ; echo 1 > /proc/sys/kernel/panic; umount /proc/timer_list",
    );
    bundle.capabilities(&["CAP_DAC_OVERRIDE"]);
    let output = bundle.run();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.trim(), "0", "{errors}");
    assert!(errors.contains("Read-only file system"), "{errors}");
    assert!(!output.status.success(), "a mask was taken off");
}

/// CVE-2019-16884 and its kin: an image's volume over a file of /proc, or a link that leads a mount there.
fn what_the_kernel_tells_of_itself_is_not_mounted_over() {
    for destination in [
        "/proc/self/attr",
        "/proc/sys",
        "/link/environ",
        "/proc/./self/../acpi",
    ] {
        let mut bundle = Bundle::script("true");
        let source = bundle.directory.path().join("source");
        std::fs::create_dir(&source).unwrap();
        symlink("/proc/self", bundle.root().join("link")).unwrap();
        let mounts = bundle.config["mounts"].as_array_mut().unwrap();
        mounts.push(json!({"destination": destination, "source": source, "options": ["bind"]}));
        let error = bundle.failure();
        assert!(
            error.contains("cannot be mounted because it is inside /proc"),
            "{destination}: {error}"
        );
    }
    let mut bundle = Bundle::script("cat /proc/uptime");
    std::fs::write(bundle.directory.path().join("uptime"), "1 2\n").unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.push(
        json!({"destination": "/proc/uptime", "source": "uptime", "options": ["bind", "ro"]}),
    );
    assert_eq!(bundle.output(), "1 2\n");
}

/// A masked or read-only path that the image made a link out of: what is covered is inside the root.
fn a_mask_through_a_link_of_the_image_stays_inside() {
    let mut bundle = Bundle::script("cat /secret/file; echo x > /kept/file");
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("file"), "outside").unwrap();
    for name in ["secret", "kept"] {
        std::fs::create_dir_all(bundle.root().join("inside").join(name)).unwrap();
        std::fs::write(
            bundle.root().join("inside").join(name).join("file"),
            "inside",
        )
        .unwrap();
        symlink(
            format!("/../../../../inside/{name}"),
            bundle.root().join(name),
        )
        .unwrap();
    }
    bundle.config["linux"]["maskedPaths"] = json!(["/secret", outside.path()]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/kept", outside.path()]);
    let output = bundle.run();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "",
        "the mask is off"
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("Read-only file system"), "{errors}");
    assert_eq!(
        std::fs::read_to_string(outside.path().join("file")).unwrap(),
        "outside"
    );
}

fn the_hosts_root_is_gone() {
    let mut bundle = Bundle::script(
        "grep -c . /proc/self/mountinfo; ls / | tr '\\n' ' '; ls /.. | tr '\\n' ' '",
    );
    bundle.config["mounts"] = json!([{"destination": "/proc", "type": "proc", "source": "proc"}]);
    bundle.config["linux"]["maskedPaths"] = json!([]);
    bundle.config["linux"]["readonlyPaths"] = json!([]);
    let output = bundle.output();
    let mut lines = output.lines();
    assert_eq!(
        lines.next(),
        Some("2"),
        "more than root and proc is mounted"
    );
    let listing = lines.next().unwrap();
    assert_eq!(listing.matches("busybox").count(), 0);
    assert_eq!(listing.matches("data ").count(), 2, "{listing}");
}

/// Runs `create` while another program, as it could through a shared volume, swaps a directory of the root for a link to
/// the host's `outside`, and back, as fast as it can.
fn while_swapped(root: &Path, outside: &Path, mut create: impl FnMut()) {
    let here = rustix::fs::open(root, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
    std::fs::create_dir_all(root.join("swapped/below")).unwrap();
    symlink(outside, root.join("other")).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&here, "swapped", &here, "other", flags).unwrap();
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..40 {
                create();
            }
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

/// CVE-2021-30465 and CVE-2023-27561: between the look at a mount's target and the mount, it becomes a link.
fn a_mount_target_that_is_swapped_for_a_link_never_leads_out() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("precious"), "of the host\n").unwrap();
    let mut bundle = Bundle::script("cat /proc/self/mountinfo; cat /swapped/precious");
    let source = bundle.directory.path().join("source");
    std::fs::create_dir(&source).unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    // One that makes its target where it is missing: outside it would be seen.
    mounts
        .push(json!({"destination": "/swapped/below/made", "source": source, "options": ["bind"]}));
    let mut mounted = 0;
    let root = bundle.root();
    while_swapped(&root, outside.path(), || {
        let output = bundle.run();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains("of the host"), "{text}");
        mounted += usize::from(text.contains("below/made"));
        let left: Vec<_> = std::fs::read_dir(outside.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    });
    assert!(mounted > 0, "not one container was made");
}

/// The same with what is hidden and what is made read-only.
fn a_masked_path_that_is_swapped_for_a_link_never_leads_out() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::create_dir(outside.path().join("below")).unwrap();
    let written = outside.path().join("below/file");
    let mut bundle = Bundle::new(&["true"]);
    bundle.config["linux"]["maskedPaths"] = json!(["/swapped/below"]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/swapped/below"]);
    let root = bundle.root();
    let mut ran = 0;
    while_swapped(&root, outside.path(), || {
        ran += usize::from(bundle.run().status.success());
        std::fs::write(&written, "still the host's").unwrap();
    });
    assert!(ran > 0, "not one container was made");
}
