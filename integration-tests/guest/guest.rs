//! The program inside the images that the demo and the tests make: one static
//! file that needs nothing of a distribution. `build.rs` compiles it with the
//! C library linked in and the crate carries its bytes (see `guest_program`).
//!
//! It is deliberately plain `std`: it stands for any program that somebody puts
//! in a `scratch` image.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::ExitCode;

const USAGE: &str = "usage: guest true | exit CODE | echo WORD... | cat | lines COUNT BYTES | web PORT | eat MEGABYTES | wait";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["true"] => Ok(0),
        ["exit", code] => code.parse().map_err(std::io::Error::other),
        ["echo", rest @ ..] => echo(rest),
        ["cat"] => std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).map(|_| 0),
        ["lines", count, bytes] => lines(count, bytes),
        ["web", port] => web(port),
        ["eat", megabytes] => eat(megabytes),
        ["wait"] => wait(),
        _ => {
            eprintln!("{USAGE}");
            Ok(64)
        }
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("guest: {error}");
            ExitCode::FAILURE
        }
    }
}

fn echo(words: &[&str]) -> std::io::Result<u8> {
    writeln!(std::io::stdout(), "{}", words.join(" "))?;
    Ok(0)
}

/// `count` numbered lines of `bytes` bytes each, the newline included.
fn lines(count: &str, bytes: &str) -> std::io::Result<u8> {
    let count: u64 = count.parse().map_err(std::io::Error::other)?;
    let bytes: usize = bytes.parse().map_err(std::io::Error::other)?;
    let mut output = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout());
    for number in 0..count {
        writeln!(output, "{number:0>width$}", width = bytes.saturating_sub(1))?;
    }
    output.flush()?;
    Ok(0)
}

/// Serves one page to whoever asks, and logs each request.
fn web(port: &str) -> std::io::Result<u8> {
    let port: u16 = port.parse().map_err(std::io::Error::other)?;
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let hostname = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    println!("listening on port {port}");
    for connection in listener.incoming() {
        let mut connection = connection?;
        let peer = connection.peer_addr()?;
        let mut request = String::new();
        BufReader::new((&mut connection).take(8192)).read_line(&mut request)?;
        println!("{peer} {}", request.trim_end());
        let page = format!("<h1>Hello from {}</h1>\n", hostname.trim());
        // A client that hung up is its own affair.
        let _ = write!(
            connection,
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
            page.len()
        );
    }
    Ok(0)
}

/// Takes memory and touches all of it, which a memory limit must end.
fn eat(megabytes: &str) -> std::io::Result<u8> {
    let megabytes: usize = megabytes.parse().map_err(std::io::Error::other)?;
    let mut eaten = Vec::new();
    for _ in 0..megabytes {
        eaten.push(std::hint::black_box(vec![1_u8; 1 << 20]));
    }
    println!("ate {} MB", eaten.len());
    Ok(0)
}

/// Stays until standard input ends, or for ever where there is none.
fn wait() -> std::io::Result<u8> {
    let mut sink = [0; 4096];
    while std::io::stdin().read(&mut sink)? > 0 {}
    loop {
        std::thread::park();
    }
}
