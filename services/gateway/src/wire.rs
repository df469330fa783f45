//! Wire types that several interfaces carry, to and from the domain's: for
//! [`crate::peers`] and [`crate::grpc`], the two edges of the domain.

use gantry_proto::network::v1 as network;
use gantry_proto::types::v1 as types;
use jiff::Timestamp;

use crate::container::{Exit, Rootfs, StepTime};
use crate::wanted::{LogOptions, Platform, PortMapping, Protocol};
use crate::window::{Stream, TerminalSize};

pub(crate) fn timestamp(wire: &prost_types::Timestamp) -> Timestamp {
    Timestamp::new(wire.seconds, wire.nanos).unwrap_or_default()
}

pub(crate) fn to_timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

pub(crate) fn exit(wire: types::ExitStatus) -> Exit {
    Exit {
        code: wire.code,
        signal: wire.signal,
        oom_killed: wire.oom_killed,
        at: wire
            .exited_at
            .as_ref()
            .map_or_else(Timestamp::now, timestamp),
        error: wire.error,
    }
}

pub(crate) fn to_exit(exit: &Exit) -> types::ExitStatus {
    types::ExitStatus {
        code: exit.code,
        signal: exit.signal,
        oom_killed: exit.oom_killed,
        exited_at: Some(to_timestamp(exit.at)),
        error: exit.error.clone(),
    }
}

pub(crate) fn rootfs(wire: types::Rootfs) -> Rootfs {
    Rootfs {
        lower: wire.lower_dirs,
        upper: wire.upper_dir,
        work: wire.work_dir,
    }
}

pub(crate) fn to_rootfs(rootfs: &Rootfs) -> types::Rootfs {
    types::Rootfs {
        lower_dirs: rootfs.lower.clone(),
        upper_dir: rootfs.upper.clone(),
        work_dir: rootfs.work.clone(),
    }
}

pub(crate) fn to_platform(platform: &Platform) -> types::Platform {
    types::Platform {
        os: platform.os.clone(),
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone(),
    }
}

pub(crate) fn to_size(size: TerminalSize) -> types::TerminalSize {
    types::TerminalSize {
        columns: size.columns,
        rows: size.rows,
    }
}

pub(crate) fn to_log(log: LogOptions) -> types::LogOptions {
    types::LogOptions {
        enabled: log.enabled,
        max_segment_bytes: log.max_segment_bytes,
        max_segments: log.max_segments,
    }
}

pub(crate) fn stream(wire: types::Stream) -> Stream {
    match wire {
        types::Stream::Stderr => Stream::Stderr,
        types::Stream::Stdout | types::Stream::Unspecified => Stream::Stdout,
    }
}

pub(crate) fn step(wire: types::Step) -> StepTime {
    StepTime {
        name: wire.name,
        start: wire.start_unix_nanos,
        duration: wire.duration_nanos,
    }
}

pub(crate) fn port(wire: network::PortMapping) -> PortMapping {
    let protocol = match wire.protocol() {
        network::Protocol::Udp => Protocol::Udp,
        network::Protocol::Sctp => Protocol::Sctp,
        network::Protocol::Tcp | network::Protocol::Unspecified => Protocol::Tcp,
    };
    PortMapping {
        host_ip: wire.host_ip,
        host_port: u16::try_from(wire.host_port).unwrap_or_default(),
        container_port: u16::try_from(wire.container_port).unwrap_or_default(),
        protocol,
    }
}

pub(crate) fn to_port(port: &PortMapping) -> network::PortMapping {
    let protocol = match port.protocol {
        Protocol::Tcp => network::Protocol::Tcp,
        Protocol::Udp => network::Protocol::Udp,
        Protocol::Sctp => network::Protocol::Sctp,
    };
    network::PortMapping {
        host_ip: port.host_ip.clone(),
        host_port: port.host_port.into(),
        container_port: port.container_port.into(),
        protocol: protocol.into(),
    }
}
