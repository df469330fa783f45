//! A container's files on their way out of it: diff, commit, export, import.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_integration_tests::command;
use gantry_integration_tests::engine::{Engine, with_engine};
use gantry_integration_tests::tar::archive;
use serde_json::Value;

/// What every test does to its container.
const CHANGE: &str = "echo root2 >> /etc/passwd; mkdir -p /srv/new; echo x > /srv/new/f; ln /srv/new/f /srv/new/g;
    rm -r /home/alice; rm /etc/group; chmod 700 /tmp; ln -s /srv /link; rm -r /root; mkdir /root; echo y > /root/z";

const CHANGED: &str = "C /etc
D /etc/group
C /etc/passwd
C /home
D /home/alice
A /link
C /root
A /root/z
A /srv
A /srv/new
A /srv/new/f
A /srv/new/g
C /tmp";

fn config(engine: &Engine, image: &str) -> Result<Value> {
    let shown = engine.ok(&["inspect", "--type", "image", image])?;
    let shown: Value = serde_json::from_str(&shown)?;
    Ok(shown[0].clone())
}

#[test]
fn what_a_container_changed_is_listed_committed_and_runs() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let run = [
            "run", "--name", "it", "-e", "A=1", "-w", "/srv", "-p", "8080",
        ];
        engine.ok(&[&run[..], &[&image, "sh", "-c", CHANGE]].concat())?;
        let listed = engine.ok(&["diff", "it"])?;
        ensure!(listed == CHANGED, "{listed}");
        ensure!(engine.ok(&["container", "diff", "it"])? == CHANGED);

        let id = engine.ok(&[
            "commit",
            "-a",
            "me",
            "-m",
            "why",
            "-c",
            "LABEL k=v",
            "-c",
            "ENV B=2",
            "it",
            "mine:1",
        ])?;
        ensure!(id.starts_with("sha256:") && id.len() == 71, "{id}");
        let shown = config(engine, "mine:1")?;
        let config = &shown["Config"];
        ensure!(shown["Author"] == "me", "{shown}");
        ensure!(config["WorkingDir"] == "/srv", "{config}");
        ensure!(config["Labels"]["k"] == "v", "{config}");
        ensure!(config["Cmd"][0] == "sh", "{config}");
        let env = config["Env"].to_string();
        ensure!(env.contains("A=1") && env.contains("B=2"), "{env}");
        let history = engine.ok(&["history", "--no-trunc", "mine:1"])?;
        ensure!(history.contains("why"), "{history}");

        // The image without its container, and with the one it was made of.
        engine.ok(&["rm", "it"])?;
        let said = engine.ok(&[
            "run", "--rm", "mine:1", "sh", "-c",
            "pwd; echo $A$B; tail -1 /etc/passwd; cat /srv/new/g; stat -c %h /srv/new/f; stat -c %a /tmp; ls /home /root; ls /etc/group",
        ]);
        ensure!(said.is_err(), "/etc/group is there");
        let said = engine.ok(&[
            "run", "--rm", "mine:1", "sh", "-c",
            "pwd; echo $A$B; tail -1 /etc/passwd; cat /srv/new/g; stat -c %h /srv/new/f; stat -c %a /tmp; ls /home /root",
        ])?;
        ensure!(
            said == "/srv\n12\nroot2\nx\n2\n700\n/home:\n\n/root:\nz",
            "{said}"
        );
        let between = engine.ok(&["diff", &image, "mine:1"])?;
        ensure!(between == CHANGED, "{between}");
        ensure!(engine.ok(&["diff", "mine:1", "mine:1"])?.is_empty());
        Ok(())
    })
}

#[test]
fn a_commit_of_a_running_container_freezes_it_and_lets_it_go_on() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&[
            "run",
            "-d",
            "--name",
            "it",
            &image,
            "sh",
            "-c",
            "echo x > /f; sleep 1000",
        ])?;
        engine.ok(&["exec", "it", "sh", "-c", "until [ -s /f ]; do :; done"])?;
        for flags in [&[][..], &["--pause=false"], &["--no-pause"], &["-p=true"]] {
            engine.ok(&[&["commit"], flags, &["it", "mine"]].concat())?;
            let state = engine.ok(&["inspect", "--format", "{{.State.Status}}", "it"])?;
            ensure!(state == "running", "{flags:?}: {state}");
        }
        ensure!(engine.ok(&["run", "--rm", "mine", "cat", "/f"])? == "x");
        // One that a person froze stays so.
        engine.ok(&["pause", "it"])?;
        engine.ok(&["commit", "it"])?;
        let state = engine.ok(&["inspect", "--format", "{{.State.Status}}", "it"])?;
        ensure!(state == "paused", "{state}");
        engine.ok(&["unpause", "it"])?;
        // Nothing but errors for what is not there, or not right.
        for (words, why) in [
            (&["commit", "nobody"][..], "no such container"),
            (&["diff", "nobody"], "no such container"),
            (&["export", "nobody"], "no such container"),
            (&["commit", "-c", "RUN x", "it"], "RUN"),
            (&["commit", "it", "Not/A Name"], "Not/A Name"),
            (&["diff", "mine", "nothing"], "nothing"),
        ] {
            let outcome = engine.gantry(words)?;
            ensure!(
                outcome.code == 1 && outcome.stderr.contains(why),
                "{words:?}: {outcome}"
            );
        }
        let state = engine.ok(&["inspect", "--format", "{{.State.Status}}", "it"])?;
        ensure!(state == "running", "{state}");
        engine.ok(&["rm", "-f", "it"])?;
        Ok(())
    })
}

#[test]
fn an_export_is_imported_again_from_a_file_and_from_a_url() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&["run", "--name", "it", &image, "sh", "-c", CHANGE])?;
        let file = engine.root().join("x.tar");
        let path = file.display().to_string();
        engine.ok(&["export", "-o", &path, "it"])?;
        let tar = std::fs::read(&file)?;
        let names = command::run(
            Command::new("tar").args(["-tf", &path]),
            b"",
            Duration::from_secs(20),
        )?
        .text()?;
        let plain = |name: &str| !name.starts_with("./") && !name.starts_with('/');
        ensure!(names.lines().all(plain), "{names}");
        ensure!(
            names.lines().any(|name| name == "srv/new/") && names.contains("srv/new/f"),
            "{names}"
        );
        ensure!(
            !names.contains("etc/group") && !names.contains("alice"),
            "{names}"
        );
        // Standard output gives the same bytes.
        let beside = engine.root().join("y.tar");
        let to = std::fs::File::create(&beside)?;
        let status = engine.command(&["export", "it"]).stdout(to).status()?;
        ensure!(
            status.success() && std::fs::read(&beside)? == tar,
            "{status}"
        );
        std::fs::remove_file(beside)?;

        let check =
            "tail -1 /etc/passwd; cat /srv/new/g; stat -c %h /srv/new/f; ls /root; readlink /link";
        let expected = "root2\nx\n2\nz\n/srv";
        engine.ok(&["import", &path, "again"])?;
        ensure!(engine.ok(&["run", "--rm", "again", "sh", "-c", check])? == expected);

        let url = serve(tar)?;
        let id = engine.ok(&[
            "import",
            "-m",
            "from afar",
            "-c",
            "ENV A=1",
            &format!("{url}/x.tar"),
            "far",
        ])?;
        ensure!(id.starts_with("sha256:"), "{id}");
        ensure!(engine.ok(&["run", "--rm", "far", "sh", "-c", check])? == expected);
        let outcome = engine.gantry(&["import", &format!("{url}/none"), "far2"])?;
        ensure!(
            outcome.code == 1 && outcome.stderr.contains("404"),
            "{outcome}"
        );
        engine.ok(&["rm", "it"])?;
        std::fs::remove_file(file)?;
        Ok(())
    })
}

#[test]
fn a_container_that_did_nothing_changed_nothing() -> Result<()> {
    with_engine(|engine| {
        // Even where the image has nothing to mount on.
        let bare = archive(&[gantry_integration_tests::tar::Member::program(
            "guest",
            gantry_integration_tests::GUEST,
        )]);
        let outcome = engine.gantry_with_input(&["import", "-", "bare"], &bare)?;
        ensure!(outcome.code == 0, "{outcome}");
        engine.ok(&["run", "--name", "it", "bare", "/guest", "true"])?;
        let listed = engine.ok(&["diff", "it"])?;
        ensure!(listed.is_empty(), "{listed}");
        engine.ok(&["commit", "it", "same"])?;
        let layers = |image: &str| -> Result<Value> {
            Ok(config(engine, image)?["RootFS"]["Layers"].clone())
        };
        ensure!(layers("bare")? == layers("same")?);
        engine.ok(&["rm", "it"])?;
        Ok(())
    })
}

/// Serves one file over HTTP, and nothing else. Its thread ends with the test's process.
fn serve(file: Vec<u8>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a port")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let read = stream.read(&mut head).unwrap_or(0);
            let asked = String::from_utf8_lossy(&head[..read]).into_owned();
            let (status, body) = match asked.starts_with("GET /x.tar ") {
                true => ("200 OK", &file[..]),
                false => ("404 Not Found", &b"nothing here"[..]),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            let _gone = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(body));
        }
    });
    Ok(format!("http://{address}"))
}
