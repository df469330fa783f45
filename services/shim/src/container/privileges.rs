//! What the program may do: limits, capabilities, user, filter, in the order in which each can still be set.

use std::collections::HashSet;

use gantry_sys::caps::{self, Sets};
use oci_spec::runtime::{
    Capability, IOPriorityClass, LinuxCapabilities, LinuxIOPriority, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, PosixRlimit, PosixRlimitType, Scheduler,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{Gid, Uid};

use super::context::During;
use super::error::{Error, Result};
use super::identity::Identity;

/// The kernel's names, in the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The five sets as masks.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct CapabilitySets {
    bounding: u64,
    effective: u64,
    inheritable: u64,
    permitted: u64,
    ambient: u64,
}

impl CapabilitySets {
    /// The spec's sets, less what this process does not hold itself: what it lacks it can not give,
    /// and a container that asks for "all" shall get all there is.
    pub(super) fn plan(wanted: Option<&LinuxCapabilities>) -> Result<Self> {
        let Some(wanted) = wanted else {
            return Ok(Self::default());
        };
        let own = caps::get().during("read capabilities", "of this process")?;
        let held = own.permitted & caps::bounding();
        let set = |names: &Option<HashSet<Capability>>| mask(names.as_ref()) & held;
        let permitted = set(wanted.permitted());
        let inheritable = set(wanted.inheritable());
        Ok(Self {
            bounding: set(wanted.bounding()),
            effective: set(wanted.effective()) & permitted,
            inheritable,
            permitted,
            ambient: set(wanted.ambient()) & permitted & inheritable,
        })
    }

    /// Whether a filter must be loaded before the sets are reduced to these.
    pub(super) fn allow_filters(self) -> bool {
        self.effective & (1 << 21) != 0
    }
}

fn mask(names: Option<&HashSet<Capability>>) -> u64 {
    let Some(names) = names else {
        return 0;
    };
    names
        .iter()
        .filter_map(|capability| {
            let name = capability.to_string();
            NAMES.iter().position(|known| *known == name)
        })
        .fold(0, |mask, number| mask | 1 << number)
}

fn resource(kind: PosixRlimitType) -> Option<Resource> {
    Some(match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    })
}

/// Checks limits before anything is changed.
pub(super) fn check_limits(limits: &[PosixRlimit]) -> Result<()> {
    for (index, limit) in limits.iter().enumerate() {
        if limit.soft() > limit.hard() {
            return Err(Error::invalid(
                format!("process.rlimits[{index}]"),
                format!(
                    "{}: soft {} is above hard {}",
                    limit.typ(),
                    limit.soft(),
                    limit.hard()
                ),
            ));
        }
        if limits[..index]
            .iter()
            .any(|other| other.typ() == limit.typ())
        {
            return Err(Error::invalid(
                format!("process.rlimits[{index}]"),
                format!("{} is there twice", limit.typ()),
            ));
        }
    }
    Ok(())
}

/// Sets resource limits.
pub(super) fn set_limits(limits: &[PosixRlimit]) -> Result<()> {
    for limit in limits {
        let Some(resource) = resource(limit.typ()) else {
            continue;
        };
        // u64::MAX is RLIM_INFINITY, which rustix writes as None.
        let value = |value: u64| (value != u64::MAX).then_some(value);
        setrlimit(
            resource,
            Rlimit {
                current: value(limit.soft()),
                maximum: value(limit.hard()),
            },
        )
        .during(
            "set limit",
            format_args!("{} {}:{}", limit.typ(), limit.soft(), limit.hard()),
        )?;
    }
    Ok(())
}

/// Checks a policy before anything is changed.
pub(super) fn check_scheduler(scheduler: &Scheduler) -> Result<()> {
    if *scheduler.policy() != LinuxSchedulerPolicy::SchedDeadline {
        return Ok(());
    }
    let refuse = |field: &str, problem: String| {
        Err(Error::invalid(
            format!("process.scheduler.{field}"),
            problem,
        ))
    };
    let given = |value: &Option<u64>| value.filter(|value| *value != 0);
    let (Some(runtime), Some(deadline)) = (given(scheduler.runtime()), given(scheduler.deadline()))
    else {
        return refuse(
            if given(scheduler.runtime()).is_none() {
                "runtime"
            } else {
                "deadline"
            },
            "missing or 0: SCHED_DEADLINE needs both, in nanoseconds".to_owned(),
        );
    };
    if !RUNTIME.contains(&runtime) {
        return refuse(
            "runtime",
            format!(
                "{runtime} ns is not from {} to {} ns",
                RUNTIME.start(),
                RUNTIME.end()
            ),
        );
    }
    if runtime > deadline {
        return refuse(
            "runtime",
            format!("{runtime} ns is above the deadline, {deadline} ns"),
        );
    }
    if let Some(period) = given(scheduler.period())
        && deadline > period
    {
        return refuse(
            "deadline",
            format!("{deadline} ns is above the period, {period} ns"),
        );
    }
    Ok(())
}

/// What the kernel takes as run time of SCHED_DEADLINE, in nanoseconds.
const RUNTIME: std::ops::RangeInclusive<u64> = 1024..=(1 << 63) - 1;

/// Sets the scheduling policy.
pub(super) fn set_scheduler(scheduler: &Scheduler) -> Result<()> {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flags = scheduler
        .flags()
        .iter()
        .flatten()
        .map(|flag| match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
        })
        .fold(0, |flags, flag| flags | flag);
    let attributes = gantry_sys::process::SchedAttr {
        policy,
        flags,
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0).max(0) as u32,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    };
    let real_time = matches!(
        scheduler.policy(),
        LinuxSchedulerPolicy::SchedFifo | LinuxSchedulerPolicy::SchedRr
    );
    match gantry_sys::process::set_scheduler(attributes) {
        Err(source) if real_time && source.raw_os_error() == Some(libc::EPERM) => Err(Error::step(
            "set scheduler",
            format!(
                "{} (needs CAP_SYS_NICE, and in a cgroup of version 1 a time for it: \
                 linux.resources.cpu.realtimeRuntime)",
                scheduler.policy()
            ),
            source,
        )),
        other => other.during("set scheduler", scheduler.policy().to_string()),
    }
}

/// Sets the i/o priority.
pub(super) fn set_io_priority(wanted: &LinuxIOPriority) -> Result<()> {
    let class = match wanted.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(wanted.priority())
        .ok()
        .filter(|level| *level < 8)
        .ok_or_else(|| {
            Error::invalid(
                "process.ioPriority.priority",
                format!("{} is not 0 to 7", wanted.priority()),
            )
        })?;
    gantry_sys::process::set_io_priority(class, level)
        .during("set i/o priority", wanted.class().to_string())
}

/// Becomes the user, keeping capabilities until [`reduce`].
pub(super) fn become_user(identity: &Identity, set_groups: bool) -> Result<()> {
    rustix::thread::set_keep_capabilities(true).during("keep capabilities", "for the user")?;
    if set_groups {
        let groups: Vec<Gid> = identity
            .groups
            .iter()
            .map(|gid| Gid::from_raw(*gid))
            .collect();
        rustix::thread::set_thread_groups(&groups).during("set groups", "of the user")?;
    }
    let gid = Gid::from_raw(identity.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).during("set group", identity.gid)?;
    let uid = Uid::from_raw(identity.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).during("set user", identity.uid)?;
    rustix::thread::set_keep_capabilities(false).during("keep capabilities", "for the user")?;
    if identity.uid != 0 {
        // Kept are the permitted ones; what still has to be done needs them effective.
        let kept = caps::get().during("read capabilities", "of this process")?;
        caps::set(Sets {
            effective: kept.permitted,
            ..kept
        })
        .during("keep capabilities", "for the user")?;
    }
    Ok(())
}

/// Takes the bounding set down. Needs SETPCAP, so it comes before the user changes.
pub(super) fn bound(sets: CapabilitySets) -> Result<()> {
    caps::limit_bounding(sets.bounding).during("set capabilities", "bounding")
}

/// Takes the other sets to what the program shall have.
pub(super) fn reduce(sets: CapabilitySets) -> Result<()> {
    caps::set(Sets {
        effective: sets.effective,
        permitted: sets.permitted,
        inheritable: sets.inheritable,
    })
    .during("set capabilities", "permitted, effective, inheritable")?;
    caps::set_ambient(sets.ambient).during("set capabilities", "ambient")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_of_the_specification_has_its_number() {
        let names = NAMES.map(|name| format!("\"CAP_{name}\"")).join(",");
        let all: HashSet<Capability> = serde_json::from_str(&format!("[{names}]")).unwrap();
        assert_eq!(all.len(), NAMES.len());
        assert_eq!(mask(Some(&all)), (1 << 41) - 1);
        let one: HashSet<Capability> = serde_json::from_str("[\"CAP_SYS_ADMIN\"]").unwrap();
        assert_eq!(mask(Some(&one)), 1 << 21);
    }

    #[test]
    fn a_deadline_that_can_not_be_kept_is_refused() {
        let check = |times: &str| {
            let json = format!(r#"{{"policy":"SCHED_DEADLINE"{times}}}"#);
            check_scheduler(&serde_json::from_str(&json).unwrap())
        };
        check(r#","runtime":10000,"deadline":20000,"period":20000"#).unwrap();
        for wrong in [
            "",
            r#","runtime":10000"#,
            r#","deadline":20000"#,
            r#","runtime":1000,"deadline":20000"#,
            r#","runtime":30000,"deadline":20000"#,
            r#","runtime":10000,"deadline":20000,"period":15000"#,
        ] {
            let error = check(wrong).unwrap_err().to_string();
            assert!(error.starts_with("process.scheduler."), "{error}");
        }
    }

    #[test]
    fn a_soft_limit_above_the_hard_one_is_refused() {
        let limits: Vec<PosixRlimit> =
            serde_json::from_str(r#"[{"type":"RLIMIT_NOFILE","soft":9,"hard":8}]"#).unwrap();
        assert!(check_limits(&limits).is_err());
    }
}
