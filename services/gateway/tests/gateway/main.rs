//! The gateway on its socket, over fake image, network and runtime services.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is how tests fail"
)]

mod calls;
mod copies;
mod events;
mod fakes;
mod faults;
mod life;
mod mounts;
mod records;
mod stops;
mod workbench;
