//! A person at a real terminal.

use std::time::Duration;

use anyhow::{Result, ensure};
use gantry_integration_tests::audit;
use gantry_integration_tests::command::command_line;
use gantry_integration_tests::engine::with_engine;
use gantry_integration_tests::terminal::Terminal;

/// Waits until the machine runs `command`: keys that are typed before belong to
/// the shell.
fn wait_for_process(command: &str) -> Result<()> {
    audit::nothing_left("the wait for a process", Duration::from_secs(20), || {
        let runs = audit::all_processes()?
            .into_iter()
            .any(|pid| audit::command_of(pid) == command);
        Ok(if runs {
            Vec::new()
        } else {
            vec![format!("no {command:?} runs")]
        })
    })
}

#[test]
fn a_shell_in_a_terminal_has_job_control_resizes_and_ends_with_its_code() -> Result<()> {
    let registry = crate::debian::registry()?;
    with_engine(|engine| {
        let reference = format!("{}/debian:12", registry.address);
        engine.ok(&["pull", &reference])?;
        let terminal = Terminal::open(100, 30)?;
        let command = engine.command(&[
            "run",
            "-it",
            "--rm",
            "--hostname",
            "crane",
            "-e",
            "PS1=inside# ",
            &reference,
            "bash",
            "--norc",
        ]);
        let line =
            command_line(&command).replacen("gantry", &command.get_program().to_string_lossy(), 1);
        terminal.enter(&format!("{line}; echo ended with $?"))?;
        terminal.wait_for("inside#")?;

        terminal.enter("stty size; tty")?;
        terminal.wait_for("30 100")?;
        terminal.wait_for("/dev/pts/0")?;
        terminal.resize(80, 24)?;
        terminal.enter("sleep 0.2; stty size")?;
        terminal.wait_for("24 80")?;

        // Ctrl-C ends the program, not the shell.
        terminal.enter("sleep 500; echo code $?")?;
        wait_for_process("sleep 500")?;
        terminal.key("C-c")?;
        terminal.enter("echo still $((40+2))")?;
        terminal.wait_for("still 42")?;

        // Ctrl-Z, jobs, fg: job control.
        terminal.enter("sleep 501")?;
        wait_for_process("sleep 501")?;
        terminal.key("C-z")?;
        terminal.wait_until("a stopped job", |screen| screen.contains("Stopped"))?;
        terminal.enter("jobs | grep -c 501; bg; jobs")?;
        terminal.wait_until("a running job", |screen| screen.contains("Running"))?;
        terminal.enter("fg")?;
        terminal.wait_until("fg's echo", |screen| {
            screen.lines().rev().take(2).any(|line| line == "sleep 501")
        })?;
        terminal.key("C-c")?;
        terminal.enter("echo $(jobs | wc -l) jobs")?;
        terminal.wait_for("0 jobs")?;

        terminal.enter("exit 7")?;
        let screen = terminal.wait_for("ended with 7")?;
        ensure!(!screen.contains("no job control"), "{screen}");
        // The terminal is as it was before: it echoes, and a line ends a line.
        terminal.enter("stty -a | grep -o ' echo ' | wc -l; echo back again")?;
        terminal.wait_for("\nback again")?;
        Ok(())
    })
}

#[test]
fn a_window_is_left_by_its_keys_and_opened_again() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let program = engine
            .command::<&str>(&[])
            .get_program()
            .to_string_lossy()
            .into_owned();
        let gantry = format!("{program} --root {}", engine.root().display());
        let terminal = Terminal::open(100, 30)?;
        // What is typed while the command is on its way out is nobody's.
        terminal.enter(&format!(
            "{gantry} run -it --name box {image} sh; echo out $((1+1))"
        ))?;
        terminal.wait_for("/ #")?;
        terminal.enter("word=kept")?;
        // The shell asks the terminal where its cursor is whenever it prompts. The
        // answer must not come between the two keys.
        terminal.wait_until("a second prompt", |screen| {
            let mut lines = screen.trim_end().lines().rev().map(str::trim_end);
            lines.next() == Some("/ #") && lines.next() == Some("/ # word=kept")
        })?;
        terminal.key("C-p")?;
        terminal.key("C-q")?;
        terminal.wait_for("out 2")?;
        let state = engine.ok(&["inspect", "--format", "{{.State.Status}}", "box"])?;
        ensure!(state == "running", "{state}");
        terminal.enter(&format!("{gantry} attach box; echo code $?"))?;
        terminal.enter("echo $word $((2+1))")?;
        terminal.wait_for("kept 3")?;
        terminal.enter("exit 3")?;
        terminal.wait_for("code 3")?;
        Ok(())
    })
}

#[test]
fn exec_gives_a_terminal_too() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let id = engine.ok(&["run", "-d", &image, "sleep", "600"])?;
        let program = engine
            .command::<&str>(&[])
            .get_program()
            .to_string_lossy()
            .into_owned();
        let gantry = format!("{program} --root {}", engine.root().display());
        let terminal = Terminal::open(90, 20)?;
        terminal.enter(&format!("{gantry} exec -it {id} sh; echo ended with $?"))?;
        terminal.wait_for("/ #")?;
        terminal.enter("stty size")?;
        terminal.wait_for("20 90")?;
        terminal.enter("exit 6")?;
        terminal.wait_for("ended with 6")?;
        Ok(())
    })
}
