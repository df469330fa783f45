//! Coordinates the services: containers and their life, events, the front door of the CLI.
#![forbid(unsafe_code)]
