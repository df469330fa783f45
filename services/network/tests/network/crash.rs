//! The service as a process: killed, restarted, asked over gRPC.
