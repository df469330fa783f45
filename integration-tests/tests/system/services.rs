//! What a program sees of the services: reflection, health, traces, restarts.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use gantry_integration_tests::engine::{Engine, Options, SERVICES, bin_dir, with_engine};
use gantry_integration_tests::fixture::guest;
use gantry_integration_tests::grpc::{health, is_serving, reflected_services};
use gantry_integration_tests::otlp::Receiver;
use rustix::process::Signal;

/// The gRPC services that each process offers at least.
const OFFERED: [(&str, &[&str]); 5] = [
    (
        "gateway",
        &[
            "gantry.gateway.v1.ContainerService",
            "gantry.gateway.v1.SystemService",
            "gantry.image.v1.ImageService",
            "gantry.network.v1.NetworkService",
            "gantry.registry.v1.RegistryService",
        ],
    ),
    ("image", &["gantry.image.v1.ImageService"]),
    ("network", &["gantry.network.v1.NetworkService"]),
    ("registry", &["gantry.registry.v1.RegistryService"]),
    ("runtime", &["gantry.runtime.v1.RuntimeService"]),
];

#[test]
fn each_service_is_reflected_and_answers_for_its_health() -> Result<()> {
    with_engine(|engine| {
        for (process, services) in OFFERED {
            let socket = engine.socket(process);
            let reflected = reflected_services(&socket).context(process)?;
            for service in services.iter().chain(&["grpc.health.v1.Health"]) {
                ensure!(
                    reflected.iter().any(|name| name == service),
                    "{process} does not list {service}: {reflected:?}"
                );
            }
            ensure!(is_serving(&socket), "{process} is not serving");
            for service in services {
                let status = health(&socket, service).context(*service)?;
                ensure!(
                    status.as_str_name() == "SERVING",
                    "{service}: {}",
                    status.as_str_name()
                );
            }
        }
        Ok(())
    })
}

#[test]
fn any_service_may_be_killed_while_containers_run() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let guest = engine.install("guest", &guest()?)?;
        let web = engine.ok(&["run", "-d", "-p", "127.0.0.1::80", &guest, "web", "80"])?;
        let address = engine.ok(&["ps", "--format", "{{.Ports}}"])?;
        let address = address.split("->").next().context("no port")?.to_owned();
        let counter = engine.ok(&[
            "run",
            "-d",
            &image,
            "sh",
            "-c",
            "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done",
        ])?;
        let pid =
            |id: &str, engine: &Engine| engine.ok(&["inspect", "--format", "{{.State.Pid}}", id]);
        let pids = (pid(&web, engine)?, pid(&counter, engine)?);
        for service in SERVICES {
            engine.kill_service(service, Signal::KILL)?;
            ensure!(
                (pid(&web, engine)?, pid(&counter, engine)?) == pids,
                "containers did not survive the end of {service}"
            );
            let page = gantry_integration_tests::http::get(&format!("http://{address}/"))
                .with_context(|| format!("after the end of {service}"))?;
            ensure!(page.text().contains(&web[..12]), "{}", page.text());
            ensure!(engine.ok(&["exec", &counter, "echo", "fine"])? == "fine");
            ensure!(
                engine.ok(&["run", "--rm", &image, "echo", "new"])? == "new",
                "no new container after the end of {service}"
            );
        }
        // Its output has no gap over all of that.
        engine.ok(&["kill", &counter])?;
        engine.ok(&["wait", &counter])?;
        let logs = engine.ok(&["logs", &counter])?;
        let numbers: Vec<u64> = logs.lines().map(str::parse).collect::<Result<_, _>>()?;
        let expected: Vec<u64> = (1..=numbers.len() as u64).collect();
        ensure!(numbers == expected, "the log has gaps: {logs}");
        engine.ok(&["rm", "-f", &web, &counter])?;
        engine.audit_containers()
    })
}

#[test]
fn a_whole_engine_restarts_around_its_containers() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let running = engine.ok(&["run", "-d", "--name", "running", &image, "sleep", "600"])?;
        let ends = engine.ok(&[
            "run",
            "-d",
            "--name",
            "ends",
            &image,
            "sh",
            "-c",
            "while ! test -e /tmp/end; do sleep 0.05; done; echo last words; exit 9",
        ])?;
        let stopped = engine.ok(&[
            "run", "-d", "--name", "stopped", &image, "sh", "-c", "exit 4",
        ])?;
        ensure!(engine.ok(&["wait", "stopped"])? == "4");
        let pid = engine.ok(&["inspect", "--format", "{{.State.Pid}}", &running])?;
        for signal in [Signal::TERM, Signal::KILL] {
            engine.restart(signal)?;
            let now = engine.ok(&[
                "inspect",
                "--format",
                "{{.State.Pid}} {{.State.Status}}",
                &running,
            ])?;
            ensure!(now == format!("{pid} running"), "after {signal:?}: {now}");
            let code = engine.ok(&["inspect", "--format", "{{.State.ExitCode}}", &stopped])?;
            ensure!(code == "4", "after {signal:?}: {code}");
        }
        // One ends while nobody is there to see it.
        engine.ok(&["exec", "-d", &ends, "sh", "-c", "sleep 0.3; touch /tmp/end"])?;
        engine.stop_up(Signal::KILL)?;
        let pid_file = |id: &str| {
            gantry_integration_tests::audit::all_processes().map(|pids| {
                pids.into_iter().any(|pid| {
                    std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
                        .is_ok_and(|text| text.contains(id))
                        && gantry_integration_tests::audit::command_of(pid)
                            .starts_with("sh -c while")
                })
            })
        };
        gantry_integration_tests::audit::nothing_left(
            "the program that ends",
            Duration::from_secs(10),
            || {
                Ok(if pid_file(&ends)? {
                    vec!["its process".to_owned()]
                } else {
                    Vec::new()
                })
            },
        )?;
        engine.start_again()?;
        ensure!(engine.ok(&["wait", "ends"])? == "9");
        ensure!(engine.ok(&["logs", "ends"])? == "last words");
        Ok(())
    })
}

#[test]
fn an_up_takes_the_place_of_one_that_was_killed_a_moment_ago() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let running = engine.ok(&["run", "-d", &image, "sleep", "600"])?;
        let shown = ["inspect", "--format", "{{.State.Pid}}", &running];
        let pid = engine.ok(&shown)?;
        for _ in 0..4 {
            // A call under way keeps the gateway for as long as it drains.
            let mut follows = engine.command(&["logs", "-f", &running]).spawn()?;
            let replaced = engine.replace_killed_up();
            follows.kill()?;
            follows.wait()?;
            replaced?;
            ensure!(engine.ok(&shown)? == pid);
            ensure!(engine.ok(&["run", "--rm", &image, "echo", "new"])? == "new");
            // Each service once: of the first engine none is left.
            ensure!(
                engine.service_processes()?.len() == SERVICES.len() + 1,
                "{:?}",
                engine.service_processes()?
            );
        }
        engine.ok(&["rm", "-f", &running])?;
        engine.audit_containers()
    })
}

#[test]
fn a_service_that_is_killed_before_it_was_ready_is_started_again() -> Result<()> {
    let built = bin_dir()?;
    let installed = tempfile::tempdir_in(&built)?;
    for name in ["gantry", "gantry-shim", "gantry-gateway", "gantry-image"] {
        fs::hard_link(built.join(name), installed.path().join(name))?;
    }
    for name in ["gantry-network", "gantry-runtime", "gantry-registry"] {
        let script = format!(
            "#!/bin/sh\nmkdir \"$0.1\" 2>/dev/null && kill -9 $$\n\
             mkdir \"$0.2\" 2>/dev/null && kill -SEGV $$\nexec {} \"$@\"\n",
            built.join(name).display()
        );
        let path = installed.path().join(name);
        fs::write(&path, script)?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    }
    let engine = Engine::with(Options {
        bin_dir: Some(installed.path().to_owned()),
        ..Options::default()
    })?;
    let image = engine.busybox()?;
    ensure!(engine.ok(&["run", "--rm", &image, "echo", "one"])? == "one");
    let log = engine.log();
    ensure!(
        log.matches("starting it again").count() == 6,
        "each was killed twice: {log}"
    );
    engine.finish()
}

/// Bit of SIGPIPE in a mask of signals: the standard library ignores it.
const SIGPIPE: &str = "0000000000001000";

#[test]
fn no_process_of_the_engine_gets_a_descriptor_or_a_signal_mask_by_inheritance() -> Result<()> {
    let marker = tempfile::NamedTempFile::new()?;
    // Everything that this process starts inherits it.
    rustix::io::fcntl_setfd(marker.as_file(), rustix::io::FdFlags::empty())?;
    let path = marker.path().to_string_lossy().into_owned();
    with_engine(|engine| {
        let image = engine.busybox()?;
        let look = |pid: &str| {
            format!(
                "ls -l /proc/{pid}/fd; cat /proc/{pid}/environ; grep -E '^Sig(Blk|Ign)' /proc/{pid}/status"
            )
        };
        // A shell ignores signals itself; what it executes does not.
        let check = "exec sh -c 'exec grep -E \"^Sig(Blk|Ign)\" /proc/self/status > /health'";
        let health = ["--health-cmd", check, "--health-interval", "100ms"];
        let mut said = Vec::new();
        // The program is process 2 where process 1 is the engine's.
        for (init, program) in [(&[][..], "1"), (&["--init"], "2")] {
            let words = [
                &["run", "-d", "--name", "c1"],
                &health[..],
                init,
                &[&image, "sleep", "600"],
            ];
            engine.ok(&words.concat())?;
            said.push(engine.ok(&["exec", "c1", "sh", "-c", &look(program)])?);
            let own = "exec grep -E '^Sig(Blk|Ign)' /proc/self/status";
            for terminal in [&[][..], &["-t"]] {
                let words = [&["exec"], terminal, &["c1", "sh", "-c", own]].concat();
                said.push(engine.ok(&words)?);
                let words = [
                    &["exec"],
                    terminal,
                    &["c1", "sh", "-c", "env; ls -l /proc/$$/fd"],
                ];
                let inherited = engine.ok(&words.concat())?;
                ensure!(!inherited.contains(&*path), "{inherited}");
                ensure!(!inherited.contains("LISTEN_"), "{inherited}");
            }
            gantry_integration_tests::audit::nothing_left(
                "the wait for a health check",
                Duration::from_secs(20),
                || {
                    let checked = engine.gantry(&["exec", "c1", "grep", "SigIgn", "/health"])?;
                    Ok(match checked.code {
                        0 => Vec::new(),
                        _ => vec!["no check".to_owned()],
                    })
                },
            )?;
            said.push(engine.ok(&["exec", "c1", "cat", "/health"])?);
            let own: Vec<i32> = engine
                .service_processes()?
                .into_iter()
                .filter(|pid| *pid != engine.up_pid())
                .chain(engine.shims()?)
                .collect();
            ensure!(own.len() == SERVICES.len() + 1, "{own:?}");
            for pid in own {
                let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
                ensure!(status.contains("SigBlk:\t0000000000000000\n"), "{status}");
                ensure!(
                    status.contains(&format!("SigIgn:\t{SIGPIPE}\n")),
                    "{status}"
                );
                for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
                    let leads = fs::read_link(entry.path()).unwrap_or_default();
                    ensure!(leads != marker.path(), "{status} has the descriptor");
                }
            }
            engine.ok(&["rm", "-f", "c1"])?;
        }
        for said in said {
            let none = "0000000000000000";
            for line in ["SigBlk", "SigIgn"] {
                ensure!(said.contains(&format!("{line}:\t{none}")), "{said}");
            }
            for inherited in [
                "LISTEN_",
                "NOTIFY_",
                "GANTRY_",
                &*marker.path().to_string_lossy(),
            ] {
                ensure!(!said.contains(inherited), "{inherited}: {said}");
            }
        }
        engine.audit_containers()
    })
}

#[test]
fn one_run_is_one_trace_over_all_services() -> Result<()> {
    let receiver = Receiver::start()?;
    let engine = Engine::with(Options {
        environment: vec![(
            "OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(),
            receiver.endpoint.clone(),
        )],
        ..Options::default()
    })?;
    let image = engine.busybox()?;
    engine.ok(&["run", "--rm", &image, "true"])?;
    let wanted: BTreeSet<String> = [
        "gantry",
        "gantry-gateway",
        "gantry-image",
        "gantry-network",
        "gantry-runtime",
    ]
    .map(str::to_owned)
    .into();
    // The trace of the run is the one that the runtime has a part in.
    let of_run = |spans: &[gantry_integration_tests::otlp::Span]| {
        let traces: BTreeSet<String> = spans
            .iter()
            .filter(|span| span.service == "gantry-runtime" && span.name.contains("Create"))
            .map(|span| span.trace.clone())
            .collect();
        traces.into_iter().next().map(|trace| {
            spans
                .iter()
                .filter(|span| span.trace == trace)
                .map(|span| span.service.clone())
                .collect::<BTreeSet<_>>()
        })
    };
    let spans = receiver.spans(Duration::from_secs(20), |spans| {
        of_run(spans).is_some_and(|services| services.is_superset(&wanted))
    });
    let services = of_run(&spans).context("no span of the runtime arrived")?;
    ensure!(
        services.is_superset(&wanted),
        "the trace of the run has spans of {services:?} only: {spans:#?}"
    );
    // One tree: every parent is there, but for one root.
    let trace = spans
        .iter()
        .find(|span| span.service == "gantry-runtime" && span.name.contains("Create"))
        .map(|span| span.trace.clone())
        .context("no trace")?;
    let roots: Vec<_> = spans
        .iter()
        .filter(|span| span.trace == trace && span.parent.trim_matches('0').is_empty())
        .collect();
    ensure!(
        roots.len() == 1 && roots[0].service == "gantry",
        "{roots:?}"
    );
    engine.finish()
}

#[test]
fn every_key_of_the_example_configuration_is_one_that_services_know() -> Result<()> {
    let example = include_str!("../../../deploy/gantry.toml");
    // What stands there as a comment of the form "# key = value" is a default.
    let file: String = example
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(setting) if is_setting(setting) => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    ensure!(file.contains("\nlog = \"info\"\n"), "{file}");
    let engine = Engine::with(Options {
        // But for what is not the same on every machine.
        file: Some(
            file.lines()
                .filter(|line| !line.starts_with("gateway = ") && !line.starts_with("shim = "))
                .collect::<Vec<_>>()
                .join("\n"),
        ),
        ..Options::default()
    })?;
    let image = engine.install("guest", &guest()?)?;
    engine.ok(&["run", "--rm", &image])?;
    engine.finish()
}

fn is_setting(text: &str) -> bool {
    text.split_once(" = ").is_some_and(|(key, _)| {
        !key.is_empty()
            && key
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    })
}

/// What `make install` puts there: the services' program, five times.
#[test]
fn services_that_are_one_file_are_five_processes_with_their_own_names() -> Result<()> {
    let built = bin_dir()?;
    let installed = tempfile::tempdir_in(&built)?;
    for name in ["gantry", "gantry-shim"] {
        fs::hard_link(built.join(name), installed.path().join(name))?;
    }
    for service in SERVICES {
        let name = format!("gantry-{service}");
        fs::hard_link(built.join("gantry-services"), installed.path().join(name))?;
    }
    let nameless = Command::new(built.join("gantry-services")).output()?;
    let error = String::from_utf8_lossy(&nameless.stderr);
    ensure!(
        nameless.status.code() == Some(2) && error.contains("gantry-gateway, gantry-image"),
        "{nameless:?}"
    );

    let engine = Engine::with(Options {
        bin_dir: Some(installed.path().to_owned()),
        ..Options::default()
    })?;
    let image = engine.busybox()?;
    ensure!(engine.ok(&["run", "--rm", &image, "echo", "one"])? == "one");
    for pid in engine.service_processes()? {
        let program = fs::read_link(format!("/proc/{pid}/exe"))?;
        ensure!(program.starts_with(installed.path()), "{program:?}");
    }
    for (service, _) in OFFERED {
        ensure!(is_serving(&engine.socket(service)), "{service}");
    }
    engine.finish()
}

/// Longer than any deadline of a command whose service is silent.
const SILENCE_LIMIT: Duration = Duration::from_secs(150);

/// Runs commands at the same time, each of which has to fail and to name `service`.
fn all_name(engine: &Engine, service: &str, commands: &[&[&str]]) -> Result<()> {
    let expected = format!("the {service} service");
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = commands
            .iter()
            .map(|arguments| {
                scope.spawn(|| {
                    let mut command = engine.command(arguments);
                    gantry_integration_tests::command::run(&mut command, b"", SILENCE_LIMIT)
                })
            })
            .collect();
        running
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| anyhow::bail!("a thread panicked"))
            })
            .collect()
    });
    for (arguments, outcome) in commands.iter().zip(outcomes) {
        let outcome = outcome.with_context(|| format!("{arguments:?}"))?;
        ensure!(
            outcome.code != 0 && outcome.stderr.contains(&expected),
            "{outcome}"
        );
    }
    Ok(())
}

#[test]
fn commands_end_with_the_name_of_a_service_that_is_stopped() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let id = engine.ok(&["run", "-d", &image, "sleep", "600"])?;
        let runtime = engine.service_pid("runtime")?;
        gantry_integration_tests::engine::send(runtime, Signal::STOP)?;
        let outcome = all_name(
            engine,
            "runtime",
            &[
                &["exec", &id, "true"],
                &["exec", "-d", &id, "true"],
                &["run", "--rm", &image, "true"],
                &["run", "-d", "--rm", &image, "true"],
                &["logs", &id],
                &["top", &id],
                &["attach", "--no-stdin", &id],
            ],
        );
        // What needs no runtime is not held up.
        let listed = engine.ok(&["ps", "-q"]);
        gantry_integration_tests::engine::send(runtime, Signal::CONT)?;
        outcome?;
        ensure!(id.starts_with(&listed?), "ps lists something else");
        engine.ok(&["exec", &id, "true"])?;
        let images = engine.service_pid("image")?;
        gantry_integration_tests::engine::send(images, Signal::STOP)?;
        let outcome = all_name(
            engine,
            "image",
            &[
                &["pull", "127.0.0.1:1/absent"],
                &["system", "df"],
                &["images"],
                &["run", "--rm", &image, "true"],
                &["ps", "-s"],
            ],
        );
        gantry_integration_tests::engine::send(images, Signal::CONT)?;
        outcome?;
        engine.ok(&["images"])?;
        let gateway = engine.service_pid("gateway")?;
        gantry_integration_tests::engine::send(gateway, Signal::STOP)?;
        let outcome = all_name(
            engine,
            "gateway",
            &[&["ps"], &["logs", "-f", &id], &["run", &image, "true"]],
        );
        gantry_integration_tests::engine::send(gateway, Signal::CONT)?;
        outcome?;
        engine.ok(&["rm", "-f", &id])?;
        engine.audit_containers()
    })
}

#[test]
fn a_signal_ends_a_run_that_has_not_started_yet() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        for service in ["image", "network", "runtime", "gateway"] {
            let pid = engine.service_pid(service)?;
            gantry_integration_tests::engine::send(pid, Signal::STOP)?;
            let ended = (|| {
                let mut command = engine.command(&["run", "--rm", &image, "sleep", "600"]);
                let mut child = command.spawn()?;
                let child_pid = i32::try_from(child.id())?;
                let deadline = std::time::Instant::now() + Duration::from_secs(60);
                // Taken from when on it handles signals by itself, or ends by them.
                loop {
                    gantry_integration_tests::engine::send(child_pid, Signal::TERM)?;
                    let moment = std::time::Instant::now() + Duration::from_millis(50);
                    if gantry_integration_tests::command::wait_until(&child, moment)? {
                        return Ok(child.wait()?);
                    }
                    ensure!(
                        std::time::Instant::now() < deadline,
                        "it ignores SIGTERM while {service} is stopped"
                    );
                }
            })();
            gantry_integration_tests::engine::send(pid, Signal::CONT)?;
            let status: std::process::ExitStatus = ended?;
            use std::os::unix::process::ExitStatusExt as _;
            ensure!(
                status.code() == Some(143) || status.signal() == Some(15),
                "{service}: {status}"
            );
        }
        // Nothing of them is left, or comes later.
        let deadline = std::time::Instant::now() + SILENCE_LIMIT;
        while !engine.ok(&["ps", "-aq"])?.is_empty() {
            ensure!(
                std::time::Instant::now() < deadline,
                "{}",
                engine.ok(&["ps", "-a"])?
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        engine.audit_containers()
    })
}
