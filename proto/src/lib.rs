//! Gantry's gRPC interfaces: generated code and nothing else.
//!
//! The interfaces themselves, with what each message means, are in
//! `proto/gantry/<noun>/v1/<noun>.proto`. Wire types stop at each service's
//! `grpc.rs`; domain code never sees them.
#![forbid(unsafe_code)]
// Generated code follows its generator's style, not ours.
#![allow(
    clippy::all,
    missing_debug_implementations,
    rustdoc::all,
    unreachable_pub
)]

/// All interfaces as an encoded `google.protobuf.FileDescriptorSet`, with their
/// dependencies: what server reflection answers from.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

macro_rules! interface {
    ($($name:ident),*) => {
        $(
            #[doc = concat!("`gantry.", stringify!($name), ".v1`.")]
            pub mod $name {
                pub mod v1 {
                    include!(concat!(env!("OUT_DIR"), "/gantry.", stringify!($name), ".v1.rs"));
                }
            }
        )*
    };
}

interface!(gateway, image, network, registry, runtime, shim, types);
