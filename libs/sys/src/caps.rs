//! Capabilities as 64-bit masks: bit n is capability n of linux/capability.h.

use std::io;

use crate::check;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

/// The sets of a thread that capset(2) changes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sets {
    /// What counts now.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What may pass through exec.
    pub inheritable: u64,
}

/// The calling thread's sets.
pub fn get() -> io::Result<Sets> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 makes the kernel write exactly two Data; both objects outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_capget,
            std::ptr::from_mut(&mut header),
            data.as_mut_ptr(),
        )
    })?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(Sets {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
    })
}

/// Changes the calling thread's sets.
pub fn set(sets: Sets) -> io::Result<()> {
    let mut header = Header {
        version: VERSION_3,
        pid: 0,
    };
    let part = |shift: u32| Data {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [part(0), part(32)];
    // SAFETY: version 3 makes the kernel read exactly two Data; both objects outlive the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_capset,
            std::ptr::from_mut(&mut header),
            data.as_ptr(),
        )
    })
    .map(drop)
}

fn prctl(option: libc::c_int, second: u64, third: u64) -> io::Result<i64> {
    // SAFETY: only used below with options whose arguments are plain integers.
    check(unsafe { libc::prctl(option, second, third, 0_u64, 0_u64) }.into())
}

/// The bounding set.
pub fn bounding() -> u64 {
    (0..64)
        .take_while(|capability| prctl(libc::PR_CAPBSET_READ, *capability, 0).is_ok())
        .filter(|capability| matches!(prctl(libc::PR_CAPBSET_READ, *capability, 0), Ok(1)))
        .fold(0, |set, capability| set | 1 << capability)
}

/// Takes everything out of the bounding set that is not in `keep`.
pub fn limit_bounding(keep: u64) -> io::Result<()> {
    for capability in 0..64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            Ok(_) => {}
            // The first number the kernel does not know is the end.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes the ambient set exactly `set`; each must be permitted and inheritable.
pub fn set_ambient(set: u64) -> io::Result<()> {
    prctl(
        libc::PR_CAP_AMBIENT,
        libc::PR_CAP_AMBIENT_CLEAR_ALL as u64,
        0,
    )?;
    for capability in (0..64).filter(|capability| set & (1 << capability) != 0) {
        prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_RAISE as u64,
            capability,
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_agree_with_proc() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
        };
        assert_eq!(get().unwrap().permitted, field("CapPrm"));
        assert_eq!(get().unwrap().effective, field("CapEff"));
        assert_eq!(bounding(), field("CapBnd"));
    }
}
