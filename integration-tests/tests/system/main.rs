//! The whole engine, with real containers: every service, the shim, the command
//! line, on a private root, bridge and firewall table per test. Needs root, and
//! the Debian packages that `integration-tests/install.sh` installs.

mod archives;
mod bad_input;
mod beside_docker;
mod clients;
mod commit;
mod container;
mod cp;
mod debian;
mod events;
mod faults;
mod foreign_engines;
mod health;
mod images;
mod life;
mod limits;
mod looking;
mod network;
mod own_ids;
mod power_cuts;
mod registries;
mod runtimes;
mod services;
mod soak;
mod store;
mod terminal;
mod trust;
mod volumes;
mod windows;
