//! The harness tests itself: what the whole-system tests are measured with must
//! be right before they are.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use gantry_integration_tests::image::{Builder, Dialect, Packing};
use gantry_integration_tests::registry::{ForeignRegistry, push};
use gantry_integration_tests::tar::{Kind, Member, archive};
use gantry_integration_tests::{GUEST, command, firewall, fixture};

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    command::run(
        Command::new(program).args(arguments),
        b"",
        Duration::from_secs(30),
    )?
    .text()
}

#[test]
fn tar_reads_what_the_archive_writer_writes() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let long = format!("dir/{}", "n".repeat(150));
    let path = directory.path().join("a.tar");
    std::fs::write(
        &path,
        archive(&[
            Member::directory("dir"),
            Member::file(&long, "long name").xattr("user.note", b"x"),
            Member::symlink("dir/link", "../elsewhere"),
            Member::hard_link("dir/second", &long),
            Member::new("dir/null", Kind::CharDevice { major: 1, minor: 3 }),
        ]),
    )?;
    let listing = run("tar", &["-tvf", &path.to_string_lossy()])?;
    for wanted in [
        &long,
        "dir/link -> ../elsewhere",
        &format!("dir/second link to {long}"),
        "1,3",
    ] {
        ensure!(listing.contains(wanted), "{wanted:?} is not in\n{listing}");
    }
    Ok(())
}

#[test]
fn a_foreign_client_reads_what_was_pushed_into_a_foreign_registry() -> Result<()> {
    let registry = ForeignRegistry::start()?;
    for (tag, dialect, packing) in [
        ("oci-gzip", Dialect::Oci, Packing::Gzip),
        ("oci-zstd", Dialect::Oci, Packing::Zstd),
        ("docker", Dialect::Docker, Packing::Gzip),
    ] {
        let image = Builder::default()
            .dialect(dialect)
            .packed_layer(archive(&[Member::program("guest", GUEST)]), packing)
            .entrypoint(&["/guest"])
            .build()?;
        push(&registry.address, "guest", tag, &image)?;
        let seen = run(
            "skopeo",
            &[
                "inspect",
                "--tls-verify=false",
                &format!("docker://{}/guest:{tag}", registry.address),
            ],
        )?;
        ensure!(
            seen.contains(&image.manifest.digest),
            "the digest is not in\n{seen}"
        );
    }
    Ok(())
}

#[test]
fn the_guest_program_is_static_and_the_busybox_image_can_be_made() -> Result<()> {
    // A dynamic program names its interpreter.
    ensure!(
        !GUEST.windows(8).any(|bytes| bytes == b"/ld-linu"),
        "the guest program is dynamically linked"
    );
    ensure!(fixture::busybox()?.blobs.len() == 2);
    Ok(())
}

#[test]
fn a_firewall_table_is_seen_while_it_is_there() -> Result<()> {
    let name = format!("gantry_selftest_{}", std::process::id());
    run("nft", &["add", "table", "inet", &name])?;
    let there = firewall::tables();
    run("nft", &["delete", "table", "inet", &name])?;
    ensure!(there?.contains(&name), "{name} was not seen");
    ensure!(!firewall::tables()?.contains(&name), "{name} is still seen");
    Ok(())
}
