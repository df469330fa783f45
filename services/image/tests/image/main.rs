//! Tests of the image store against the real file system and a mock registry. They need root.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod account;
mod archive;
mod archives;
mod bad_archives;
mod broken_loads;
mod checking;
mod commit;
mod events;
mod fixture;
mod full_disk;
mod grpc;
mod import_url;
mod kills;
mod leftovers;
mod life;
mod loads;
mod overlay;
mod packings;
mod plain_http;
mod power;
mod proxy;
mod pull;
mod registries;
mod registry;
mod removal;
mod stacks;
mod tls;
mod transfer;
mod umoci;
mod unpack;
mod volumes;
