//! What went over a container's network interfaces.

/// Bytes, loopback left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub received: u64,
    pub sent: u64,
}

/// The traffic in the network namespace of process `pid`; none where the
/// process is gone.
#[must_use]
pub fn read(pid: i32) -> Traffic {
    std::fs::read_to_string(format!("/proc/{pid}/net/dev"))
        .map(|table| sum(&table))
        .unwrap_or_default()
}

/// Sums proc_pid_net(5), `dev`: "name: bytes packets … (8 fields) bytes …".
fn sum(table: &str) -> Traffic {
    let mut traffic = Traffic::default();
    for line in table.lines() {
        let Some((name, counters)) = line.split_once(':') else {
            continue;
        };
        if name.trim() == "lo" {
            continue;
        }
        let mut counters = counters.split_whitespace().map(|text| text.parse::<u64>());
        traffic.received += counters.next().and_then(Result::ok).unwrap_or(0);
        traffic.sent += counters.nth(7).and_then(Result::ok).unwrap_or(0);
    }
    traffic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_does_not_count() {
        let table = "Inter-|   Receive                            |  Transmit\n \
             face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n    \
             lo: 100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0\n  \
             eth0: 2000 3 0 0 0 0 0 0 700 4 0 0 0 0 0 0\n";
        assert_eq!(
            sum(table),
            Traffic {
                received: 2000,
                sent: 700
            }
        );
    }
}
