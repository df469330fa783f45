//! Tests of the image store against the real file system and a mock registry. They need root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archive;
mod archives;
mod bad_archives;
mod broken_loads;
mod commit;
mod fixture;
mod grpc;
mod import_url;
mod life;
mod loads;
mod overlay;
mod power;
mod proxy;
mod pull;
mod registries;
mod registry;
mod tls;
mod transfer;
mod unpack;
