//! An OCI distribution registry over HTTP(S), administered over gRPC.
#![forbid(unsafe_code)]
