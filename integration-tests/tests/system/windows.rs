//! Several windows on one container, none of which can hurt another, and the
//! bytes that pass through them.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use gantry_integration_tests::engine::{Engine, with_engine};
use gantry_integration_tests::pty::{Pty, find};
use rustix::process::{Pid, Signal, kill_process};

/// What a window that does not read may miss nothing of.
const KEPT: usize = 1 << 20;

/// A window on a shell, in which one can type: the shell draws its prompt anew for it.
fn attach(engine: &Engine, container: &str) -> Result<Pty> {
    let window = Pty::spawn(&engine.command(&["attach", container]), 80, 24)?;
    window.wait_for_text("# ")?;
    Ok(window)
}

/// What came from the begin of `from` to the end of `to`.
fn between<'a>(bytes: &'a [u8], from: &str, to: &str) -> Result<&'a [u8]> {
    let begin = find(bytes, from).with_context(|| format!("no {from:?}"))?;
    let end = find(&bytes[begin..], to).with_context(|| format!("no {to:?}"))?;
    Ok(&bytes[begin..begin + end + to.len()])
}

#[test]
fn of_five_windows_one_stops_and_one_is_killed_and_the_others_are_alike() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&["run", "-dit", "--name", "box", &image, "sh"])?;
        let mut windows = Vec::new();
        for _ in 0..5 {
            windows.push(attach(engine, "box")?);
        }
        // Every window is there once each has shown what another one typed: what is
        // typed comes back as it is, what is printed is the sum.
        for number in 0..5 {
            windows[number].type_text(&format!("echo here-{number}-$((40+2))\n"))?;
            for window in &windows[number..] {
                window.wait_for_text(&format!("here-{number}-42"))?;
            }
        }
        windows[1].signal(Signal::STOP)?;
        windows[4].signal(Signal::KILL)?;

        // 9 MB: more than is kept for the stopped one, and than is under way to it.
        let lines = 1_200_000;
        windows[0].type_text(&format!("seq 1 {lines}; echo all-$((40+3))\n"))?;
        let mut seen = Vec::new();
        for number in [0, 2, 3] {
            seen.push(windows[number].wait_for_text("all-43")?);
        }
        let wanted: String = (1..=lines).map(|n| format!("{n}\r\n")).collect();
        let wanted = format!("{wanted}all-43");
        for (bytes, number) in seen.iter().zip([0, 2, 3]) {
            let bytes = between(bytes, "\r\n1\r\n2\r\n", "all-43")?;
            ensure!(
                bytes[2..] == *wanted.as_bytes(),
                "window {number} has {} of {} bytes",
                bytes.len(),
                wanted.len()
            );
        }

        // The one that stood still goes on where it was, has what was kept for
        // it, is told what it missed, and is a window like the others again.
        windows[1].signal(Signal::CONT)?;
        windows[2].type_text("echo again-$((40+4))\n")?;
        let late = windows[1].wait_for_text("again-44")?;
        let begin = find(&late, "\r\n1\r\n2\r\n").context("nothing was kept")? + 2;
        let alike = late[begin..]
            .iter()
            .zip(wanted.as_bytes())
            .take_while(|(found, wanted)| found == wanted)
            .count();
        ensure!(alike >= KEPT, "only {alike} bytes were kept");
        let told = String::from_utf8_lossy(&late[begin + alike..]).into_owned();
        let missed: usize = told
            .split_once("missed ")
            .and_then(|(_, rest)| rest.split_once(" bytes"))
            .with_context(|| format!("it was not told: {:.200}", told))?
            .0
            .parse()?;
        ensure!(
            missed > 0 && alike + missed <= wanted.len() + 200,
            "{missed}"
        );

        // The killed one's is a new window.
        let killed = windows.pop().context("five windows")?;
        ensure!(killed.finish()?.0 == 137, "it was killed");
        windows.push(attach(engine, "box")?);
        windows[4].type_text("echo anew-$((40+5))\n")?;
        for window in &windows {
            window.wait_for_text("anew-45")?;
        }
        windows[3].type_text("exit 5\n")?;
        for (number, window) in windows.into_iter().enumerate() {
            let (code, _) = window.finish()?;
            // The one that missed output has a code of its own.
            let wanted = if number == 1 { 122 } else { 5 };
            ensure!(code == wanted, "window {number} ended with {code}");
        }
        engine.ok(&["rm", "box"])?;
        engine.audit_containers()
    })
}

fn sizes(count: u16) -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        for number in 0..count {
            let (columns, rows) = (20 + number % 200, 5 + number % 70);
            let command = engine.command(&["run", "--rm", "-t", &image, "stty", "size"]);
            let (code, bytes) = Pty::spawn(&command, columns, rows)?.finish()?;
            // Without -i the caller's terminal ends lines in its own way, too.
            let text = String::from_utf8_lossy(&bytes).replace('\r', "");
            ensure!(
                code == 0 && text == format!("{rows} {columns}\n"),
                "run {number} of a terminal {rows} x {columns}: {code}, {text:?}"
            );
        }
        engine.audit_containers()
    })
}

#[test]
fn the_first_size_is_right_before_the_first_byte() -> Result<()> {
    sizes(40)
}

#[test]
#[ignore = "takes a minute: make soak"]
fn soak_of_a_thousand_first_sizes() -> Result<()> {
    sizes(1_000)
}

/// Bytes that no two blocks share, and that hold every value.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Sends bytes through a command and holds what comes back to them.
fn through(engine: &Engine, arguments: &[&str], sent: &[u8]) -> Result<()> {
    let output = gantry_integration_tests::command::run_bytes(
        &mut engine.command(arguments),
        sent,
        Duration::from_secs(600),
    )?;
    let same = output.iter().zip(sent).take_while(|(a, b)| a == b).count();
    ensure!(
        output.len() == sent.len() && same == sent.len(),
        "{arguments:?}: {} of {} bytes came, the first {same} right",
        output.len(),
        sent.len()
    );
    Ok(())
}

fn everything_arrives(bytes: usize) -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let sent = pattern(bytes);
        // Half-close: the program ends because its input does.
        through(engine, &["run", "--rm", "-i", &image, "cat"], &sent)?;
        let lines: Vec<u8> = sent
            .iter()
            .map(|b| if *b == b'\n' { b' ' } else { *b })
            .collect();
        let lines: Vec<u8> = lines
            .chunks(4_999)
            .flat_map(|line| line.iter().copied().chain([b'\n']))
            .collect();
        let options = ["--log-opt", "max-size=2g", "--log-opt", "max-file=2"];
        let mut arguments = vec!["run", "-i", "--name", "box"];
        arguments.extend(options);
        arguments.extend([image.as_str(), "sh", "-c", "cat; sleep 3600"]);
        let mut command = engine.command(&arguments);
        let mut child = command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()?;
        std::io::Write::write_all(child.stdin.as_mut().context("no input")?, &lines)?;
        child.stdin = None;
        through(engine, &["exec", "-i", "box", "cat"], &sent)?;
        // What `cat` has read is logged when `sleep` runs.
        let sleeps = "until ps | grep -q '[s]leep 3600'; do usleep 20000; done; echo runs";
        ensure!(engine.ok(&["exec", "box", "sh", "-c", sleeps])? == "runs");
        let logged = gantry_integration_tests::command::run_bytes(
            &mut engine.command(&["logs", "box"]),
            b"",
            Duration::from_secs(600),
        )?;
        ensure!(
            logged == lines,
            "{} of {} bytes were logged",
            logged.len(),
            lines.len()
        );
        engine.ok(&["rm", "-f", "box"])?;
        child.wait()?;
        engine.audit_containers()
    })
}

#[test]
fn every_byte_passes_run_exec_and_logs() -> Result<()> {
    everything_arrives(24 << 20)
}

#[test]
#[ignore = "takes minutes: make soak"]
fn soak_of_a_gigabyte_through_run_exec_and_logs() -> Result<()> {
    everything_arrives(1 << 30)
}

/// Reads all that a command writes, with pauses: longer than any buffer on the way
/// would cover for, at the beginning and in between.
fn slowly(command: &mut Command, pauses: &[(usize, u64)]) -> Result<(Vec<u8>, i32, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdout = child.stdout.take().context("no output")?;
    let mut stderr = child.stderr.take().context("no errors")?;
    let mut read = Vec::new();
    for (until, milliseconds) in pauses {
        // A slow reader is what is tested.
        std::thread::sleep(Duration::from_millis(*milliseconds));
        let more = until.saturating_sub(read.len());
        Read::by_ref(&mut stdout)
            .take(more as u64)
            .read_to_end(&mut read)?;
    }
    stdout.read_to_end(&mut read)?;
    let mut errors = String::new();
    stderr.read_to_string(&mut errors)?;
    let code = child.wait()?.code().context("it was killed")?;
    Ok((read, code, errors))
}

fn everything_arrives_slowly(bytes: usize, pauses: &[(usize, u64)]) -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let last = FIRST + bytes / 16;
        let script = format!("seq {} {last}", FIRST + 1);
        let lines = (FIRST + 1..=last).map(|number| format!("{number}\n"));
        let wanted = lines.collect::<String>().into_bytes();
        let holds = |what: &str, (read, code, errors): (Vec<u8>, i32, String)| {
            let same = read.iter().zip(&wanted).take_while(|(a, b)| a == b).count();
            ensure!(
                code == 0 && read == wanted,
                "{what}: {} of {} bytes came, the first {same} right; code {code}: {errors}",
                read.len(),
                wanted.len()
            );
            Ok(())
        };
        let options = ["--log-opt", "max-size=4g", "--log-opt", "max-file=2"];
        let mut run = vec!["run", "--name", "box"];
        run.extend(options);
        run.extend([image.as_str(), "sh", "-c", &script]);
        holds("run", slowly(&mut engine.command(&run), pauses)?)?;
        holds(
            "logs",
            slowly(&mut engine.command(&["logs", "box"]), pauses)?,
        )?;
        let mut start = engine.command(&["start", "-a", "box"]);
        holds("start -a", slowly(&mut start, pauses)?)?;
        engine.ok(&["run", "-d", "--name", "long", &image, "sleep", "3600"])?;
        let exec = ["exec", "long", "sh", "-c", &script];
        holds("exec", slowly(&mut engine.command(&exec), pauses)?)?;
        // The log has it all, twice.
        let logged = gantry_integration_tests::command::run_bytes(
            &mut engine.command(&["logs", "box"]),
            b"",
            Duration::from_secs(600),
        )?;
        ensure!(logged.len() == 2 * wanted.len(), "{} bytes", logged.len());
        engine.ok(&["rm", "-f", "box", "long"])?;
        engine.audit_containers()
    })
}

/// The number before the first, of 15 digits: a line has 16 bytes.
const FIRST: usize = 100_000_000_000_000;

#[test]
fn a_slow_reader_gets_every_byte() -> Result<()> {
    everything_arrives_slowly(12 << 20, &[(1, 1500), (4 << 20, 1500), (8 << 20, 1500)])
}

#[test]
#[ignore = "takes minutes: make soak"]
fn soak_of_a_gigabyte_to_a_slow_reader() -> Result<()> {
    let pauses = [(1, 90_000), (100 << 20, 10_000), (500 << 20, 10_000)];
    everything_arrives_slowly(1 << 30, &pauses)
}

/// Writes more than all buffers on the way hold, then ends.
const FLOOD: &str = "head -c 30000000 /dev/zero; exit 3";

#[test]
fn a_client_that_is_killed_or_stands_still_holds_no_program_up() -> Result<()> {
    let engine = Engine::start()?;
    let image = engine.busybox()?;
    for (name, signal) in [("killed", Signal::KILL), ("frozen", Signal::STOP)] {
        let run = ["run", "--name", name, &image, "sh", "-c", FLOOD];
        let mut client = engine
            .command(&run)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // It runs, and is held back: nobody reads on.
        let mut output = client.stdout.take().context("no output")?;
        output.read_exact(&mut [0])?;
        let pid = Pid::from_raw(client.id().cast_signed()).context("no client")?;
        kill_process(pid, signal)?;
        ensure!(engine.ok(&["wait", name])? == "3", "{name}");
        if signal == Signal::STOP {
            kill_process(pid, Signal::CONT)?;
            std::io::copy(&mut output, &mut std::io::sink())?;
            let mut said = String::new();
            let mut errors = client.stderr.take().context("no errors")?;
            errors.read_to_string(&mut said)?;
            ensure!(said.contains("connection"), "{said}");
            ensure!(client.wait()?.code() == Some(125), "{said}");
        } else {
            client.wait()?;
        }
        engine.ok(&["rm", name])?;
    }
    engine.audit_containers()?;
    engine.finish()
}

#[test]
#[ignore = "takes a minute: make soak"]
fn soak_of_a_reader_that_stands_still_for_longer_than_a_frozen_client_may() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let run = ["run", "--rm", &image, "sh", "-c", FLOOD];
        let (read, code, errors) = slowly(&mut engine.command(&run), &[(1, 50_000)])?;
        ensure!(
            read.len() == 30_000_000 && code == 3,
            "{} bytes, code {code}: {errors}",
            read.len()
        );
        engine.audit_containers()
    })
}

#[test]
fn signals_reach_a_program_that_does_not_read_its_input() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&["run", "-d", "--name", "long", &image, "sleep", "3600"])?;
        let trap = "trap 'echo got; exit 4' TERM 37; echo ready; while :; do sleep 0.1; done";
        let run = ["run", "--rm", "-i", &image, "sh", "-c", trap];
        let exec = ["exec", "-i", "long", "sh", "-c", trap];
        for command in [&run[..], &exec[..]] {
            for signal in [15, 37] {
                let mut client = engine
                    .command(command)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()?;
                let mut input = client.stdin.take().context("no input")?;
                let typing =
                    std::thread::spawn(move || while input.write_all(&[b'x'; 64 << 10]).is_ok() {});
                let mut output = BufReader::new(client.stdout.take().context("no output")?);
                let mut line = String::new();
                output.read_line(&mut line)?;
                ensure!(line == "ready\n", "{line}");
                let sent = Command::new("kill")
                    .args([format!("-{signal}"), client.id().to_string()])
                    .status()?;
                ensure!(sent.success(), "kill: {sent}");
                let mut rest = String::new();
                output.read_to_string(&mut rest)?;
                ensure!(
                    rest == "got\n" && client.wait()?.code() == Some(4),
                    "{command:?}, signal {signal}: {rest:?}"
                );
                ensure!(typing.join().is_ok());
            }
        }
        engine.ok(&["rm", "-f", "long"])?;
        engine.audit_containers()
    })
}

#[test]
fn nothing_is_lost_or_shown_twice_when_the_runtime_is_killed() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&["run", "-d", "--name", "long", &image, "sleep", "3600"])?;
        let last = FIRST + 300_000;
        let script = format!("seq {} {last}; exit 6", FIRST + 1);
        let run = ["run", "--rm", &image, "sh", "-c", &script];
        let exec = ["exec", "long", "sh", "-c", &script];
        for (round, arguments) in [&run[..], &exec[..], &run[..]].into_iter().enumerate() {
            let mut client = engine
                .command(arguments)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut output = client.stdout.take().context("no output")?;
            let mut read = vec![0; 1_000_000];
            output.read_exact(&mut read)?;
            engine.kill_service("runtime", Signal::KILL)?;
            output.read_to_end(&mut read)?;
            let mut said = String::new();
            let mut errors = client.stderr.take().context("no errors")?;
            errors.read_to_string(&mut said)?;
            let lines = (FIRST + 1..=last).map(|number| format!("{number}\n"));
            let wanted = lines.collect::<String>().into_bytes();
            ensure!(
                read == wanted && client.wait()?.code() == Some(6),
                "round {round}: {} of {} bytes: {said}",
                read.len(),
                wanted.len()
            );
        }
        // With the gateway the connection of the command ends: it says so.
        let mut client = engine
            .command(&run)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut output = client.stdout.take().context("no output")?;
        output.read_exact(&mut vec![0; 1_000_000])?;
        engine.kill_service("gateway", Signal::KILL)?;
        std::io::copy(&mut output, &mut std::io::sink())?;
        let mut said = String::new();
        let mut errors = client.stderr.take().context("no errors")?;
        errors.read_to_string(&mut said)?;
        ensure!(
            client.wait()?.code() == Some(125) && said.contains("connection"),
            "{said}"
        );
        engine.ok(&["rm", "-f", "long"])?;
        engine.audit_containers()
    })
}

#[test]
fn an_exec_ends_as_its_process_does_when_its_container_is_removed() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        for end in ["rm", "kill", "stop"] {
            engine.ok(&["run", "-d", "--name", "box", &image, "sleep", "3600"])?;
            let exec = ["exec", "box", "sh", "-c", "echo ready; sleep 3600"];
            let mut client = engine.command(&exec).stdout(Stdio::piped()).spawn()?;
            let mut output = BufReader::new(client.stdout.take().context("no output")?);
            let mut line = String::new();
            output.read_line(&mut line)?;
            match end {
                "rm" => engine.ok(&["rm", "-f", "box"])?,
                "kill" => engine.ok(&["kill", "box"])?,
                _ => engine.ok(&["stop", "-t", "1", "box"])?,
            };
            let code = client.wait()?.code();
            ensure!(code == Some(137), "after {end}: {code:?}");
            if end != "rm" {
                engine.ok(&["rm", "-f", "box"])?;
            }
        }
        engine.audit_containers()
    })
}
