//! System call filters: the spec's `linux.seccomp` as a program of classic BPF.
//!
//! Each architecture gets its own part. In it the rules become intervals of call numbers with the same outcome, and the
//! intervals a binary tree: a call costs some seven comparisons whatever the profile's length. The program for Docker's
//! default profile has some 370 instructions for three architectures, and their number is what loading it costs.
//!
//! Rules for a call are tried in the spec's order, the first whose conditions hold decides. As runc does, two conditions on
//! the same argument are alternatives; and where the default is "not permitted", a call newer than all that the
//! profile names gets "not implemented" instead, so that a C library falls back to the call before it.

mod aarch64;
mod assemble;
mod x86;
mod x86_64;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use gantry_sys::seccomp::Instruction;
use gantry_sys::unix_socket::Address;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::context::During;
use super::error::{Error, Result};
use super::record::{Record, Status};
use super::wire;
use assemble::{Part, Rule, Span};

const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
/// The bit that marks x32 calls.
const X32_BIT: u32 = 0x4000_0000;
const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_X86: u32 = 0x4000_0003;
const AUDIT_AARCH64: u32 = 0xc000_00b7;

/// A compiled filter: a few kilobytes, where its profile has a hundred.
#[derive(Debug)]
pub struct Filter {
    program: Vec<Instruction>,
    flags: u64,
    /// Where the notify descriptor goes, with the opaque text for whoever gets it.
    pub(super) listener: Option<(PathBuf, Option<String>)>,
}

/// A kind of call numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Calls {
    X86_64,
    X32,
    X86,
    Aarch64,
}

impl Calls {
    fn of(arch: Arch) -> Result<Self> {
        Ok(match arch {
            Arch::ScmpArchX86_64 => Self::X86_64,
            Arch::ScmpArchX32 => Self::X32,
            Arch::ScmpArchX86 => Self::X86,
            Arch::ScmpArchAarch64 => Self::Aarch64,
            Arch::ScmpArchNative => Self::native(),
            other => {
                return Err(Error::Unsupported {
                    what: format!("linux.seccomp.architectures: {other}"),
                    why: "its call numbers are not known to this program".to_owned(),
                });
            }
        })
    }

    fn native() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Aarch64
        } else {
            Self::X86_64
        }
    }

    fn audit(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => AUDIT_X86_64,
            Self::X86 => AUDIT_X86,
            Self::Aarch64 => AUDIT_AARCH64,
        }
    }

    /// A call's number; `None`: there is no such call here.
    fn number(self, name: &str) -> Option<u32> {
        let find = |table: &[(&str, u32)]| {
            table
                .binary_search_by_key(&name, |(name, _)| name)
                .ok()
                .map(|index| table[index].1)
        };
        match self {
            Self::X86_64 => find(x86_64::X86_64),
            Self::X32 => find(x86_64::X32)
                .or_else(|| find(x86_64::X86_64))
                .map(|number| number | X32_BIT),
            Self::X86 => find(x86::X86),
            Self::Aarch64 => find(aarch64::AARCH64),
        }
    }
}

impl Filter {
    /// Compiles a profile. Names that no architecture knows are passed over, as profiles name calls of all kernels.
    ///
    /// # Errors
    /// The profile says what cannot be, or cannot be done here.
    pub fn compile(profile: &LinuxSeccomp) -> Result<Self> {
        let default = action(
            profile.default_action(),
            profile.default_errno_ret(),
            "defaultAction",
        )?;
        let mut calls = vec![];
        for arch in profile.architectures().iter().flatten() {
            // Profiles name the architectures of all machines; those of others can not run here.
            if let Ok(kind) = Calls::of(*arch)
                && runs_here(kind)
                && !calls.contains(&kind)
            {
                calls.push(kind);
            }
        }
        if !calls.contains(&Calls::native()) {
            calls.push(Calls::native());
        }
        let mut parts = Vec::new();
        for kind in calls {
            let rules = rules(profile, kind, default)?;
            let newest = rules.keys().next_back().copied();
            let mut spans = spans(rules, default);
            if default == ERRNO | libc::EPERM as u32
                && let Some(newest) = newest
            {
                spans.push(Span {
                    first: newest + 1,
                    rules: vec![Rule::always(ERRNO | libc::ENOSYS as u32)],
                });
            }
            parts.push(Part {
                audit: kind.audit(),
                x32: kind == Calls::X32,
                spans,
            });
        }
        let program = assemble::program(&parts, KILL_PROCESS);
        let notifies = profile.default_action() == LinuxSeccompAction::ScmpActNotify
            || profile
                .syscalls()
                .iter()
                .flatten()
                .any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
        let listener = profile
            .listener_path()
            .as_ref()
            .map(|path| (path.clone(), profile.listener_metadata().clone()));
        if notifies && listener.is_none() {
            return Err(Error::invalid(
                "linux.seccomp.listenerPath",
                "missing: the action SCMP_ACT_NOTIFY needs somebody to notify",
            ));
        }
        Ok(Self {
            program,
            // Who listens gets the descriptor, also where no rule notifies yet.
            flags: flags(profile, listener.is_some()),
            listener,
        })
    }

    /// Loads it for the calling process.
    pub(super) fn load(&self) -> Result<Option<OwnedFd>> {
        gantry_sys::seccomp::load(&self.program, self.flags).during(
            "load system call filter",
            format_args!("of {} instructions", self.program.len()),
        )
    }

    /// Sends the notify descriptor to the profile's listener, with the state that the specification wants beside it.
    pub(super) fn hand_over(
        &self,
        descriptor: &OwnedFd,
        record: &Record,
        status: Status,
        pid: i32,
    ) -> Result<()> {
        let Some((path, metadata)) = &self.listener else {
            return Ok(());
        };
        let state: serde_json::Value =
            serde_json::from_str(&super::hooks::state(record, status, record.pid))
                .unwrap_or_default();
        let text = serde_json::json!({
            "ociVersion": super::OCI_VERSION,
            "fds": ["seccompFd"],
            "pid": pid,
            "metadata": metadata.as_deref().unwrap_or_default(),
            "state": state,
        })
        .to_string();
        let sent = (|| -> io::Result<()> {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?;
            let address = Address::of(path)?;
            rustix::net::connect(&socket, &address.socket_address()?)?;
            wire::send_bytes(socket.as_fd(), text.as_bytes(), Some(descriptor.as_fd()))
        })();
        sent.during("send the seccomp listener to", path.display())
    }
}

fn runs_here(kind: Calls) -> bool {
    if cfg!(target_arch = "aarch64") {
        kind == Calls::Aarch64
    } else {
        kind != Calls::Aarch64
    }
}

fn flags(profile: &LinuxSeccomp, listens: bool) -> u64 {
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            // The process has one thread.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => 2,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 4,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if listens => 32,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
        };
    }
    if listens {
        flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    }
    flags
}

fn action(action: LinuxSeccompAction, errno: Option<u32>, field: &str) -> Result<u32> {
    if let Some(errno) = errno
        && errno > 4095
    {
        return Err(Error::invalid(
            format!("linux.seccomp.{field}"),
            format!("errno {errno} is above 4095"),
        ));
    }
    let value = action.as_u32(errno);
    Ok(value)
}

/// The rules of each call, by number. Those that say no more than the default are left out.
fn rules(profile: &LinuxSeccomp, kind: Calls, default: u32) -> Result<BTreeMap<u32, Vec<Rule>>> {
    let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        let action = action(
            rule.action(),
            rule.errno_ret(),
            &format!("syscalls[{index}].errnoRet"),
        )?;
        let conditions = rule.args().as_deref().unwrap_or_default();
        for condition in conditions {
            if condition.index() > 5 {
                return Err(Error::invalid(
                    format!("linux.seccomp.syscalls[{index}].args"),
                    format!("index {} is above 5", condition.index()),
                ));
            }
        }
        for name in rule.names() {
            let Some(number) = kind.number(name) else {
                continue;
            };
            let of_call = rules.entry(number).or_default();
            // Behind one without conditions nothing is reached.
            if of_call.last().is_some_and(Rule::is_unconditional) {
                continue;
            }
            if repeats(conditions) {
                of_call.extend(
                    conditions
                        .iter()
                        .map(|condition| Rule::when(vec![*condition], action)),
                );
            } else {
                of_call.push(Rule::when(conditions.to_vec(), action));
            }
        }
    }
    for of_call in rules.values_mut() {
        if !of_call.last().is_some_and(Rule::is_unconditional) {
            of_call.push(Rule::always(default));
        }
        // Conditions for what happens anyway.
        while of_call.len() > 1
            && of_call[of_call.len() - 2].action == of_call[of_call.len() - 1].action
        {
            let always = Rule::always(of_call[of_call.len() - 1].action);
            of_call.truncate(of_call.len() - 2);
            of_call.push(always);
        }
    }
    Ok(rules)
}

fn repeats(conditions: &[LinuxSeccompArg]) -> bool {
    conditions.iter().enumerate().any(|(index, condition)| {
        conditions[..index]
            .iter()
            .any(|before| before.index() == condition.index())
    })
}

/// Intervals of numbers that share an outcome, from 0 on.
fn spans(rules: BTreeMap<u32, Vec<Rule>>, default: u32) -> Vec<Span> {
    let default = vec![Rule::always(default)];
    let mut spans = vec![Span {
        first: 0,
        rules: default.clone(),
    }];
    let mut next = 0;
    let mut push = |first: u32, rules: Vec<Rule>| match spans.last_mut() {
        Some(last) if last.rules == rules => {}
        Some(last) if last.first == first => last.rules = rules,
        _ => spans.push(Span { first, rules }),
    };
    for (number, rules) in rules {
        if number > next {
            push(next, default.clone());
        }
        push(number, rules);
        next = number + 1;
    }
    push(next, default);
    spans
}

#[cfg(test)]
mod tests;
