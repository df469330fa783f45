//! `gantry events`: what happens to containers, images, networks and volumes, in
//! Docker's words and in one order, whatever service it happens in.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use gantry_integration_tests::engine::{Engine, send, with_engine};
use gantry_integration_tests::pty::Pty;
use gantry_integration_tests::tar::{Member, archive};
use rustix::process::Signal;

/// What happened until now, of some filters, as a template shows it.
fn shown(engine: &Engine, filters: &[&str], template: &str) -> Result<Vec<String>> {
    let mut words = vec!["events", "--since", "1h", "--until", "0s"];
    words.extend(["--format", template]);
    for filter in filters {
        words.extend(["--filter", filter]);
    }
    Ok(engine.ok(&words)?.lines().map(str::to_owned).collect())
}

/// "image tag", "container start", …
fn told(engine: &Engine, filters: &[&str]) -> Result<Vec<String>> {
    shown(engine, filters, "{{.Type}} {{.Action}}")
}

fn check(told: &[String], expected: &[&str]) -> Result<()> {
    ensure!(
        told.iter().eq(expected),
        "{told:#?} was told, and not {expected:#?}"
    );
    Ok(())
}

#[test]
fn a_containers_life_is_told_with_its_network_and_its_volumes() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let volume = ["-v", "data:/data:ro"];
        let run = ["run", "--name", "one", "-l", "tier=front"];
        engine.ok(&[&run[..], &volume, &[&image, "true"]].concat())?;
        engine.ok(&["start", "-a", "one"])?;
        engine.ok(&["rm", "one"])?;
        let ran = [
            "container attach",
            "network connect",
            "volume mount",
            "container start",
            "container die",
            "network disconnect",
            "volume unmount",
        ];
        let created = &["volume create", "container create"][..];
        let all = [created, &ran, &ran, &["container destroy"]].concat();
        let objects = ["type=container", "type=network", "type=volume"];
        check(&told(engine, &objects)?, &all)?;
        let own: Vec<&str> = all.into_iter().filter(|w| w.starts_with("cont")).collect();
        check(&told(engine, &["container=one"])?, &own)?;
        check(&told(engine, &["label=tier=front"])?, &own)?;
        check(&told(engine, &["label=tier=front", "label=other"])?, &[])?;

        let id = engine.ok(&["run", "-d", "--name", "two", &image, "sleep", "600"])?;
        engine.ok(&["exec", "two", "true"])?;
        engine.ok(&["rm", "-f", "two"])?;
        check(
            &told(engine, &["container=two"])?,
            &[
                "container create",
                "container start",
                "container exec_create: true",
                "container exec_start: true",
                "container exec_die",
                "container kill",
                "container die",
                "container destroy",
            ],
        )?;
        check(
            &told(engine, &["container=two", "event=exec_start"])?,
            &["container exec_start: true"],
        )?;
        let attributes = "{{.Actor.ID}} {{json .Actor.Attributes}}";
        check(
            &shown(engine, &["event=connect"], attributes)?[2..],
            &[&format!(
                "bridge {{\"container\":\"{id}\",\"name\":\"bridge\",\"type\":\"bridge\"}}"
            )],
        )?;
        let mounted = shown(
            engine,
            &["volume=da", "event=mount"],
            "{{json .Actor.Attributes}}",
        )?;
        let mounted: serde_json::Value = serde_json::from_str(&mounted[0])?;
        let of = |key: &str| mounted[key].as_str().unwrap_or("none").to_owned();
        ensure!(
            [
                of("destination"),
                of("read/write"),
                of("driver"),
                of("propagation")
            ] == ["/data", "false", "local", ""],
            "{mounted}"
        );
        let deaths = shown(engine, &["event=die"], "{{.Actor.Attributes.exitCode}}")?;
        check(&deaths, &["0", "0", "137"])?;
        Ok(())
    })
}

#[test]
fn windows_are_told_of_and_processes_that_go_on_without_one() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let leave = |words: &[&str]| -> Result<()> {
            let mut window = Pty::spawn(&engine.command(words), 81, 25)?;
            window.wait_for_text("# ")?;
            window.type_text("touch /left\n\u{10}\u{11}")?;
            let (code, bytes) = window.finish()?;
            let said = String::from_utf8_lossy(&bytes);
            ensure!(code == 0, "{code}: {said}");
            // What was typed before the keys arrives.
            let there = "until test -e /left; do sleep 0.05; done; rm /left";
            engine.ok(&["exec", "box", "sh", "-c", there])?;
            Ok(())
        };
        leave(&["run", "-it", "--name", "box", &image, "sh"])?;
        leave(&["attach", "box"])?;
        leave(&["exec", "-it", "box", "sh"])?;
        let mut listening = engine
            .command(&["events", "--filter", "event=exec_die", "--since", "1h"])
            .stdout(Stdio::piped())
            .spawn()?;
        engine.ok(&["exec", "-d", "box", "sh", "-c", "exit 3"])?;
        // The end of a process that no window sees comes when it comes.
        let lines = BufReader::new(listening.stdout.take().context("no output")?).lines();
        let mut lines = lines.map_while(Result::ok);
        ensure!(lines.any(|line| line.contains("exitCode=3")));
        listening.kill()?;
        listening.wait()?;
        check(
            &shown(
                engine,
                &[
                    "event=create",
                    "event=start",
                    "event=attach",
                    "event=resize",
                    "event=detach",
                    "event=exec_detach",
                    "type=container",
                ],
                "{{.Action}}{{with .Actor.Attributes.height}} {{.}}{{end}}",
            )?,
            &[
                "create",
                "attach",
                "start",
                "resize 25",
                "detach",
                "attach",
                // So that what runs in it draws its screen anew.
                "resize 26",
                "resize 25",
                "detach",
                "exec_detach",
            ],
        )?;
        Ok(())
    })
}

#[test]
fn an_event_is_a_line_or_an_object_of_dockers() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&[
            "run",
            "--rm",
            "--name",
            "one",
            "-v",
            "data:/data",
            &image,
            "true",
        ])?;
        let asked = ["events", "--since", "1h", "--until", "0s", "--filter"];
        let line = engine.ok(&[&asked[..], &["event=die"]].concat())?;
        let words: Vec<&str> = line.split(' ').collect();
        ensure!(words[0].len() == 30 && words[0].ends_with('Z'), "{line}");
        ensure!(
            words[1..3] == ["container", "die"] && words[3].len() == 64,
            "{line}"
        );
        ensure!(line.contains("exitCode=0") && line.ends_with(')'), "{line}");
        for format in ["json", "{{json .}}"] {
            let object = |filter: &str| -> Result<serde_json::Value> {
                let words = [&asked[..], &[filter, "--format", format]].concat();
                let said = engine.ok(&words)?;
                Ok(serde_json::from_str(said.lines().next().context("none")?)?)
            };
            let destroyed = object("event=destroy")?;
            ensure!(
                destroyed["Actor"]["Attributes"]["name"] == "one",
                "{destroyed}"
            );
            ensure!(destroyed["status"] == "destroy", "{destroyed}");
            ensure!(destroyed["from"] == image.as_str(), "{destroyed}");
            let mounted = object("type=volume")?;
            ensure!(mounted["Actor"]["ID"] == "data", "{mounted}");
            ensure!(mounted.get("status").is_none(), "{mounted}");
        }
        // Kinds have different attributes: one that is not there is nothing.
        let names = shown(engine, &["type=volume"], "{{.Actor.Attributes.name}}")?;
        check(&names, &["<no value>"; 3])?;
        for (words, says) in [
            (&["--filter", "nosuch=x"][..], "nosuch"),
            (&["--filter", "type=contaner"], "contaner"),
            (&["--since", "1m", "--until", "2m"], "until"),
        ] {
            let outcome = engine.gantry(&[&["events"][..], words].concat())?;
            ensure!(
                outcome.code != 0 && outcome.stderr.contains(says),
                "{outcome}"
            );
        }
        Ok(())
    })
}

#[test]
fn images_tell_what_happens_to_them() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let id = engine.ok(&["inspect", "-f", "{{.Id}}", &image])?;
        let other = image.replace("busybox:latest", "other:2");
        engine.ok(&["tag", &image, &other])?;
        engine.ok(&["push", &other])?;
        let file = engine.root().join("saved.tar");
        let file = file.to_str().context("no text")?;
        engine.ok(&["save", "-o", file, &other])?;
        engine.ok(&["rmi", &other])?;
        engine.ok(&["load", "-i", file])?;
        engine.ok(&["rmi", &other])?;
        engine.ok(&["run", "-d", "--name", "box", &image, "sleep", "600"])?;
        engine.ok(&["commit", "-m", "why", "box", "made:1"])?;
        let made = engine.ok(&["inspect", "-f", "{{.Id}}", "made:1"])?;
        engine.ok(&["rmi", "made:1"])?;
        let tar = archive(&[Member::file("f", "x")]);
        engine.gantry_with_input(&["import", "-"], &tar)?.text()?;
        engine.ok(&["image", "prune", "-f"])?;
        let line = "{{.Action}} {{.Actor.ID}} {{.Actor.Attributes.name}}";
        let lines = shown(engine, &["type=image"], line)?;
        let imported = lines.iter().find_map(|line| line.strip_prefix("import "));
        let imported = imported
            .and_then(|rest| rest.split_once(' '))
            .context("no import")?
            .0;
        let name = |reference: &str| {
            let name = reference.rsplit_once(':').map(|(name, _)| name);
            name.unwrap_or_default().to_owned()
        };
        let of = |action: &str, id: &str| format!("{action} {id} {id}");
        let expected = [
            format!("pull {image} {}", name(&image)),
            format!("tag {id} {other}"),
            format!("push {other} {}", name(&other)),
            of("save", &id),
            of("untag", &id),
            of("load", &id),
            of("untag", &id),
            format!("tag {made} made:1"),
            of("untag", &made),
            of("delete", &made),
            of("import", imported),
            of("delete", imported),
            "prune  <no value>".to_owned(),
        ];
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(&lines, &expected)?;
        let commit = "{{.Actor.Attributes.comment}} {{.Actor.Attributes.imageID}} {{.Actor.Attributes.imageRef}}";
        check(
            &shown(engine, &["event=commit"], commit)?,
            &[&format!("why {made} made:1")],
        )?;
        // In order, though the two come from two services.
        let of_commit = ["event=pause", "event=tag", "event=commit", "event=unpause"];
        check(
            &told(engine, &of_commit)?[1..],
            &[
                "container pause",
                "image tag",
                "container commit",
                "container unpause",
            ],
        )?;
        check(
            &told(engine, &[&format!("image={}", name(&image)), "type=image"])?,
            &["image pull"],
        )?;
        Ok(())
    })
}

#[test]
fn who_listens_hears_of_both_services_in_order() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let mut listening = engine
            .command(&[
                "events",
                "--since",
                "1h",
                "--format",
                "{{.Type}} {{.Action}}",
            ])
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(listening.stdout.take().context("no output")?).lines();
        let mut lines = lines.map_while(Result::ok);
        ensure!(lines.next().as_deref() == Some("image pull"));
        for number in 0..3 {
            let name = format!("copy:{number}");
            let volume = format!("v{number}:/data");
            engine.ok(&["tag", &image, &name])?;
            engine.ok(&[
                "run",
                "--rm",
                "-v",
                "/anonymous",
                "-v",
                &volume,
                &image,
                "true",
            ])?;
            engine.ok(&["rmi", &name])?;
            let heard: Vec<String> = lines.by_ref().take(16).collect();
            check(
                &heard,
                &[
                    "image tag",
                    "volume create",
                    "volume create",
                    "container create",
                    "container attach",
                    "network connect",
                    "volume mount",
                    "volume mount",
                    "container start",
                    "container die",
                    "network disconnect",
                    "volume unmount",
                    "volume unmount",
                    "volume destroy",
                    "container destroy",
                    "image untag",
                ],
            )?;
        }
        listening.kill()?;
        listening.wait()?;
        Ok(())
    })
}

#[test]
fn a_killed_image_service_loses_and_doubles_no_event_that_it_told() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let mut expected = vec!["image pull".to_owned()];
        let mut names = Vec::new();
        for round in 0..3 {
            for number in 0..5 {
                let name = format!("copy:{round}-{number}");
                engine.ok(&["tag", &image, &name])?;
                names.push(name);
                expected.push("image tag".to_owned());
            }
            let heard = told(engine, &["type=image"])?;
            ensure!(heard == expected, "round {round}: {heard:?}");
            engine.kill_service("image", Signal::KILL)?;
            let heard = told(engine, &["type=image"])?;
            ensure!(heard == expected, "after round {round}: {heard:?}");
        }
        let heard = shown(engine, &["event=tag"], "{{.Actor.Attributes.name}}")?;
        ensure!(heard == names, "{heard:?}");

        // A gateway that is killed has all that the image service remembers.
        engine.ok(&["tag", &image, "copy:last"])?;
        engine.kill_service("gateway", Signal::KILL)?;
        check(&told(engine, &["type=image"])?, &["image tag"])?;

        // One that does not answer holds up nobody.
        engine.ok(&["run", "--rm", &image, "true"])?;
        let pid = engine.service_pid("image")?;
        send(pid, Signal::STOP)?;
        let heard = told(engine, &["type=container"]);
        send(pid, Signal::CONT)?;
        ensure!(heard?.last().map(String::as_str) == Some("container destroy"));
        Ok(())
    })
}
