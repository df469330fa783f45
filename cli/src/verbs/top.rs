//! `gantry top`: the processes of a container, as the host sees them.

use std::fs;

use clap::Args;
use gantry_proto::gateway::v1::TopRequest;

use crate::exit::Failure;
use crate::session::Session;
use crate::{table, terminal};

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Container
    container: String,
}

impl Top {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let request = TopRequest {
            container: self.container,
        };
        let pids = session
            .engine
            .containers()
            .top(request)
            .await?
            .into_inner()
            .pids;
        let clock = Clock::read();
        let mut rows = vec![
            ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
                .map(str::to_owned)
                .to_vec(),
        ];
        rows.extend(pids.into_iter().filter_map(|pid| row(pid, &clock)));
        terminal::print(&table::lines(&rows))?;
        Ok(0)
    }
}

/// What turns ticks into times.
struct Clock {
    boot: i64,
    now: i64,
}

/// Ticks of a second in /proc (USER_HZ: 100 wherever Linux runs).
const TICKS: i64 = 100;

impl Clock {
    fn read() -> Self {
        let boot = fs::read_to_string("/proc/stat")
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
            .unwrap_or(0);
        Self {
            boot,
            now: jiff::Timestamp::now().as_second(),
        }
    }
}

/// A process as `ps -ef` shows it; nothing where it has just ended.
fn row(pid: i32, clock: &Clock) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next())?;
    // The name is in parentheses and may hold anything (proc(5)).
    let (front, rest) = stat.rsplit_once(')')?;
    let name = front.split_once('(')?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |index: usize| fields.get(index).and_then(|text| text.parse::<i64>().ok());
    let (parent, terminal) = (field(1)?, field(4)?);
    let used = (field(11)? + field(12)?) / TICKS;
    let began = clock.boot + field(19)? / TICKS;
    let share = used * 100 / (clock.now - began).max(1);
    let started = jiff::Timestamp::from_second(began)
        .ok()?
        .strftime("%H:%M")
        .to_string();
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command)
        .trim_end_matches('\0')
        .replace('\0', " ");
    Some(vec![
        user(uid),
        pid.to_string(),
        parent.to_string(),
        share.to_string(),
        started,
        tty(terminal),
        format!("{:02}:{:02}:{:02}", used / 3600, used / 60 % 60, used % 60),
        if command.is_empty() {
            format!("[{name}]")
        } else {
            command
        },
    ])
}

/// The host's name for a user, as `ps` shows it.
fn user(uid: &str) -> String {
    uid.parse()
        .ok()
        .and_then(|id| nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(id)).ok()?)
        .map_or_else(|| uid.to_owned(), |user| user.name)
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
