//! The bridge, published ports, and the other networks.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use gantry_integration_tests::engine::{Engine, Options, with_engine};
use gantry_integration_tests::fixture::guest;

/// The page that a web server gives, once it listens.
fn page(address: &str) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let attempt = || -> std::io::Result<String> {
            let mut connection = TcpStream::connect(address)?;
            connection.set_read_timeout(Some(Duration::from_secs(5)))?;
            connection.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            connection.read_to_string(&mut text)?;
            Ok(text)
        };
        match attempt() {
            Ok(text) if text.contains("200 OK") => return Ok(text),
            other if Instant::now() > end => bail!("{address} answers {other:?}"),
            // The program in the container says when it listens to its log only.
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

#[test]
fn a_published_port_reaches_the_container_and_ends_with_it() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("guest", &guest()?)?;
        let port = free_port()?;
        let id = engine.ok(&[
            "run",
            "-d",
            "--hostname",
            "crane",
            "-p",
            &format!("{port}:80"),
            &image,
            "web",
            "80",
        ])?;
        let text = page(&format!("127.0.0.1:{port}"))?;
        ensure!(text.contains("Hello from crane"), "{text}");
        let listed = engine.ok(&["ps"])?;
        ensure!(listed.contains(&format!(":{port}->80/tcp")), "{listed}");

        // From another container, by the bridge's own address of the host too.
        let busybox = engine.busybox()?;
        let address = engine.ok(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", &id])?;
        let said = engine.ok(&[
            "run",
            "--rm",
            &busybox,
            "wget",
            "-qO-",
            &format!("http://{address}/"),
        ])?;
        ensure!(said.contains("Hello from crane"), "{said}");
        let gateway = engine.ok(&[
            "run",
            "--rm",
            &busybox,
            "sh",
            "-c",
            "ip route | awk '/default/ {print $3}'",
        ])?;
        let said = engine.ok(&[
            "run",
            "--rm",
            &busybox,
            "wget",
            "-qO-",
            &format!("http://{gateway}:{port}/"),
        ])?;
        ensure!(said.contains("Hello from crane"), "{said}");

        engine.ok(&["rm", "-f", &id])?;
        ensure!(
            TcpStream::connect(("127.0.0.1", port)).is_err(),
            "the port is still open"
        );
        engine.audit_containers()
    })
}

#[test]
fn a_port_of_the_engines_choice_is_shown() -> Result<()> {
    with_engine(|engine| {
        let image = engine.install("guest", &guest()?)?;
        let id = engine.ok(&["run", "-d", "-p", "127.0.0.1::80", &image, "web", "80"])?;
        let listed = engine.ok(&["ps", "--format", "{{.Ports}}"])?;
        let address = listed.split("->").next().context("no port")?.to_owned();
        ensure!(page(&address)?.contains(&id[..12]), "{listed}");
        Ok(())
    })
}

#[test]
fn each_network_mode_shows_what_it_should() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        let links = "ip -o link | awk -F': ' '{print $2}' | cut -d@ -f1 | sort | tr '\\n' ' '";
        for (mode, expected) in [("bridge", "eth0 lo "), ("none", "lo ")] {
            let outcome = engine
                .gantry(&["run", "--rm", "--network", mode, &image, "sh", "-c", links])?
                .expect_code(0)?;
            ensure!(outcome.stdout == expected, "{mode}: {outcome}");
        }
        let said = engine.ok(&[
            "run",
            "--rm",
            "--network",
            "host",
            &image,
            "readlink",
            "/proc/self/ns/net",
        ])?;
        let own = std::fs::read_link("/proc/self/ns/net")?;
        ensure!(said == own.to_string_lossy(), "{said}");
        let said = engine.ok(&[
            "run",
            "--rm",
            "--network",
            "none",
            &image,
            "ping",
            "-c1",
            "-w2",
            "127.0.0.1",
        ])?;
        ensure!(said.contains("1 packets received"), "{said}");
        for (file, word) in [
            ("/etc/hosts", "localhost"),
            ("/etc/resolv.conf", "nameserver"),
        ] {
            let said = engine.ok(&["run", "--rm", &image, "cat", file])?;
            ensure!(said.contains(word), "{file}: {said}");
        }
        Ok(())
    })
}

#[test]
fn a_container_reaches_out_through_the_hosts_address() -> Result<()> {
    with_engine(|engine| {
        let image = engine.busybox()?;
        // A listener on the host's own address stands for the world outside:
        // the packet leaves the bridge and its answer finds the way back.
        let Some(host) = host_address()? else {
            bail!("this machine has no address but its loopback's: the test cannot be made");
        };
        let listener = TcpListener::bind((host.as_str(), 0))?;
        let port = listener.local_addr()?.port().to_string();
        let answer = std::thread::spawn(move || -> std::io::Result<()> {
            let (mut connection, _) = listener.accept()?;
            connection.write_all(b"from outside\n")
        });
        let said = engine.ok(&["run", "--rm", &image, "nc", "-w", "5", &host, &port])?;
        ensure!(said == "from outside", "{said}");
        if let Ok(outcome) = answer.join() {
            outcome?;
        }
        Ok(())
    })
}

/// An address of this machine that is not the loopback's.
fn host_address() -> Result<Option<String>> {
    let table = std::fs::read_to_string("/proc/net/fib_trie")?;
    let mut address = None;
    let mut last = String::new();
    for line in table.lines() {
        if let Some((_, found)) = line.split_once("|-- ") {
            found.trim().clone_into(&mut last);
        }
        if line.contains("/32 host LOCAL") && !last.starts_with("127.") && !last.starts_with("10.1")
        {
            address = Some(last.clone());
        }
    }
    Ok(address)
}

#[test]
fn the_hosts_firewall_is_left_as_it_was() -> Result<()> {
    let tables = || -> Result<String> {
        let output = std::process::Command::new("nft")
            .args(["list", "tables"])
            .output()?;
        // Other engines' tables come and go meanwhile.
        Ok(String::from_utf8(output.stdout)?
            .lines()
            .filter(|line| !line.contains("gantry"))
            .collect::<Vec<_>>()
            .join("\n"))
    };
    let before = tables()?;
    with_engine(|engine| {
        let image = engine.busybox()?;
        engine.ok(&["run", "--rm", "-p", "127.0.0.1::80", &image, "true"])?;
        let during = tables()?;
        ensure!(before == during, "{before}\n---\n{during}");
        Ok(())
    })?;
    ensure!(before == tables()?);
    Ok(())
}

/// A web server that answers on a port of this machine.
fn serve(engine: &Engine, name: &str) -> Result<u16> {
    let image = engine.install("guest", &guest()?)?;
    let port = free_port()?;
    let published = format!("127.0.0.1:{port}:80");
    engine.ok(&[
        "run",
        "-d",
        "--hostname",
        name,
        "-p",
        &published,
        &image,
        "web",
        "80",
    ])?;
    page(&format!("127.0.0.1:{port}"))?;
    Ok(port)
}

#[test]
fn engines_that_differ_in_their_roots_alone_run_side_by_side_and_end_alone() -> Result<()> {
    let by_root = |config: &str| Options {
        by_root: true,
        // The registry is where the test's images come from.
        config: format!("registry.listen = \"127.0.0.1:0\"\n{config}"),
        ..Options::default()
    };
    let one = Engine::with(by_root(""))?;
    let two = Engine::with(by_root(""))?;
    ensure!(one.marks().bridge != two.marks().bridge);
    serve(&one, "one")?;
    let port = serve(&two, "two")?;

    // A third that is told to use the bridge of the second.
    let bridge = &two.marks().bridge;
    match Engine::with(by_root(&format!("network.bridge = {bridge:?}"))) {
        Ok(third) => {
            third.finish()?;
            bail!("an engine has started on the bridge of another");
        }
        Err(error) => {
            let error = format!("{error:#}");
            let owner = format!("belongs to the engine with --root {}", two.root().display());
            ensure!(error.contains(&owner), "{error}");
        }
    }

    // The first ends with all it has; its audit names what it leaves.
    one.finish()?;
    let text = page(&format!("127.0.0.1:{port}"))?;
    ensure!(text.contains("Hello from two"), "{text}");
    let other = serve(&two, "other")?;
    ensure!(other != port);
    two.finish()
}
