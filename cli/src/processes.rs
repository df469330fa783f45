//! Processes of this machine in the columns of ps(1): what `top` shows.
//!
//! Docker runs the host's `ps` for it, whatever its options are. Here the options
//! that choose columns are understood (`-o`, `u`, `-l`-less `-ef`); those that
//! choose processes mean nothing, since the container's are chosen.

use std::fs;

/// Ticks of a second in /proc (USER_HZ: 100 wherever Linux runs).
const TICKS: u64 = 100;

const FULL: [&str; 8] = ["uid", "pid", "ppid", "c", "stime", "tty", "time", "cmd"];
const USER: [&str; 11] = [
    "user", "pid", "%cpu", "%mem", "vsz", "rss", "tty", "stat", "start", "time", "command",
];
const SHORT: [&str; 4] = ["pid", "tty", "time", "comm"];

/// What a column is called, and what it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) heading: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    User,
    Uid,
    Group,
    Gid,
    Pid,
    Ppid,
    Pgid,
    Sid,
    Threads,
    Nice,
    Priority,
    Share,
    Cpu,
    Memory,
    Vsz,
    Rss,
    Terminal,
    State,
    Start,
    StartLong,
    Elapsed,
    ElapsedSeconds,
    Time,
    Name,
    Command,
    Wchan,
}

/// ps' own names for columns, with their headings.
const KINDS: [(&str, &str, Kind); 46] = [
    ("user", "USER", Kind::User),
    ("euser", "EUSER", Kind::User),
    ("uname", "USER", Kind::User),
    ("uid", "UID", Kind::Uid),
    ("euid", "EUID", Kind::Uid),
    ("group", "GROUP", Kind::Group),
    ("egroup", "EGROUP", Kind::Group),
    ("gid", "GID", Kind::Gid),
    ("egid", "EGID", Kind::Gid),
    ("pid", "PID", Kind::Pid),
    ("tgid", "TGID", Kind::Pid),
    ("ppid", "PPID", Kind::Ppid),
    ("pgid", "PGID", Kind::Pgid),
    ("pgrp", "PGRP", Kind::Pgid),
    ("sid", "SID", Kind::Sid),
    ("sess", "SESS", Kind::Sid),
    ("nlwp", "NLWP", Kind::Threads),
    ("thcount", "THCNT", Kind::Threads),
    ("ni", "NI", Kind::Nice),
    ("nice", "NI", Kind::Nice),
    ("pri", "PRI", Kind::Priority),
    ("c", "C", Kind::Share),
    ("%cpu", "%CPU", Kind::Cpu),
    ("pcpu", "%CPU", Kind::Cpu),
    ("%mem", "%MEM", Kind::Memory),
    ("pmem", "%MEM", Kind::Memory),
    ("vsz", "VSZ", Kind::Vsz),
    ("vsize", "VSZ", Kind::Vsz),
    ("rss", "RSS", Kind::Rss),
    ("rssize", "RSS", Kind::Rss),
    ("tty", "TTY", Kind::Terminal),
    ("tt", "TT", Kind::Terminal),
    ("tname", "TTY", Kind::Terminal),
    ("stat", "STAT", Kind::State),
    ("s", "S", Kind::State),
    ("state", "S", Kind::State),
    ("stime", "STIME", Kind::Start),
    ("start", "START", Kind::Start),
    ("lstart", "STARTED", Kind::StartLong),
    ("etime", "ELAPSED", Kind::Elapsed),
    ("etimes", "ELAPSED", Kind::ElapsedSeconds),
    ("time", "TIME", Kind::Time),
    ("cputime", "TIME", Kind::Time),
    ("comm", "COMMAND", Kind::Name),
    ("wchan", "WCHAN", Kind::Wchan),
    ("cmd", "CMD", Kind::Command),
];

fn column(name: &str) -> Result<Column, String> {
    let (name, heading) = match name.split_once('=') {
        Some((name, heading)) => (name, Some(heading)),
        None => (name, None),
    };
    let of = |kind: Kind, otherwise: &str| Column {
        heading: heading.unwrap_or(otherwise).to_owned(),
        kind,
    };
    match name {
        "args" | "command" => return Ok(of(Kind::Command, "COMMAND")),
        "ucmd" | "ucomm" => return Ok(of(Kind::Name, "CMD")),
        "bsdstart" => return Ok(of(Kind::Start, "START")),
        _ => {}
    }
    KINDS
        .iter()
        .find(|(known, _, _)| *known == name)
        .map(|(_, otherwise, kind)| of(*kind, otherwise))
        .ok_or_else(|| {
            format!("unknown column {name:?}: see the standard format specifiers in ps(1)")
        })
}

fn named(names: &[&str]) -> Vec<Column> {
    let mut columns: Vec<Column> = names.iter().filter_map(|name| column(name).ok()).collect();
    // The full format shows names of users under UID.
    if let Some(first) = columns.first_mut()
        && first.kind == Kind::Uid
    {
        first.kind = Kind::User;
    }
    columns
}

/// The columns that options of ps ask for. None given: those of `-ef`.
pub(crate) fn columns(options: &[String]) -> Result<Vec<Column>, String> {
    if options.is_empty() {
        return Ok(named(&FULL));
    }
    let mut listed = Vec::new();
    let (mut full, mut user) = (false, false);
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        if let Some(list) = option.strip_prefix("--format=") {
            listed.extend(list_of(list)?);
            continue;
        }
        if option == "--forest" || option == "--no-headers" {
            continue;
        }
        let letters = option.strip_prefix('-').unwrap_or(option);
        for (index, letter) in letters.char_indices() {
            match letter {
                // What is listed is the rest of the word, or else the next.
                'o' | 'O' => {
                    let after = &letters[index + 1..];
                    let list = match after {
                        "" => rest.next().ok_or("a list of columns is missing after o")?,
                        after => after,
                    };
                    listed.extend(list_of(list)?);
                    break;
                }
                'f' | 'F' => full = true,
                'u' => user = true,
                'e' | 'A' | 'a' | 'x' | 'w' | 'r' | 'd' | 'H' => {}
                other => {
                    return Err(format!(
                        "ps option {other:?} is not known here; there are -e, -f, -o COLUMNS, aux"
                    ));
                }
            }
        }
    }
    let columns = match (listed.is_empty(), user, full) {
        (false, _, _) => listed,
        (true, true, _) => named(&USER),
        (true, false, true) => named(&FULL),
        (true, false, false) => named(&SHORT),
    };
    // As Docker: without it nothing tells which are the container's.
    if !columns.iter().any(|column| column.kind == Kind::Pid) {
        return Err("couldn't find PID field in ps output: add pid to the columns".to_owned());
    }
    Ok(columns)
}

fn list_of(list: &str) -> Result<Vec<Column>, String> {
    // A heading may have commas in it, and so is the last.
    if list.contains('=') && !list.contains("=,") {
        let (before, last) = match list.find('=').and_then(|at| list[..at].rfind(',')) {
            Some(comma) => (&list[..comma], &list[comma + 1..]),
            None => ("", list),
        };
        let mut columns = if before.is_empty() {
            Vec::new()
        } else {
            list_of(before)?
        };
        columns.push(column(last)?);
        return Ok(columns);
    }
    list.split([',', ' '])
        .filter(|name| !name.is_empty())
        .map(column)
        .collect()
}

/// What turns ticks into times, and pages into shares.
pub(crate) struct Machine {
    boot: u64,
    now: u64,
    memory: u64,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let boot = fs::read_to_string("/proc/stat")
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
            .unwrap_or(0);
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = memory
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        Self {
            boot,
            now: u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0),
            memory: memory.and_then(|kib| kib.parse().ok()).unwrap_or(1),
        }
    }
}

/// What /proc says of a process.
struct Process {
    pid: i32,
    name: String,
    /// From the third of /proc/PID/stat on (proc(5)).
    stat: Vec<String>,
    status: String,
    command: String,
}

/// A process in columns; nothing where it has just ended.
pub(crate) fn row(pid: i32, columns: &[Column], machine: &Machine) -> Option<Vec<String>> {
    let process = Process::read(pid)?;
    columns
        .iter()
        .map(|column| process.show(column.kind, machine))
        .collect()
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        // The name is in parentheses and may hold anything.
        let (front, rest) = stat.rsplit_once(')')?;
        let name = front.split_once('(')?.1.to_owned();
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        let command = command.trim_end_matches('\0').replace(['\0', '\n'], " ");
        Some(Self {
            pid,
            command: if command.is_empty() {
                format!("[{name}]")
            } else {
                command
            },
            name,
            stat: rest.split_whitespace().map(str::to_owned).collect(),
            status,
        })
    }

    /// A field of /proc/PID/stat, by its number in proc(5).
    fn number(&self, field: usize) -> Option<i64> {
        self.stat.get(field - 3)?.parse().ok()
    }

    fn ticks(&self, field: usize) -> Option<u64> {
        u64::try_from(self.number(field)?).ok()
    }

    /// The first number of a line of /proc/PID/status.
    fn line(&self, key: &str) -> Option<&str> {
        let line = self.status.lines().find_map(|line| line.strip_prefix(key));
        line?.split_whitespace().next()
    }

    fn show(&self, kind: Kind, machine: &Machine) -> Option<String> {
        let used = (self.ticks(14)? + self.ticks(15)?) / TICKS;
        let began = machine.boot + self.ticks(22)? / TICKS;
        let age = machine.now.saturating_sub(began).max(1);
        let started = jiff::Timestamp::from_second(i64::try_from(began).ok()?).ok()?;
        let resident = self.line("VmRSS:").unwrap_or("0");
        Some(match kind {
            Kind::User => user(self.line("Uid:")?),
            Kind::Uid => self.line("Uid:")?.to_owned(),
            Kind::Group => group(self.line("Gid:")?),
            Kind::Gid => self.line("Gid:")?.to_owned(),
            Kind::Pid => self.pid.to_string(),
            Kind::Ppid => self.number(4)?.to_string(),
            Kind::Pgid => self.number(5)?.to_string(),
            Kind::Sid => self.number(6)?.to_string(),
            Kind::Threads => self.number(20)?.to_string(),
            Kind::Nice => self.number(19)?.to_string(),
            Kind::Priority => (39 - self.number(18)?).to_string(),
            Kind::Share => (used * 100 / age).to_string(),
            Kind::Cpu => format!("{:.1}", used as f64 * 100.0 / age as f64),
            Kind::Memory => {
                let resident: f64 = resident.parse().unwrap_or(0.0);
                format!("{:.1}", resident * 100.0 / machine.memory as f64)
            }
            Kind::Vsz => self.line("VmSize:").unwrap_or("0").to_owned(),
            Kind::Rss => resident.to_owned(),
            Kind::Terminal => tty(self.number(7)?),
            Kind::State => self.state()?,
            Kind::Start => started.strftime("%H:%M").to_string(),
            Kind::StartLong => started.strftime("%a %b %e %H:%M:%S %Y").to_string(),
            Kind::Elapsed => elapsed(age),
            Kind::ElapsedSeconds => age.to_string(),
            Kind::Time => clock(used),
            Kind::Name => self.name.clone(),
            Kind::Command => self.command.clone(),
            Kind::Wchan => fs::read_to_string(format!("/proc/{}/wchan", self.pid))
                .ok()
                .filter(|wchan| wchan != "0" && !wchan.is_empty())
                .unwrap_or_else(|| "-".to_owned()),
        })
    }

    /// "Ss+": the state, and ps' signs for what else is to be seen.
    fn state(&self) -> Option<String> {
        let mut state = self.stat.first()?.clone();
        match self.number(19)? {
            ..0 => state.push('<'),
            1.. => state.push('N'),
            0 => {}
        }
        if self.number(6)? == i64::from(self.pid) {
            state.push('s');
        }
        if self.number(20)? > 1 {
            state.push('l');
        }
        if self.number(8)? == self.number(5)? {
            state.push('+');
        }
        Some(state)
    }
}

/// "01:02:03"
fn clock(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

/// "2-03:04:05", "03:04"
fn elapsed(seconds: u64) -> String {
    let (days, hours) = (seconds / 86400, seconds / 3600 % 24);
    let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
    match (days, hours) {
        (0, 0) => format!("{minutes:02}:{seconds:02}"),
        (0, _) => format!("{hours:02}:{minutes:02}:{seconds:02}"),
        _ => format!("{days}-{hours:02}:{minutes:02}:{seconds:02}"),
    }
}

/// The host's name for a user, as `ps` shows it.
fn user(uid: &str) -> String {
    uid.parse()
        .ok()
        .and_then(|id| nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(id)).ok()?)
        .map_or_else(|| uid.to_owned(), |user| user.name)
}

fn group(gid: &str) -> String {
    gid.parse()
        .ok()
        .and_then(|id| nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(id)).ok()?)
        .map_or_else(|| gid.to_owned(), |group| group.name)
}

/// The terminal of a device number; 136 is the first major of Unix98 terminals.
fn tty(device: i64) -> String {
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xfff00);
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        _ => format!("{major}:{minor}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headings(options: &str) -> Result<String, String> {
        let options: Vec<String> = options.split_whitespace().map(str::to_owned).collect();
        let columns = columns(&options)?;
        let headings: Vec<String> = columns.into_iter().map(|c| c.heading).collect();
        Ok(headings.join(" "))
    }

    #[test]
    fn options_of_ps_choose_the_columns() {
        for (options, expected) in [
            ("", "UID PID PPID C STIME TTY TIME CMD"),
            ("-ef", "UID PID PPID C STIME TTY TIME CMD"),
            ("-e", "PID TTY TIME COMMAND"),
            (
                "aux",
                "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
            ),
            ("-o pid,cmd", "PID CMD"),
            ("-eo pid,comm", "PID COMMAND"),
            ("axo user,pid,args", "USER PID COMMAND"),
            ("-o pid -o ppid=PARENT", "PID PARENT"),
        ] {
            assert_eq!(headings(options).as_deref(), Ok(expected), "{options}");
        }
        assert!(headings("-o comm").unwrap_err().contains("PID field"));
        assert!(headings("-o pid,colour").unwrap_err().contains("colour"));
        assert!(headings("-Z").unwrap_err().contains("'Z'"));
    }

    #[test]
    fn every_column_shows_something_of_this_very_process() {
        let pid = std::process::id().cast_signed();
        let machine = Machine::read();
        for (name, _, _) in KINDS {
            let columns = [column(name).unwrap()];
            let row = row(pid, &columns, &machine).unwrap();
            assert!(!row[0].is_empty(), "{name}");
        }
        let columns = columns(&["-o".to_owned(), "pid,ppid,comm".to_owned()]).unwrap();
        assert_eq!(row(pid, &columns, &machine).unwrap()[0], pid.to_string());
    }

    #[test]
    fn times_are_shown_as_ps_does() {
        assert_eq!(clock(3723), "01:02:03");
        assert_eq!(elapsed(64), "01:04");
        assert_eq!(elapsed(3723), "01:02:03");
        assert_eq!(elapsed(2 * 86400 + 60), "2-00:01:00");
    }
}
