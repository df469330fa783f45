//! Limits and rules of devices, groups and namespaces, by the flags that Docker has for them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use gantry_integration_tests::engine::with_engine;

/// A block device of this machine: path, major, minor.
fn disk() -> Result<(String, u32, u32)> {
    std::fs::read_dir("/sys/block")?
        .flatten()
        .find_map(|entry| {
            let path = Path::new("/dev").join(entry.file_name());
            let number = std::fs::read_to_string(entry.path().join("dev")).ok()?;
            let (major, minor) = number.trim().split_once(':')?;
            path.exists().then_some(())?;
            Some((
                path.to_string_lossy().into_owned(),
                major.parse().ok()?,
                minor.parse().ok()?,
            ))
        })
        .context("this machine has no block device")
}

#[test]
fn devices_are_throttled_and_ruled_as_asked_for() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let (path, major, minor) = disk()?;
        let shell = |flags: &[&str], script: &str| {
            engine.ok(&[&["run", "--rm"], flags, &[&image, "sh", "-c", script]].concat())
        };
        let (read, write) = (format!("{path}:1mb"), format!("{path}:123"));
        let flags = ["--device-read-bps", &read, "--device-write-iops", &write];
        let said = shell(
            &flags,
            "cat /sys/fs/cgroup/io.max 2>/dev/null || cd /sys/fs/cgroup/blkio && \
             cat blkio.throttle.read_bps_device blkio.throttle.write_iops_device",
        )?;
        let number = format!("{major}:{minor}");
        let v1 = format!("{number} 1048576\n{number} 123");
        ensure!(
            said == v1 || (said.contains("rbps=1048576") && said.contains("wiops=123")),
            "{said}"
        );

        // Anybody may make the node; opening it is what the rule allows.
        let open = format!("mknod /disk b {major} {minor} && (: < /disk) && echo open");
        let rule = format!("b {major}:* r");
        let refused = shell(&[], &format!("({open}) 2>&1; true"))?;
        ensure!(refused.contains("not permitted"), "{refused}");
        let allowed = shell(&["--device-cgroup-rule", &rule], &open)?;
        ensure!(allowed == "open", "{allowed}");

        for (flags, word) in [
            (["--device-cgroup-rule", "c 1"], "TYPE MAJOR:MINOR"),
            (["--device-read-bps", "/dev/null:1mb"], "no block device"),
            (["--device-read-bps", "/dev/null"], "DEVICE:NUMBER"),
            (["--blkio-weight-device", "/no/such:100"], "no block device"),
            (["--memory-swappiness", "101"], "101"),
            (["--userns", "private"], "userns"),
        ] {
            let outcome =
                engine.gantry(&[&["run", "--rm"], &flags[..], &[&image, "true"]].concat())?;
            ensure!(
                outcome.code == 125 && outcome.stderr.contains(word),
                "{outcome}"
            );
        }
        Ok(())
    })
}

#[test]
fn groups_are_found_by_name_in_the_container_and_namespaces_are_as_asked_for() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let group = "wheel";
        let said = engine.ok(&[
            "run",
            "--rm",
            "--group-add",
            group,
            "--group-add",
            "4711",
            &image,
            "sh",
            "-c",
            "id -G",
        ])?;
        let number = engine.ok(&[
            "run",
            "--rm",
            &image,
            "sh",
            "-c",
            "grep ^wheel: /etc/group | cut -d: -f3",
        ])?;
        let groups: Vec<&str> = said.split(' ').collect();
        ensure!(
            groups.contains(&number.as_str()) && groups.contains(&"4711"),
            "{said}, and {group} is {number}"
        );
        let unknown = engine.gantry(&["run", "--rm", "--group-add", "nobodys", &image, "true"])?;
        ensure!(
            unknown.code != 0 && unknown.stderr.contains("nobodys"),
            "{unknown}"
        );
        engine.ok(&[
            "run",
            "-d",
            "--name",
            "it",
            "--group-add",
            group,
            "--ipc",
            "shareable",
            &image,
            "sleep",
            "1000",
        ])?;
        let exec = engine.ok(&["exec", "it", "id", "-G"])?;
        ensure!(exec.split(' ').any(|gid| gid == number), "{exec}");
        let link = "readlink /proc/self/ns/ipc";
        let theirs = engine.ok(&["exec", "it", "sh", "-c", link])?;
        let joined = engine.ok(&[
            "run",
            "--rm",
            "--ipc",
            "container:it",
            &image,
            "sh",
            "-c",
            link,
        ])?;
        ensure!(joined == theirs, "{joined}, not {theirs}");
        engine.ok(&["rm", "-f", "it"])?;
        let warned = engine.gantry(&[
            "run",
            "--rm",
            "--kernel-memory",
            "10m",
            "--userns",
            "host",
            "--memory-swappiness",
            "10",
            &image,
            "sh",
            "-c",
            "cat /sys/fs/cgroup/memory/memory.swappiness 2>/dev/null || echo 10",
        ])?;
        ensure!(
            warned.stdout == "10\n" && warned.stderr.contains("--kernel-memory has no effect"),
            "{warned}"
        );
        Ok(())
    })
}
