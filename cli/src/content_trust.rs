//! `--disable-content-trust`: Docker's way to say that an image's signature is not
//! looked at, which is the default. Here no other is known.

use clap::Args;

use crate::exit::Failure;

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ContentTrust {
    /// Do not look at signatures of images; false is refused
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set, hide = true)]
    disable_content_trust: bool,
}

impl ContentTrust {
    pub(crate) fn check(self) -> Result<(), Failure> {
        if self.disable_content_trust {
            return Ok(());
        }
        Err(Failure::usage(
            "--disable-content-trust=false: signatures of images cannot be looked at; name the image by its digest, NAME@sha256:…",
        ))
    }
}
