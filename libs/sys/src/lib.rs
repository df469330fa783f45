//! The one place for unsafe code: clone3, the mount API, pidfd, openat2, setns, bpf.
