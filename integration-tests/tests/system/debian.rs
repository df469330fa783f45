//! A real distribution: a Debian root made with debootstrap, served by Debian's
//! own registry package, and work in it of the size that apt does.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_integration_tests::command;
use gantry_integration_tests::engine::with_engine;
use gantry_integration_tests::image::{Builder, Packing};
use gantry_integration_tests::registry::{ForeignRegistry, push};

/// The archive of a minimal Debian 12. It takes a minute and the network to
/// make, so it is made once and kept with the build's files.
fn root_archive() -> Result<Vec<u8>> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("debian-12.tar");
    if !kept.exists() {
        let directory = tempfile::Builder::new().prefix("gt-debian-").tempdir()?;
        let root = directory.path().join("root");
        let archive = kept.with_extension("new");
        let minutes = Duration::from_secs(600);
        command::run(
            Command::new("debootstrap")
                .args(["--variant=minbase", "bookworm"])
                .arg(&root),
            b"",
            minutes,
        )
        .context("debootstrap: install the Debian package of that name")?
        .expect_code(0)?;
        command::run(
            Command::new("tar")
                .args(["--numeric-owner", "--xattrs", "-cf"])
                .arg(&archive)
                .arg("-C")
                .arg(&root)
                .args(["--exclude=./var/cache/apt/archives/*.deb", "."]),
            b"",
            minutes,
        )?
        .expect_code(0)?;
        std::fs::rename(&archive, &kept)?;
    }
    std::fs::read(&kept).with_context(|| kept.display().to_string())
}

/// A registry that serves the Debian root as `debian:12`.
pub(crate) fn registry() -> Result<ForeignRegistry> {
    let registry = ForeignRegistry::start()?;
    let image = Builder::default()
        .packed_layer(root_archive()?, Packing::Gzip)
        .command(&["bash"])
        .build()?;
    push(&registry.address, "debian", "12", &image)?;
    Ok(registry)
}

/// Makes a package of 3,000 files with all four scripts, installs, checks,
/// upgrades and purges it with apt and dpkg.
const PACKAGE_WORK: &str = r#"
set -e
version() {
    rm -rf /tmp/p; mkdir -p /tmp/p/DEBIAN /tmp/p/opt/many
    for i in $(seq 1 3000); do echo "$1 $i" > /tmp/p/opt/many/$i; done
    ln -s 1 /tmp/p/opt/many/link
    printf 'Package: many\nVersion: %s\nArchitecture: all\nMaintainer: t <t@example.org>\nDescription: many files\n' $1 > /tmp/p/DEBIAN/control
    for script in preinst postinst prerm postrm; do
        printf '#!/bin/sh\necho %s %s "$1" >> /var/log/many\n' $script $1 > /tmp/p/DEBIAN/$script
        chmod 755 /tmp/p/DEBIAN/$script
    done
    dpkg-deb --build /tmp/p /tmp/many-$1.deb > /dev/null
}
export DEBIAN_FRONTEND=noninteractive
version 1.0
apt-get install -y -q /tmp/many-1.0.deb > /tmp/log 2>&1 || { cat /tmp/log; exit 90; }
test "$(cat /opt/many/3000)" = "1.0 3000"
version 2.0
dpkg -i /tmp/many-2.0.deb > /dev/null
test "$(cat /opt/many/3000)" = "2.0 3000"
dpkg --verify many
apt-get purge -y -q many > /tmp/log 2>&1 || { cat /tmp/log; exit 91; }
test ! -e /opt/many
useradd -m bob && su bob -c 'test $(id -un) = bob && touch ~/mine'
test $(stat -c %U /home/bob/mine) = bob
tr '\n' ';' < /var/log/many
"#;

#[test]
fn packages_are_installed_upgraded_and_purged_in_a_debian_container() -> Result<()> {
    let registry = registry()?;
    with_engine(|engine| {
        let reference = format!("{}/debian:12", registry.address);
        engine.ok(&["pull", &reference])?;
        let outcome = command::run(
            &mut engine.command(&["run", "--rm", &reference, "bash", "-c", PACKAGE_WORK]),
            b"",
            Duration::from_secs(300),
        )?
        .expect_code(0)?;
        ensure!(
            outcome.stdout.trim()
                == "preinst 1.0 install;postinst 1.0 configure;prerm 1.0 upgrade;preinst 2.0 upgrade;\
                    postrm 1.0 upgrade;postinst 2.0 configure;prerm 2.0 remove;postrm 2.0 remove;postrm 2.0 purge;",
            "{outcome}"
        );
        // The image is as it was for the next container.
        let said = engine.ok(&["run", "--rm", &reference, "ls", "/opt", "/var/log/many"]);
        ensure!(said.is_err(), "a container wrote into its image: {said:?}");
        engine.audit_containers()
    })
}
