//! How every Gantry service starts, listens, logs, traces, reports health and stops; how every client connects.
#![forbid(unsafe_code)]
