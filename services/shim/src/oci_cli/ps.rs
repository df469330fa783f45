//! `ps`.

use std::io::Read;
use std::path::Path;

use super::CliError;
use super::arguments::{Arguments, Globals};
use super::{output, store};

/// `ps [-f table|json] ID`: the container's processes. Options for ps(1) behind the id are accepted; the table
/// has the columns of `ps -ef`, read from /proc.
pub(super) fn ps(globals: &Globals, mut words: Arguments) -> Result<u8, CliError> {
    let mut json = false;
    while let Some(flag) = words.flag() {
        match flag.name.as_str() {
            "format" | "f" => match words.value(&flag)?.as_str() {
                "json" => json = true,
                "table" => {}
                other => {
                    return Err(CliError::usage(format!(
                        "--format {other:?} is neither table nor json"
                    )));
                }
            },
            _ => return Err(flag.unknown("ps")),
        }
    }
    let id = words.required("the container's id")?;
    let (_, container) = store::open(globals, &id)?;
    let pids = container.processes()?;
    if json {
        return output::print(&serde_json::json!(pids).to_string());
    }
    let mut table = format!("{:<8} {:>7} {:>7} {}\n", "UID", "PID", "PPID", "CMD");
    for pid in pids {
        // One may have ended meanwhile.
        if let Some((uid, parent, command)) = describe(pid) {
            table.push_str(&format!("{uid:<8} {pid:>7} {parent:>7} {command}\n"));
        }
    }
    output::print(&table)
}

fn describe(pid: i32) -> Option<(String, String, String)> {
    let directory = format!("/proc/{pid}");
    let directory = Path::new(&directory);
    let status = std::fs::read_to_string(directory.join("status")).ok()?;
    let field = |name: &str| {
        status.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key == name).then(|| value.split_whitespace().next().unwrap_or("").to_owned())
        })
    };
    let mut command = String::new();
    std::fs::File::open(directory.join("cmdline"))
        .ok()?
        .take(4096)
        .read_to_string(&mut command)
        .ok()?;
    let command = command.trim_end_matches('\0').replace('\0', " ");
    let command = if command.is_empty() {
        format!("[{}]", field("Name")?)
    } else {
        command
    };
    Some((field("Uid")?, field("PPid")?, command))
}
