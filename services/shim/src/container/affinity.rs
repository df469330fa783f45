//! `process.execCPUAffinity`: the CPUs that a process of `exec` is born on, and those that it is left on.
//!
//! The two moments are apart because joining a cgroup with a cpuset changes a process' CPUs: until then it would run on
//! whatever CPUs its caller may use, the isolated ones included. Since Linux 6.2 the kernel also keeps to what was
//! asked for here as far as the cpuset allows. The container's first process has no part in this.

use oci_spec::runtime::Process;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::context::During;
use super::error::{Error, Result};

const INITIAL: &str = "process.execCPUAffinity.initial";
const FINAL: &str = "process.execCPUAffinity.final";

/// The two sets, checked.
#[derive(Debug, Default)]
pub(super) struct Affinity {
    initial: Option<Wanted>,
    last: Option<Wanted>,
}

#[derive(Debug)]
struct Wanted {
    list: String,
    cpus: CpuSet,
}

impl Affinity {
    /// Checks the lists, but not whether this machine has any of their CPUs, which only the kernel knows.
    pub(super) fn plan(process: &Process) -> Result<Self> {
        let Some(affinity) = process.exec_cpu_affinity() else {
            return Ok(Self::default());
        };
        Ok(Self {
            initial: wanted(INITIAL, affinity.initial().as_deref())?,
            last: wanted(FINAL, affinity.cpu_affinity_final().as_deref())?,
        })
    }

    /// Moves this process to the initial CPUs, for a child to be born there.
    pub(super) fn lend(&self) -> Result<Option<Lent>> {
        let Some(wanted) = &self.initial else {
            return Ok(None);
        };
        let before = sched_getaffinity(None).during("read", "the CPUs of this process")?;
        wanted.set(INITIAL)?;
        Ok(Some(Lent { before }))
    }

    /// Moves this process to the final CPUs; it has joined its cgroups by now.
    pub(super) fn settle(&self) -> Result<()> {
        match &self.last {
            Some(wanted) => wanted.set(FINAL),
            None => Ok(()),
        }
    }
}

fn wanted(field: &str, list: Option<&str>) -> Result<Option<Wanted>> {
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        return Ok(None);
    };
    let cpus = parse(list).map_err(|problem| Error::invalid(field, problem))?;
    Ok(Some(Wanted {
        list: list.to_owned(),
        cpus,
    }))
}

impl Wanted {
    fn set(&self, field: &str) -> Result<()> {
        sched_setaffinity(None, &self.cpus).map_err(|error| {
            if error == rustix::io::Errno::INVAL {
                return Error::invalid(
                    field,
                    format!(
                        "{:?}: this process may run on none of these CPUs (see Cpus_allowed_list in /proc/self/status)",
                        self.list
                    ),
                );
            }
            Error::step("set CPUs", format!("{:?} for {field}", self.list), error)
        })
    }
}

/// This process on a child's CPUs; on its own again when this is dropped.
#[derive(Debug)]
pub(super) struct Lent {
    before: CpuSet,
}

impl Lent {
    /// What the kernel made of the list: those of its CPUs that there are.
    pub(super) fn mask(&self) -> Result<String> {
        sched_getaffinity(None)
            .during("read", "the CPUs of this process")
            .map(|cpus| hexadecimal(&cpus))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // They were right a moment ago; and where they are not any more, fewer CPUs do no harm.
        let _narrower = sched_setaffinity(None, &self.before);
    }
}

/// A list as `0-3,7`, as the specification has it.
pub(super) fn parse(list: &str) -> Result<CpuSet, String> {
    let mut cpus = CpuSet::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<usize>().ok().filter(|_| digits).ok_or_else(|| {
                format!("{list:?}: {part:?} is neither a CPU nor a range; write numbers and ranges as in \"0-3,7\"")
            })
        };
        let (first, last) = (number(first)?, number(last)?);
        if last < first {
            return Err(format!(
                "{list:?}: the range {part:?} ends before it begins"
            ));
        }
        if last >= CpuSet::MAX_CPU {
            return Err(format!(
                "{list:?}: CPU {last} is beyond {}, the last that can be named",
                CpuSet::MAX_CPU - 1
            ));
        }
        for cpu in first..=last {
            cpus.set(cpu);
        }
    }
    Ok(cpus)
}

/// A list without what other runtimes pass over in it: spaces around its parts, and empty parts.
pub(super) fn tidy(list: &str) -> String {
    let parts: Vec<&str> = list
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect();
    parts.join(",")
}

/// The set as one number, of which CPU 0 is the lowest bit.
fn hexadecimal(cpus: &CpuSet) -> String {
    let digits: String = (0..CpuSet::MAX_CPU / 4)
        .rev()
        .map(|digit| {
            let bits = (0..4).filter(|bit| cpus.is_set(digit * 4 + bit));
            bits.fold(0_u32, |value, bit| value | 1 << bit)
        })
        .filter_map(|value| char::from_digit(value, 16))
        .collect();
    let significant = digits.trim_start_matches('0');
    format!(
        "0x{}",
        if significant.is_empty() {
            "0"
        } else {
            significant
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(list: &str) -> Result<String, String> {
        parse(list).map(|cpus| hexadecimal(&cpus))
    }

    #[test]
    fn a_list_is_numbers_and_ranges() {
        assert_eq!(mask("0").unwrap(), "0x1");
        assert_eq!(mask("0-3,7").unwrap(), "0x8f");
        assert_eq!(mask("64,1").unwrap(), "0x10000000000000002");
        assert_eq!(mask("1023").unwrap().len(), 2 + 256);
    }

    #[test]
    fn a_list_that_means_nothing_is_refused_with_the_part_that_is_wrong() {
        for (list, said) in [
            ("", "neither"),
            ("a", "neither"),
            ("1,,2", "neither"),
            ("0-", "neither"),
            ("+1", "neither"),
            ("1-2-3", "neither"),
            ("3-1", "ends before it begins"),
            ("1024", "beyond 1023"),
            ("0-99999999", "beyond 1023"),
        ] {
            let problem = mask(list).unwrap_err();
            assert!(problem.contains(said), "{list}: {problem}");
        }
    }

    #[test]
    fn spaces_and_empty_parts_are_passed_over_where_a_list_is_read() {
        assert_eq!(tidy(" 0, 2-4,,6 ,"), "0,2-4,6");
        assert_eq!(tidy(" , "), "");
        assert_eq!(tidy("1 2"), "1 2");
    }
}
