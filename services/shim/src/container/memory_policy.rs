//! The NUMA memory policy of the program.

use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType, MemoryPolicyModeType};

use super::context::During;
use super::error::{Error, Result};

/// Sets it for the calling process.
pub(super) fn set(policy: &LinuxMemoryPolicy) -> Result<()> {
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flags = policy
        .flags()
        .iter()
        .flatten()
        .map(|flag| match flag {
            MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
            MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
            MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
        })
        .fold(0, |flags, flag| flags | flag);
    let nodes = nodes(policy.nodes().as_deref().unwrap_or(""))?;
    gantry_sys::process::set_memory_policy(mode | flags, &nodes)
        .during("set memory policy", policy.mode().to_string())
}

/// "0-3,7" as a bit mask.
fn nodes(list: &str) -> Result<Vec<u64>> {
    let wrong = || {
        Error::invalid(
            "linux.memoryPolicy.nodes",
            format!("{list:?} is not a list of nodes as 0-3,7"),
        )
    };
    let mut mask: Vec<u64> = Vec::new();
    for part in list.split(',').filter(|part| !part.trim().is_empty()) {
        let (first, last) = part
            .trim()
            .split_once('-')
            .unwrap_or((part.trim(), part.trim()));
        let first: usize = first.parse().map_err(|_| wrong())?;
        let last: usize = last.parse().map_err(|_| wrong())?;
        if first > last || last >= 1024 {
            return Err(wrong());
        }
        for node in first..=last {
            if mask.len() <= node / 64 {
                mask.resize(node / 64 + 1, 0);
            }
            mask[node / 64] |= 1 << (node % 64);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_nodes_is_a_mask() {
        assert_eq!(nodes("0-2,5").unwrap(), [0b10_0111]);
        assert_eq!(nodes("64").unwrap(), [0, 1]);
        assert!(nodes("").unwrap().is_empty());
        assert!(nodes("3-1").is_err());
        assert!(nodes("x").is_err());
    }
}
