//! The runtime service and its shims with real containers, as root: each test
//! has a service of its own in a root directory of its own.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test's helpers fail as the test itself does"
)]

mod faults;
mod host;
mod life;
mod logs;
mod streams;
