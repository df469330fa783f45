//! Tests of the image store against the real file system and a mock registry. They need root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod account;
mod archive;
mod checking;
mod fixture;
mod full_disk;
mod grpc;
mod kills;
mod life;
mod power;
mod pull;
mod registry;
mod removal;
mod unpack;
