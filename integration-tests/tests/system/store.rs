//! The image store from the command line: what it takes, what is freed, what is
//! damaged, and what may be removed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use gantry_integration_tests::GUEST;
use gantry_integration_tests::engine::{Engine, with_engine};
use gantry_integration_tests::fixture::guest;
use gantry_integration_tests::image::Builder;
use gantry_integration_tests::tar::Member;

fn noted(engine: &Engine, name: &str, note: &str) -> Result<String> {
    let image = Builder::default()
        .layer(&[Member::program("guest", GUEST)])
        .layer(&[Member::file("note", note.repeat(100_000))])
        .command(&["/guest", "echo", note])
        .build()?;
    engine.install(name, &image)
}

/// What `system df --explain` promises for a command.
fn promised(engine: &Engine, command: &str) -> Result<String> {
    let said = engine.ok(&["system", "df", "--explain"])?;
    let line = said
        .lines()
        .find_map(|line| line.strip_prefix(&format!("`gantry {command}` frees ")))
        .with_context(|| said.clone())?;
    Ok(line.to_owned())
}

#[test]
fn a_prune_frees_what_df_explained_and_asks_before() -> Result<()> {
    with_engine(|engine| {
        let used = noted(engine, "used", "u")?;
        noted(engine, "unused", "n")?;
        let container = engine.ok(&["create", &used])?;
        let table = engine.ok(&["system", "df"])?;
        let images = table.lines().nth(1).context("no row")?;
        let cells: Vec<&str> = images.split_whitespace().collect();
        ensure!(cells[..3] == ["Images", "2", "1"], "{table}");
        ensure!(
            table.contains("Local Volumes   0         0         0B        0B"),
            "{table}"
        );
        let verbose = engine.ok(&["system", "df", "-v"])?;
        for part in [
            "Images space usage:",
            "SHARED SIZE   UNIQUE SIZE   CONTAINERS",
            "Containers space usage:",
            "CONTAINER ID   IMAGE",
            &container[..12],
        ] {
            ensure!(verbose.contains(part), "{part}: {verbose}");
        }
        let tree = engine.ok(&["images", "--tree"])?;
        ensure!(tree.contains("shared with 1 other image"), "{tree}");
        ensure!(tree.contains("2 images, 3 layers"), "{tree}");

        let asked = engine.gantry_with_input(&["image", "prune", "-a"], b"n\n")?;
        ensure!(asked.code == 0 && asked.stdout.contains("[y/N]"), "{asked}");
        ensure!(engine.ok(&["images", "-q"])?.lines().count() == 2);

        let promise = promised(engine, "image prune -a")?;
        let pruned = engine.gantry_with_input(&["image", "prune", "-a"], b"y\n")?;
        ensure!(pruned.code == 0, "{pruned}");
        ensure!(
            pruned.stdout.contains("Deleted Images:\nuntagged: "),
            "{pruned}"
        );
        ensure!(
            pruned
                .stdout
                .contains(&format!("Total reclaimed space: {promise}")),
            "{promise}: {pruned}"
        );
        ensure!(promised(engine, "image prune -a")? == "0B");
        let said = engine.ok(&["image", "prune", "-f"])?;
        ensure!(said == "Total reclaimed space: 0B", "{said}");
        // What the container was made from is there.
        let said = engine.ok(&["run", "--rm", &used])?;
        ensure!(said.starts_with('u'), "{said}");
        engine.ok(&["rm", &container])?;
        Ok(())
    })
}

#[test]
fn an_image_that_runs_is_not_removed_even_by_force() -> Result<()> {
    with_engine(|engine| {
        let reference = engine.install("guest", &guest()?)?;
        engine.ok(&["tag", &reference, "other:1"])?;
        let id = engine.ok(&["images", "-q", "--no-trunc", "other"])?;
        let refused = |arguments: &[&str], said: &str| -> Result<()> {
            let outcome = engine.gantry(arguments)?;
            ensure!(
                outcome.code == 1 && outcome.stderr.contains(said),
                "{arguments:?}: {outcome}"
            );
            Ok(())
        };
        let several = "(must be forced) - image is referenced in multiple repositories";
        refused(&["rmi", &id], several)?;
        let said = engine.ok(&["rmi", "other:1"])?;
        ensure!(said == "Untagged: other:1", "{said}");

        let container = engine.ok(&["run", "-d", &reference, "wait"])?;
        let short = &container[..12];
        let running =
            format!("(cannot be forced) - image is being used by running container {short}");
        refused(&["rmi", "-f", &id], &running)?;
        refused(&["rmi", &reference], "(must force) - container")?;
        let said = engine.ok(&["rmi", "-f", &reference])?;
        ensure!(
            said.lines().all(|line| line.starts_with("Untagged: ")),
            "{said}"
        );
        refused(&["rmi", "-f", &id[7..15]], &running)?;

        engine.ok(&["kill", &container])?;
        engine.ok(&["wait", &container])?;
        let stopped =
            format!("(must be forced) - image is being used by stopped container {short}");
        refused(&["rmi", &id], &stopped)?;
        let said = engine.ok(&["rmi", "-f", &id])?;
        ensure!(said == format!("Deleted: {id}"), "{said}");
        refused(&["rmi", &id], "no such image")?;
        let outcome = engine.gantry(&["rmi", "-f", &id])?;
        ensure!(outcome.code == 0, "{outcome}");
        engine.ok(&["rm", &container])?;
        Ok(())
    })
}

/// The file of that name in some layer of the store.
fn in_a_layer(engine: &Engine, name: &str) -> Result<PathBuf> {
    let layers = engine.root().join("lib/image/layers");
    for layer in std::fs::read_dir(&layers)? {
        let path = layer?.path().join("fs").join(name);
        if path.exists() {
            return Ok(path);
        }
    }
    anyhow::bail!("no layer has {name}")
}

fn damage(path: &Path) -> Result<()> {
    let mut content = std::fs::read(path)?;
    content[0] ^= 0xff;
    Ok(std::fs::write(path, content)?)
}

#[test]
fn a_damaged_layer_is_found_and_repaired_while_a_container_runs_on_it() -> Result<()> {
    with_engine(|engine| {
        let reference = noted(engine, "checked", "c")?;
        let said = engine.ok(&["system", "check"])?;
        ensure!(said.ends_with("no problem found"), "{said}");
        let container = engine.ok(&["run", "-d", &reference, "/guest", "wait"])?;
        damage(&in_a_layer(engine, "note")?)?;

        let outcome = engine.gantry(&["system", "check"])?;
        ensure!(outcome.code == 1, "{outcome}");
        for part in ["note has another", "content", &reference, "--repair"] {
            ensure!(outcome.stdout.contains(part), "{part}: {outcome}");
        }
        let said = engine.ok(&["system", "check", "--repair"])?;
        ensure!(said.contains("  repaired: unpacked again"), "{said}");
        ensure!(said.ends_with("1 problem, all repaired"), "{said}");
        engine.ok(&["system", "check"])?;
        ensure!(std::fs::read(in_a_layer(engine, "note")?)? == b"c".repeat(100_000));
        let said = engine.ok(&["exec", &container, "/guest", "echo", "alive"])?;
        ensure!(said == "alive", "{said}");

        // What is none of the store's is told of and stays.
        let mine = engine.root().join("lib/image/mine");
        std::fs::write(&mine, "x")?;
        let outcome = engine.gantry(&["system", "check", "--repair"])?;
        ensure!(
            outcome.code == 1 && outcome.stdout.contains("none of the store's"),
            "{outcome}"
        );
        std::fs::remove_file(mine)?;
        engine.ok(&["rm", "-f", &container])?;
        Ok(())
    })
}
