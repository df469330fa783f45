//! Tests of the image store against the real file system and a mock registry. They need root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archive;
mod fixture;
mod grpc;
mod life;
mod proxy;
mod pull;
mod registries;
mod registry;
mod tls;
mod transfer;
mod unpack;
