//! An engine on a machine that other people use: modes of its files, whatever the
//! umask of whoever started it, and what a stranger can do with them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use gantry_integration_tests::command::{self, DEADLINE};
use gantry_integration_tests::engine::{Engine, Options, bin_dir};
use gantry_integration_tests::fixture::busybox_members;
use gantry_integration_tests::image::{Builder, Image};
use gantry_integration_tests::tar::Member;
use rustix::process::Signal;

const STRANGER: u32 = 65534;
/// A group that every machine has; its members may use the sockets here.
const GROUP: &str = "daemon";
const GROUP_ID: u32 = 1;

/// A small system with a program that would make anybody root, and with
/// directories that no member of the archive speaks of.
fn furnished() -> Result<Image> {
    let program = fs::read("/bin/busybox")?;
    let members = [
        busybox_members()?,
        vec![
            Member::program("suid", program).mode(0o4755),
            Member::file("implied/deep/page", "hello\n"),
        ],
    ]
    .concat();
    Ok(Builder::default()
        .layer(&members)
        .command(&["sh"])
        .build()?)
}

fn engine(umask: &'static str) -> Result<Engine> {
    let engine = Engine::with(Options {
        umask: Some(umask),
        config: format!("engine.socket_group = {GROUP:?}\n"),
        ..Options::default()
    })?;
    // As an administrator makes a directory for it: the engine has to close what is in it.
    fs::set_permissions(engine.root(), fs::Permissions::from_mode(0o755))?;
    Ok(engine)
}

/// Everything below the root with its mode, but for what belongs to the test.
fn listing(root: &Path) -> Result<BTreeMap<PathBuf, fs::Metadata>> {
    let mut found = BTreeMap::new();
    let mut rest = vec![root.to_owned()];
    while let Some(directory) = rest.pop() {
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            // What ends meanwhile needs no mode.
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            if metadata.is_dir() {
                rest.push(path.clone());
            }
            let relative = path.strip_prefix(root)?.to_owned();
            if !["gantry.toml", "up.log"]
                .iter()
                .any(|own| relative == Path::new(own))
            {
                found.insert(relative, metadata);
            }
        }
    }
    Ok(found)
}

/// The table of docs/security.md. None: what an image or a container made.
fn wanted(path: &Path, metadata: &fs::Metadata) -> Option<(u32, u32)> {
    let parts: Vec<String> = path
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    Some(match parts[..] {
        ["run"] => (0o710, GROUP_ID),
        ["run", socket] if socket.ends_with(".sock") => (0o660, GROUP_ID),
        // Namespaces are mounted on these: their modes are the kernel's.
        ["run", "netns", _] => return None,
        // Seen by users inside, behind a closed directory.
        ["run", "containers", _, "etc", _] => (0o644, 0),
        ["log", "containers", _, log] if log.ends_with(".log") => (0o640, 0),
        ["lib", "image", "layers", _, "fs", ..]
        | ["lib", "image", "writable", _, "upper" | "work", ..]
        | ["lib", "image", "volumes", _, "_data", ..] => return None,
        _ if metadata.is_dir() => (0o700, 0),
        _ => (0o600, 0),
    })
}

fn check_modes(root: &Path) -> Result<()> {
    let mut wrong = Vec::new();
    for (path, metadata) in listing(root)? {
        let Some((mode, group)) = wanted(&path, &metadata) else {
            continue;
        };
        let found = (metadata.mode() & 0o7777, metadata.gid());
        if found != (mode, group) || metadata.uid() != 0 {
            wrong.push(format!(
                "{}: {:o} of {}:{}, not {mode:o} of 0:{group}",
                path.display(),
                found.0,
                metadata.uid(),
                found.1
            ));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Runs a shell script as somebody else, with `input`.
fn as_user(user: u32, group: u32, script: &str, input: &[u8]) -> Result<String> {
    let mut shell = Command::new("/bin/busybox");
    shell
        .args(["sh", "-c", script])
        .uid(user)
        .gid(group)
        .current_dir("/");
    command::run(&mut shell, input, DEADLINE)?.text()
}

/// The paths below `root` that somebody else may read, write or execute.
fn open_to(root: &Path, user: u32, group: u32) -> Result<Vec<PathBuf>> {
    let paths: Vec<String> = listing(root)?
        .keys()
        .map(|path| root.join(path).display().to_string())
        .collect();
    ensure!(
        paths.len() > 100,
        "there is too little to look at: {paths:?}"
    );
    let script = r#"while IFS= read -r path; do
        if [ -r "$path" ] || [ -w "$path" ] || [ -x "$path" ]; then echo "$path"; fi
    done"#;
    let open = as_user(user, group, script, paths.join("\n").as_bytes())?;
    Ok(open
        .lines()
        .map(|line| Path::new(line).strip_prefix(root).map(Path::to_owned))
        .collect::<Result<_, _>>()?)
}

/// An engine with everything that it makes: a running container with a volume, a
/// writable layer with a set-user-ID program and a device, output, a stopped one.
fn fill(engine: &Engine) -> Result<()> {
    let image = engine.install("box", &furnished()?)?;
    let script = "cp /suid /mine; chmod 4755 /mine; cp /suid /data/theirs; chmod 4755 /data/theirs;
        mknod /null c 1 3; echo said; sleep 1000";
    let head = ["run", "-d", "--name", "full", "-v", "kept:/data"];
    engine.ok(&[
        &head[..],
        &["-e", "SECRET=s3cret", &image, "sh", "-c", script],
    ]
    .concat())?;
    engine.ok(&[
        "run", "-d", "--rm", "--name", "brief", &image, "sleep", "1000",
    ])?;
    engine.ok(&["run", "--name", "done", &image, "true"])?;
    engine.ok(&[
        "exec",
        "full",
        "sh",
        "-c",
        "until [ -c /null ]; do sleep 0.05; done",
    ])?;
    Ok(())
}

#[test]
fn every_file_has_its_mode_whatever_the_umask_is() -> Result<()> {
    for umask in ["000", "077"] {
        let mut engine = engine(umask)?;
        fill(&engine)?;
        check_modes(engine.root()).with_context(|| format!("with the umask {umask}"))?;
        // Those of a restart are the same.
        engine.restart(Signal::TERM)?;
        check_modes(engine.root()).with_context(|| format!("again with the umask {umask}"))?;
        engine.finish()?;
    }
    Ok(())
}

#[test]
fn a_stranger_reaches_nothing_of_an_engine() -> Result<()> {
    let engine = engine("000")?;
    fill(&engine)?;
    let root = engine.root();
    let open = open_to(root, STRANGER, STRANGER)?;
    ensure!(open.is_empty(), "open to everybody: {open:?}");

    // Who is in the group reaches the sockets, and nothing else.
    let open = open_to(root, STRANGER, GROUP_ID)?;
    let is_socket = |path: &PathBuf| path.extension().is_some_and(|end| end == "sock");
    let (sockets, rest): (Vec<_>, Vec<_>) = open.into_iter().partition(is_socket);
    ensure!(sockets.len() == 5, "{sockets:?}");
    ensure!(
        rest == [PathBuf::from("run")],
        "open to the group: {rest:?}"
    );
    let script = format!("ls {}/run", root.display());
    ensure!(
        as_user(STRANGER, GROUP_ID, &script, b"").is_err(),
        "run can be listed"
    );
    engine.finish()
}

#[test]
fn an_older_engine_is_closed_when_it_starts() -> Result<()> {
    let mut engine = engine("022")?;
    fill(&engine)?;
    let root = engine.root().to_owned();
    let older = [
        ("lib", 0o711),
        ("lib/image", 0o755),
        ("lib/image/layers", 0o755),
        ("lib/image/volumes", 0o755),
        ("lib/image/writable", 0o755),
        ("lib/gateway", 0o755),
        ("lib/gateway/containers", 0o755),
        ("lib/registry", 0o755),
        ("run", 0o755),
        ("run/containers", 0o711),
        ("run/gateway", 0o755),
        ("run/network", 0o755),
        ("run/netns", 0o755),
        ("log", 0o755),
        ("log/containers", 0o755),
    ];
    for (path, mode) in older {
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode))?;
    }
    engine.restart(Signal::TERM)?;
    check_modes(&root)?;
    let open = open_to(&root, STRANGER, STRANGER)?;
    ensure!(open.is_empty(), "open to everybody: {open:?}");
    // Its containers run on.
    ensure!(engine.ok(&["exec", "full", "cat", "/implied/deep/page"])? == "hello");
    engine.finish()
}

#[test]
fn users_in_containers_see_the_same_whatever_the_umask_is() -> Result<()> {
    for umask in ["000", "077"] {
        let engine = engine(umask)?;
        let image = engine.install("box", &furnished()?)?;
        let bind = engine.root().join("made/for/it");
        let mount = format!("{}:/bind", bind.display());
        let script =
            "stat -c '%a %n' / /implied /implied/deep /etc/hosts /etc/resolv.conf /volume /bind;
            cat /etc/hosts > /dev/null && cat /implied/deep/page; umask";
        let said = "755 /\n755 /implied\n755 /implied/deep\n644 /etc/hosts\n644 /etc/resolv.conf\n\
                    755 /volume\n755 /bind\nhello\n0022";
        for users in [&[][..], &["--userns", "auto"]] {
            let flags = ["run", "--rm", "-u", "alice", "-v", "/volume", "-v", &mount];
            let told = engine.ok(&[&flags, users, &[&image, "sh", "-c", script]].concat())?;
            ensure!(told == said, "umask {umask}, {users:?}: {told}");
        }
        // Files that are copied in, and directories that are made for them.
        engine.ok(&["run", "-d", "--name", "target", &image, "sleep", "1000"])?;
        let archive = gantry_integration_tests::tar::archive(&[Member::file("new/sub/page", "x")]);
        let copied = engine.gantry_with_input(&["cp", "-", "target:/"], &archive)?;
        copied.text()?;
        let modes = engine.ok(&["exec", "target", "stat", "-c", "%a", "/new", "/new/sub"])?;
        ensure!(modes == "755\n755", "umask {umask}: {modes}");
        engine.finish()?;
    }
    Ok(())
}

/// `gantry up --root ROOT`, which must refuse.
fn refused(root: &Path) -> Result<String> {
    let mut up = Command::new(bin_dir()?.join("gantry"));
    up.arg("--root").arg(root).arg("up");
    let outcome = command::run(&mut up, b"", DEADLINE)?;
    ensure!(outcome.code != 0, "{outcome}");
    Ok(outcome.stderr)
}

#[test]
fn a_root_that_a_stranger_prepared_is_refused() -> Result<()> {
    let common = tempfile::Builder::new().prefix("gt-").tempdir_in("/tmp")?;
    fs::set_permissions(common.path(), fs::Permissions::from_mode(0o1777))?;
    let at = |name: &str| common.path().join(name);
    let theirs = |path: &Path| std::os::unix::fs::lchown(path, Some(STRANGER), Some(STRANGER));

    fs::create_dir(at("directory"))?;
    theirs(&at("directory"))?;
    fs::create_dir(at("elsewhere"))?;
    symlink(at("elsewhere"), at("link"))?;
    theirs(&at("link"))?;
    fs::create_dir(at("half"))?;
    fs::create_dir(at("half/lib"))?;
    chown(at("half/lib"), Some(STRANGER), None)?;
    for root in ["directory", "directory/sub", "link", "link/sub", "half"] {
        let said = refused(&at(root))?;
        ensure!(
            said.contains("belongs to the user with id 65534"),
            "{root}: {said}"
        );
    }
    for untouched in ["directory", "elsewhere"] {
        let found = fs::read_dir(at(untouched))?.count();
        ensure!(found == 0, "something was made in {untouched}");
    }
    Ok(())
}

#[test]
fn a_root_with_a_path_of_200_bytes_works_as_any_other() -> Result<()> {
    let mut engine = Engine::with(Options {
        root_length: Some(200),
        ..Options::default()
    })?;
    ensure!(engine.root().as_os_str().len() == 200);
    let image = engine.busybox()?;
    ensure!(engine.ok(&["run", "--rm", &image, "echo", "here"])? == "here");
    let program = bin_dir()?.join("gantry-oci").display().to_string();
    let script = "echo first; while ! [ -e /end ]; do sleep 0.05; done; echo last; exit 7";
    for (name, flags) in [
        ("plain", &[][..]),
        ("users", &["--userns", "auto"]),
        (
            "closed",
            &["--read-only", "--tmpfs", "/tmp", "-v", "kept:/v"],
        ),
        ("foreign", &["--runtime", &program, "-t"]),
    ] {
        let head = ["run", "-d", "--name", name];
        let loops = script.replace("/end", if name == "closed" { "/v/end" } else { "/end" });
        engine.ok(&[&head, flags, &[&image, "sh", "-c", &loops]].concat())?;
        ensure!(
            engine.ok(&["exec", name, "echo", "inside"])? == "inside",
            "{name}"
        );
        ensure!(
            engine.ok(&["exec", "-t", name, "echo", "tty"])?.trim() == "tty",
            "{name}"
        );
    }
    // Every service alone, then all of them: the shims are found again.
    for service in gantry_integration_tests::engine::SERVICES {
        engine.kill_service(service, Signal::KILL)?;
    }
    for signal in [Signal::TERM, Signal::KILL] {
        engine.restart(signal)?;
    }
    for name in ["plain", "users", "closed", "foreign"] {
        let end = if name == "closed" { "/v/end" } else { "/end" };
        engine.ok(&["exec", name, "touch", end])?;
        ensure!(engine.ok(&["wait", name])? == "7", "{name}");
        let logs = engine.ok(&["logs", name])?.replace('\r', "");
        ensure!(logs == "first\nlast", "{name}: {logs}");
    }
    let archive = engine.root().join("saved.tar");
    let path = archive.display().to_string();
    engine.ok(&["save", "-o", &path, &image])?;
    engine.ok(&["load", "-i", &path])?;
    engine.finish()
}
