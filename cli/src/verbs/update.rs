//! `gantry update`: changes the limits of containers.

use clap::Args;
use gantry_proto::gateway::v1::{ResourceUpdate, RestartPolicy, UpdateRequest};

use crate::display;
use crate::each::Each;
use crate::exit::Failure;
use crate::parse::{limits, sizes};
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct Update {
    /// Limit of memory
    #[arg(short, long, value_name = "BYTES", value_parser = sizes::size)]
    memory: Option<u64>,
    /// Limit of memory and swap together; -1 for none
    #[arg(long, value_name = "BYTES", value_parser = sizes::size_or_unlimited, allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Memory that is left to it when the host is short
    #[arg(long, value_name = "BYTES", value_parser = sizes::size)]
    memory_reservation: Option<u64>,
    /// Number of CPUs
    #[arg(long, value_parser = limits::cpus)]
    cpus: Option<u64>,
    /// Relative weight of CPU time
    #[arg(short = 'c', long, value_name = "WEIGHT")]
    cpu_shares: Option<u64>,
    /// Period of CPU time, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// CPU time per period, in microseconds; -1 for no limit
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Time of each period that its real-time processes may use, in microseconds (cgroup v1)
    #[arg(long, value_name = "MICROSECONDS", allow_negative_numbers = true)]
    cpu_rt_runtime: Option<i64>,
    /// Period of real-time CPU time, in microseconds (cgroup v1)
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_period: Option<u64>,
    /// CPUs it may run on: 0-3,5
    #[arg(long, value_name = "CPUS")]
    cpuset_cpus: Option<String>,
    /// Memory nodes it may use
    #[arg(long, value_name = "NODES")]
    cpuset_mems: Option<String>,
    /// Limit of processes and threads; -1 for none
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Relative weight of block I/O: 10-1000
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u32).range(10..=1000))]
    blkio_weight: Option<u32>,
    /// When to start it again: no, on-failure[:TRIES], always, unless-stopped
    #[arg(long, value_name = "POLICY", value_parser = limits::restart_policy)]
    restart: Option<RestartPolicy>,
    /// Containers
    #[arg(value_name = "CONTAINER", required = true)]
    containers: Vec<String>,
}

impl Update {
    pub(crate) async fn run(self, session: &Session) -> Result<u8, Failure> {
        let resources = ResourceUpdate {
            memory_bytes: self.memory,
            memory_swap_bytes: self.memory_swap,
            memory_reservation_bytes: self.memory_reservation,
            nano_cpus: self.cpus,
            cpu_shares: self.cpu_shares,
            cpuset_cpus: self.cpuset_cpus,
            cpuset_mems: self.cpuset_mems,
            pids_limit: self.pids_limit,
            cpu_period_micros: self.cpu_period,
            cpu_quota_micros: self.cpu_quota,
            blkio_weight: self.blkio_weight,
            cpu_realtime_runtime_micros: self.cpu_rt_runtime,
            cpu_realtime_period_micros: self.cpu_rt_period,
        };
        if resources == ResourceUpdate::default() && self.restart.is_none() {
            return Err(Failure::new(
                "you must provide one or more flags when using this command: say what is to change, as in -m 1g",
            ));
        }
        let mut client = session.engine.containers();
        let mut each = Each::new(session);
        for name in self.containers {
            let request = UpdateRequest {
                container: name.clone(),
                resources: Some(resources.clone()),
                restart_policy: self.restart.clone(),
            };
            if let Some(answer) = each.check(client.update(request).await) {
                for warning in answer.into_inner().warnings {
                    eprintln!("gantry: warning: {}", display::escaped(&warning));
                }
                each.said(&name)?;
            }
        }
        Ok(each.code())
    }
}
