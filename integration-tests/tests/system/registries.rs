//! Registries as a person meets them: logging in, mirrors, networks that fail,
//! many tags, and looking for images.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use gantry_integration_tests::GUEST;
use gantry_integration_tests::command::{self, Outcome};
use gantry_integration_tests::engine::{Engine, Options, with_engine};
use gantry_integration_tests::grpc;
use gantry_integration_tests::image::{Builder, Image, Packing};
use gantry_integration_tests::proxy::Cutter;
use gantry_integration_tests::registry::{ForeignRegistry, push};
use gantry_integration_tests::tar::{Member, archive};
use rustix::process::Signal;

const MINUTE: Duration = Duration::from_secs(60);

fn guest() -> Result<Image> {
    Ok(Builder::default()
        .layer(&[Member::program("guest", GUEST)])
        .command(&["/guest", "echo", "hello"])
        .build()?)
}

/// Runs `gantry` for somebody whose credentials are in a directory.
struct Person<'a> {
    engine: &'a Engine,
    home: tempfile::TempDir,
}

impl<'a> Person<'a> {
    fn new(engine: &'a Engine) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("gt-person-").tempdir()?;
        Ok(Self { engine, home })
    }

    fn with(&self, words: &[&str], input: &str) -> Result<Outcome> {
        let path = std::env::var("PATH")?;
        let mut command = self.engine.command(words);
        command
            .env("DOCKER_CONFIG", self.home.path())
            .env("PATH", format!("{}:{path}", self.home.path().display()));
        command::run(&mut command, input.as_bytes(), MINUTE)
    }

    fn ok(&self, words: &[&str]) -> Result<String> {
        self.with(words, "")?.text()
    }

    fn file(&self) -> Result<String> {
        Ok(fs::read_to_string(self.home.path().join("config.json"))?)
    }
}

#[test]
fn a_person_logs_in_uses_a_private_registry_and_logs_out() -> Result<()> {
    with_engine(|engine| {
        let registry = ForeignRegistry::with_login()?;
        let host = registry.address.as_str();
        engine.install("guest", &guest()?)?;
        let image = format!("{host}/team/guest:v1");
        let installed = engine.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"])?;
        engine.ok(&["tag", &installed, &image])?;
        let (bob, ann) = (Person::new(engine)?, Person::new(engine)?);
        let denied = bob.with(&["push", &image], "")?.expect_code(1)?;
        ensure!(denied.stderr.contains("log in"), "{denied}");

        let login = |password: &str| {
            let words = ["login", "-u", "bob", "--password-stdin", host];
            bob.with(&words, password)
        };
        let refused = login("guess\n")?.expect_code(1)?;
        ensure!(refused.stderr.contains(host), "{refused}");
        ensure!(bob.file().is_err(), "a wrong password was kept");
        let outcome = login("secret\n")?.expect_code(0)?;
        ensure!(outcome.stdout == "Login Succeeded\n", "{outcome}");
        ensure!(outcome.stderr.contains("unencrypted"), "{outcome}");
        let path = bob.home.path().join("config.json");
        ensure!(path.metadata()?.permissions().mode() & 0o777 == 0o600);
        ensure!(bob.file()?.contains("Ym9iOnNlY3JldA=="));
        let again = bob.ok(&["login", host])?;
        ensure!(
            again == "Authenticating with existing credentials... [Username: bob]\nLogin Succeeded",
            "{again}"
        );

        bob.ok(&["push", &image])?;
        engine.ok(&["rmi", "--force", &image, &installed])?;
        ann.with(&["pull", &image], "")?.expect_code(1)?;
        ann.with(&["run", "--rm", &image], "")?.expect_code(125)?;
        ensure!(bob.ok(&["run", "--rm", &image])? == "hello");
        engine.ok(&["rmi", &image])?;
        let created = bob.ok(&["create", &image])?;
        engine.ok(&["rm", &created])?;
        bob.ok(&["pull", "--quiet", &image])?;

        let out = bob.ok(&["logout", host])?;
        ensure!(
            out == format!("Removing login credentials for {host}"),
            "{out}"
        );
        let out = bob.ok(&["logout", host])?;
        ensure!(out == format!("Not logged in to {host}"), "{out}");
        bob.with(&["pull", &image], "")?.expect_code(1)?;
        ensure!(!bob.file()?.contains("Ym9i"));

        with_a_helper(&ann, host, &image)
    })
}

/// The same with the credentials in a keychain.
fn with_a_helper(ann: &Person<'_>, host: &str, image: &str) -> Result<()> {
    let at = ann.home.path();
    let script = format!(
        "#!/bin/sh\ncd {} || exit 2\ncase $1 in\nget) cat kept 2>/dev/null || {{ echo 'credentials not found in native keychain'; exit 1; }};;\nstore) cat > kept;;\nerase) rm kept;;\nlist) [ -e kept ] && echo '{{\"{host}\":\"bob\"}}' || echo '{{}}';;\nesac\n",
        at.display()
    );
    let program = at.join("docker-credential-test");
    fs::write(&program, script)?;
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
    fs::write(at.join("config.json"), r#"{"credsStore":"test","x":1}"#)?;
    let login = ["login", "-u", "bob", "--password-stdin", host];
    let outcome = ann.with(&login, "secret")?.expect_code(0)?;
    ensure!(!outcome.stderr.contains("unencrypted"), "{outcome}");
    ensure!(fs::read_to_string(at.join("kept"))?.contains("secret"));
    let file = ann.file()?;
    ensure!(
        !file.contains("auth\"") && file.contains("\"x\": 1"),
        "{file}"
    );
    ensure!(
        ann.ok(&["run", "--rm", "--pull", "always", image])?
            .ends_with("hello")
    );
    let out = ann.ok(&["logout", host])?;
    ensure!(out.starts_with("Removing"), "{out}");
    ensure!(!at.join("kept").exists());
    Ok(())
}

#[test]
fn every_tag_of_a_repository_goes_and_comes_and_is_found() -> Result<()> {
    with_engine(|engine| {
        let ours = grpc::registry_address(&engine.socket("registry"))?;
        let repository = format!("{ours}/team/app");
        for tag in ["one", "two", "three"] {
            let image = Builder::default()
                .layer(&[Member::program("guest", GUEST)])
                .layer(&[Member::file("note", tag)])
                .command(&["/guest", "echo", tag])
                .build()?;
            push(&ours, "source", tag, &image)?;
            let source = format!("{ours}/source:{tag}");
            engine.ok(&["pull", &source])?;
            engine.ok(&["tag", &source, &format!("{repository}:{tag}")])?;
            engine.ok(&["rmi", &source])?;
        }
        let refused = engine.gantry(&["push", "-a", &format!("{repository}:one")])?;
        ensure!(
            refused.code == 1
                && refused
                    .stderr
                    .contains("tag can't be used with --all-tags/-a"),
            "{refused}"
        );
        let pushed = engine.ok(&["push", "--all-tags", &repository])?;
        let lines: Vec<&str> = pushed.lines().collect();
        ensure!(
            lines[0] == format!("The push refers to repository [{repository}]"),
            "{pushed}"
        );
        for tag in ["one", "two", "three"] {
            let line = format!("{tag}: digest: sha256:");
            ensure!(pushed.contains(&line), "{pushed}");
            engine.ok(&["rmi", &format!("{repository}:{tag}")])?;
        }
        let pulled = engine.ok(&["pull", "-a", &repository])?;
        for tag in ["one", "two", "three"] {
            let line = format!("{tag}: Pulling from team/app");
            ensure!(pulled.contains(&line), "{pulled}");
            let image = format!("{repository}:{tag}");
            ensure!(engine.ok(&["run", "--rm", &image])? == tag);
        }
        let end = format!("Status: Downloaded newer image for {repository}\n{repository}");
        ensure!(pulled.ends_with(&end), "{pulled}");
        ensure!(pulled.matches("Digest: sha256:").count() == 3, "{pulled}");
        let quiet = engine.ok(&["pull", "-aq", &repository])?;
        ensure!(quiet == repository, "{quiet}");
        // Another client sees the same tags.
        let tags = command::run(
            Command::new("skopeo").args([
                "list-tags",
                "--tls-verify=false",
                &format!("docker://{repository}"),
            ]),
            b"",
            MINUTE,
        )?
        .text()?;
        ensure!(tags.contains("\"three\""), "{tags}");

        let found = engine.ok(&["search", &format!("{ours}/app")])?;
        let mut lines = found.lines().map(str::trim_end);
        let columns: Vec<&str> = lines
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        ensure!(
            columns == ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"],
            "{found}"
        );
        let row = lines.next().unwrap_or_default();
        ensure!(
            row.starts_with(&repository) && lines.next().is_none(),
            "{found}"
        );
        let name = engine.ok(&["search", "--format", "{{.Name}}", &format!("{ours}/team")])?;
        ensure!(name == repository, "{name}");
        let none = ["search", "--filter", "stars=1", "--format", "{{.Name}}"];
        let term = format!("{ours}/team");
        ensure!(engine.ok(&[&none[..], &[&term]].concat())?.is_empty());
        let none = ["search", "-s", "1", "--automated", "--no-trunc", &term];
        ensure!(engine.ok(&none)?.contains("AUTOMATED"));
        for wrong in [
            &["search", "--limit", "101", &term][..],
            &["search", "--filter", "is-official=maybe", &term],
            &["search", "--filter", "age=1", &term],
        ] {
            ensure!(engine.gantry(wrong)?.code != 0, "{wrong:?}");
        }
        Ok(())
    })
}

#[test]
fn the_engine_s_own_registry_is_there_on_its_socket_while_its_port_is_in_use() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let listen = ("GANTRY_REGISTRY__LISTEN".to_owned(), address.clone());
    let engine = Engine::with(Options {
        environment: vec![listen],
        ..Options::default()
    })?;
    let info = engine.ok(&["info"])?;
    ensure!(info.contains(&address) && info.contains("in use"), "{info}");
    let tar = archive(&[Member::program("guest", GUEST)]);
    engine
        .gantry_with_input(&["import", "-", "box"], &tar)?
        .text()?;
    let name = "gantry.localhost/box:1";
    engine.ok(&["tag", "box", name])?;
    let pushed = engine.ok(&["push", name])?;
    ensure!(pushed.contains("1: digest: sha256:"), "{pushed}");
    engine.ok(&["rmi", "box", name])?;
    let said = engine.ok(&["run", "--rm", name, "/guest", "echo", "hello"])?;
    ensure!(said.ends_with("hello"), "{said}");
    let found = engine.ok(&["search", "--format", "{{.Name}}", "gantry.localhost/bo"])?;
    ensure!(found == "gantry.localhost/box", "{found}");
    let refused = engine.gantry(&["login", "-u", "a", "-p", "b", "gantry.localhost"])?;
    ensure!(
        refused.code != 0 && refused.stderr.contains("no credentials"),
        "{refused}"
    );
    drop(taken);
    wait_until(|| {
        engine
            .ok(&["info"])
            .is_ok_and(|info| !info.contains("in use"))
    })?;
    ensure!(std::net::TcpStream::connect(&address).is_ok());
    engine.finish()
}

#[test]
fn a_registry_without_a_search_is_searched_by_its_catalogue() -> Result<()> {
    with_engine(|engine| {
        let debians = ForeignRegistry::start()?;
        for name in ["team/web", "web-server", "database"] {
            push(&debians.address, name, "latest", &guest()?)?;
        }
        let term = format!("{}/web", debians.address);
        let found = engine.ok(&["search", "--format", "{{.Name}}", &term])?;
        let mut names: Vec<&str> = found.lines().collect();
        names.sort_unstable();
        let expected = ["team/web", "web-server"].map(|name| format!("{}/{name}", debians.address));
        ensure!(names == expected, "{found}");
        Ok(())
    })
}

/// An image of plain layers, each of so many bytes that nothing compresses.
fn large(layers: usize, bytes: usize) -> Result<Image> {
    let mut image = Builder::default()
        .packed_layer(archive(&[Member::program("guest", GUEST)]), Packing::Plain);
    for n in 0..layers {
        let mut noise = vec![0; bytes];
        getrandom::fill(&mut noise).context("no random numbers")?;
        let tar = archive(&[Member::program(&format!("noise{n}"), noise)]);
        image = image.packed_layer(tar, Packing::Plain);
    }
    Ok(image.command(&["/guest", "echo", "whole"]).build()?)
}

fn size_of(image: &Image) -> u64 {
    image.blobs.iter().map(|blob| blob.bytes.len() as u64).sum()
}

#[test]
fn a_pull_that_is_cut_all_the_time_and_killed_twice_costs_hardly_a_byte_more() -> Result<()> {
    let mut engine = Engine::start()?;
    let registry = ForeignRegistry::start()?;
    // Smaller than the benchmark's large image, and in half as many layers: what
    // is lost is some of each connection, whatever the size.
    let image = large(2, 160 << 20)?;
    push(&registry.address, "large", "v1", &image)?;
    let total = size_of(&image);
    let cutter = Cutter::before(&registry.address, 20 << 20)?;
    let reference = format!("{}/large:v1", cutter.address);
    for part in [1, 2] {
        let mut pull = engine.command(&["pull", &reference]);
        let pull = pull
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        wait_until(|| cutter.down() > total * part / 3)?;
        engine.kill_service("image", Signal::KILL)?;
        let end = Instant::now() + MINUTE;
        ensure!(command::wait_until(&pull, end)?, "the pull hangs");
        ensure!(
            fs::read_dir(engine.root().join("lib/image/ingest"))?.count() > 0,
            "nothing was kept"
        );
    }
    engine.ok(&["pull", &reference])?;
    ensure!(engine.ok(&["run", "--rm", &reference])? == "whole");
    let (down, cuts) = (cutter.down(), cutter.cuts());
    println!("{down} bytes for an image of {total}, {cuts} cuts");
    ensure!(cuts >= 8, "{cuts} cuts");
    ensure!(
        down <= total * 105 / 100,
        "{down} bytes came for an image of {total}"
    );
    engine.finish()
}

fn wait_until(mut is_so: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + MINUTE;
    while !is_so() {
        if Instant::now() > end {
            bail!("it did not come to that");
        }
        // Nobody announces how many bytes went through a proxy.
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

#[test]
fn a_mirror_that_dies_in_the_middle_is_replaced_by_the_registry() -> Result<()> {
    let (registry, mirror) = (ForeignRegistry::start()?, ForeignRegistry::start()?);
    let image = large(1, 24 << 20)?;
    for each in [&registry, &mirror] {
        push(&each.address, "large", "v1", &image)?;
    }
    let total = size_of(&image);
    let (way, behind) = (
        Cutter::before(&mirror.address, u64::MAX)?,
        Cutter::before(&registry.address, u64::MAX)?,
    );
    way.die_after(total / 2);
    let config = format!(
        "[image.registry.\"{}\"]\nmirrors = [\"http://{}\"]\n",
        behind.address, way.address
    );
    let engine = Engine::with(Options {
        config,
        ..Options::default()
    })?;
    let reference = format!("{}/large:v1", behind.address);
    engine.ok(&["pull", &reference])?;
    ensure!(way.is_dead());
    ensure!(engine.ok(&["run", "--rm", &reference])? == "whole");
    let carried = way.down() + behind.down();
    ensure!(
        carried <= total * 105 / 100 + (2 << 20),
        "{carried} of {total}"
    );
    ensure!(behind.down() < total * 3 / 4, "{} came anew", behind.down());
    // With the mirror gone the registry alone will do.
    engine.ok(&["rmi", &reference])?;
    engine.ok(&["pull", &reference])?;
    engine.finish()
}

#[test]
fn a_push_that_is_cut_goes_on_where_the_registry_has_it() -> Result<()> {
    with_engine(|engine| {
        let ours = grpc::registry_address(&engine.socket("registry"))?;
        let image = large(1, 40 << 20)?;
        push(&ours, "large", "v1", &image)?;
        let source = format!("{ours}/large:v1");
        engine.ok(&["pull", &source])?;
        let cutter = Cutter::before(&ours, 12 << 20)?;
        let target = format!("{}/copy:v1", cutter.address);
        engine.ok(&["tag", &source, &target])?;
        engine.ok(&["push", &target])?;
        let (up, cuts) = (cutter.up(), cutter.cuts());
        ensure!(cuts >= 3, "{cuts} cuts");
        let total = size_of(&image);
        // What was under way is sent again; a push that began anew would never end.
        ensure!(up <= total * 15 / 10, "{up} bytes for an image of {total}");
        engine.ok(&["rmi", "--force", &source, &target])?;
        let copy = format!("{ours}/copy:v1");
        ensure!(engine.ok(&["run", "--rm", &copy])?.ends_with("whole"));
        Ok(())
    })
}

#[test]
fn containerd_s_directory_makes_a_mirror_of_any_registry() -> Result<()> {
    let registry = ForeignRegistry::start()?;
    push(&registry.address, "team/guest", "v1", &guest()?)?;
    let directory = tempfile::Builder::new().prefix("gt-certs-").tempdir()?;
    hosts_toml(directory.path(), "registry.invalid", &registry.address)?;
    let config = format!("image.certs_dirs = [{:?}]\n", directory.path());
    let engine = Engine::with(Options {
        config,
        ..Options::default()
    })?;
    let said = engine.ok(&["run", "--rm", "registry.invalid/team/guest:v1"])?;
    ensure!(said == "hello", "{said}");
    // A file that is put there later counts at once.
    hosts_toml(directory.path(), "docker.io", &registry.address)?;
    engine.ok(&["pull", "team/guest:v1"])?;
    engine.finish()
}

fn hosts_toml(directory: &Path, host: &str, mirror: &str) -> Result<()> {
    let own = directory.join(host);
    fs::create_dir(&own)?;
    let text = format!("[host.\"http://{mirror}\"]\ncapabilities = [\"pull\", \"resolve\"]\n");
    fs::write(own.join("hosts.toml"), text)?;
    Ok(())
}
