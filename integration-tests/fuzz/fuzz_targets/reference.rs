//! References, digests and platforms: what is accepted has one canonical
//! spelling, which means the same, and is safe in a path and in a URL.
#![no_main]

use gantry_oci::{Digest, Reference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        let canonical = reference.canonical();
        let again: Reference = canonical.parse().expect("the canonical spelling");
        assert_eq!(again, reference, "{canonical}");
        assert_eq!(again.canonical(), canonical);
        let familiar: Reference = reference.familiar().parse().expect("the familiar spelling");
        assert_eq!(familiar, reference);
        let name = reference.name().as_str();
        assert!(!name.split('/').any(|part| matches!(part, "" | "." | "..")));
        assert!(canonical.bytes().all(|b| b.is_ascii_graphic()));
        let tagged = reference.clone().with_default_tag();
        assert!(tagged.tag().is_some() || tagged.digest().is_some());
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert!(digest.hex().bytes().all(|b| b.is_ascii_hexdigit()));
    }
});
