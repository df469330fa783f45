//! The OCI runtimes alone: one bundle, `RUNTIME run ID`, /bin/true inside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use gantry_integration_tests::command;
use nix::mount::{MntFlags, umount2};

use crate::statistics::Table;

const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn compare(bin_dir: &Path, rounds: usize) -> Result<Table> {
    // crun takes the hybrid layout's v2 mount for a v2 machine. This mount
    // namespace is ours alone, and nothing else runs in it any more.
    let _ = umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH);
    let directory = tempfile::Builder::new().prefix("gt-oci-").tempdir()?;
    let bundle = directory.path();
    let root = bundle.join("rootfs");
    for name in ["bin", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .context("/bin/busybox: install the Debian package busybox-static")?;
    std::os::unix::fs::symlink("busybox", root.join("bin/true"))?;

    let ours = bin_dir.join("gantry-oci");
    let runtimes: Vec<(&str, PathBuf)> = [
        ("gantry-oci", ours.clone()),
        ("runc", PathBuf::from("runc")),
        ("crun", PathBuf::from("crun")),
        ("youki", PathBuf::from("youki")),
    ]
    .into_iter()
    .filter(|(_, program)| {
        command::run(Command::new(program).arg("--version"), b"", DEADLINE).is_ok()
    })
    .collect();
    specification(&ours, bundle)?;

    let names: Vec<&str> = runtimes.iter().map(|(name, _)| *name).collect();
    let mut table = Table::new(&names);
    let mut samples = vec![Vec::new(); runtimes.len()];
    for round in 0..=rounds {
        for ((name, program), samples) in runtimes.iter().zip(&mut samples) {
            let state = bundle.join(format!("state-{name}"));
            let outcome = command::run(
                Command::new(program)
                    .arg("--root")
                    .arg(&state)
                    .arg("run")
                    .arg("--bundle")
                    .arg(bundle)
                    .arg(format!("bench-{name}-{round}")),
                b"",
                DEADLINE,
            )?
            .expect_code(0)?;
            if round > 0 {
                samples.push(outcome.took);
            }
        }
    }
    table.times("OCI run of /bin/true", &samples);
    Ok(table)
}

/// The runtime's own template, with `true` for its program and no terminal.
fn specification(runtime: &Path, bundle: &Path) -> Result<()> {
    command::run(
        Command::new(runtime).arg("spec").current_dir(bundle),
        b"",
        DEADLINE,
    )?
    .expect_code(0)?;
    let path = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&path)?)?;
    // The oldest that all of them take: crun refuses what it does not know yet.
    spec["ociVersion"] = "1.0.2".into();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    fs::write(&path, serde_json::to_vec(&spec)?)?;
    Ok(())
}
