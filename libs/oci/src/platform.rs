//! Platforms: `os/architecture/variant`, and which of an index's manifests suits a machine best.
//!
//! Spellings that people and kernels use (`x86_64`, `aarch64`, `armhf`) are
//! brought to Go's, which the image specification prescribes. A variant that is
//! the architecture's base (`arm64/v8`, `amd64/v1`) equals none.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::shorten;

/// Why a text is not a platform.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "platform {text:?} is malformed (expected os/architecture or os/architecture/variant, such as linux/arm64/v8)"
)]
pub struct PlatformError {
    /// The offending text, shortened.
    pub text: String,
}

/// What an image was built for (image index specification, "platform object").
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
pub struct Platform {
    /// CPU architecture, as Go's GOARCH: `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// Operating system, as Go's GOOS: `linux`.
    #[serde(default)]
    pub os: String,
    /// Variant of the architecture: `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Version of the operating system; of use on Windows only.
    #[serde(
        default,
        rename = "os.version",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_version: Option<String>,
    /// Features the operating system must have; of use on Windows only.
    #[serde(
        default,
        rename = "os.features",
        skip_serializing_if = "Option::is_none"
    )]
    pub os_features: Option<Vec<String>>,
}

impl Platform {
    /// A platform of its three parts, brought to the specification's spelling.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant
            .filter(|variant| !variant.is_empty())
            .map(str::to_ascii_lowercase);
        let (architecture, variant) = normalise(&architecture.to_ascii_lowercase(), variant);
        Self {
            architecture,
            os,
            variant,
            os_version: None,
            os_features: None,
        }
    }

    /// The platform this process runs on.
    #[must_use]
    pub fn host() -> Self {
        Self::new(std::env::consts::OS, std::env::consts::ARCH, host_variant())
    }

    /// The same in the specification's spelling, for comparison.
    #[must_use]
    pub fn normalised(&self) -> Self {
        Self {
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
            ..Self::new(&self.os, &self.architecture, self.variant.as_deref())
        }
    }

    /// How well an image for `candidate` runs where `self` is wanted: 0 is exact, more is worse, `None` not at all.
    #[must_use]
    pub fn distance(&self, candidate: &Self) -> Option<u32> {
        let (wanted, candidate) = (self.normalised(), candidate.normalised());
        if wanted.os != candidate.os {
            return None;
        }
        let wanted_level = level(&wanted);
        if wanted.architecture == candidate.architecture {
            return match (wanted_level, level(&candidate)) {
                (Some(wanted), Some(candidate)) => wanted.checked_sub(candidate),
                _ => (wanted.variant == candidate.variant).then_some(0),
            };
        }
        // What a 64-bit processor also runs, after everything of its own.
        match (
            wanted.architecture.as_str(),
            candidate.architecture.as_str(),
        ) {
            ("arm64", "arm") => level(&candidate)
                .and_then(|l| 8_u32.checked_sub(l))
                .map(|d| 100 + d),
            ("amd64", "386") => Some(100),
            _ => None,
        }
    }

    /// Which of the candidates suits best; the first of equals. Candidates without a
    /// platform are taken only when no other suits and there is just one candidate.
    #[must_use]
    pub fn choose<'a, I>(&self, candidates: I) -> Option<usize>
    where
        I: IntoIterator<Item = Option<&'a Self>>,
    {
        let mut best: Option<(u32, usize)> = None;
        let mut count = 0;
        let mut unnamed = false;
        for (position, candidate) in candidates.into_iter().enumerate() {
            count += 1;
            unnamed |= candidate.is_none();
            let distance = candidate.and_then(|candidate| self.distance(candidate));
            if let Some(distance) = distance
                && best.is_none_or(|(least, _)| distance < least)
            {
                best = Some((distance, position));
            }
        }
        match best {
            Some((_, position)) => Some(position),
            None => (count == 1 && unnamed).then_some(0),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || PlatformError {
            text: shorten(text),
        };
        let parts: Vec<&str> = text.split('/').collect();
        let valid = parts.iter().all(|part| {
            !part.is_empty()
                && part.len() <= 32
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        });
        if !valid {
            return Err(malformed());
        }
        match parts.as_slice() {
            [one] if KNOWN_OS.contains(&one.to_ascii_lowercase().as_str()) => {
                Ok(Self::new(one, std::env::consts::ARCH, host_variant()))
            }
            [one] => {
                let platform = Self::new(std::env::consts::OS, one, None);
                KNOWN_ARCHITECTURES
                    .contains(&platform.architecture.as_str())
                    .then_some(platform)
                    .ok_or_else(malformed)
            }
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(malformed()),
        }
    }
}

const KNOWN_OS: &[&str] = &["linux", "darwin", "macos", "windows", "freebsd", "wasip1"];
const KNOWN_ARCHITECTURES: &[&str] = &[
    "386", "amd64", "arm", "arm64", "loong64", "mips64le", "ppc64le", "riscv64", "s390x", "wasm",
];

fn normalise(architecture: &str, variant: Option<String>) -> (String, Option<String>) {
    let (architecture, variant) = match (architecture, variant.as_deref()) {
        ("x86_64" | "x86-64" | "amd64", Some("v1") | None) => ("amd64", None),
        ("x86_64" | "x86-64", _) => ("amd64", variant),
        ("aarch64" | "arm64", Some("v8" | "8") | None) => ("arm64", None),
        ("aarch64", _) => ("arm64", variant),
        ("i386" | "i686" | "x86", _) => ("386", variant),
        ("armhf", None) => ("arm", Some("v7".to_owned())),
        ("armel", None) => ("arm", Some("v6".to_owned())),
        ("arm", None) => ("arm", Some("v7".to_owned())),
        ("arm", Some("5" | "6" | "7" | "8")) => ("arm", variant.map(|digit| format!("v{digit}"))),
        ("loongarch64", _) => ("loong64", variant),
        ("powerpc64le", _) => ("ppc64le", variant),
        (other, _) => (other, variant),
    };
    (architecture.to_owned(), variant)
}

/// The variant as a number, where variants are ordered and a higher one runs what is for a lower.
fn level(platform: &Platform) -> Option<u32> {
    let base = match platform.architecture.as_str() {
        "amd64" => 1,
        "arm64" => 8,
        "arm" => 7,
        _ => return None,
    };
    match platform.variant.as_deref() {
        None => Some(base),
        Some(variant) => variant.strip_prefix('v')?.split('.').next()?.parse().ok(),
    }
}

#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    if has!("avx512f")
        && has!("avx512bw")
        && has!("avx512cd")
        && has!("avx512dq")
        && has!("avx512vl")
    {
        Some("v4")
    } else if has!("avx2") && has!("bmi1") && has!("bmi2") && has!("fma") && has!("lzcnt") {
        Some("v3")
    } else if has!("sse4.2") && has!("popcnt") && has!("ssse3") {
        Some("v2")
    } else {
        None
    }
}

#[cfg(not(target_arch = "x86_64"))]
const fn host_variant() -> Option<&'static str> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn usual_spellings_become_the_specified_ones() {
        for (typed, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/i386", "linux/386"),
        ] {
            assert_eq!(of(typed).to_string(), shown);
        }
        assert_eq!(of("riscv64").architecture, "riscv64");
        assert_eq!(of("linux").architecture, Platform::host().architecture);
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for bad in [
            "",
            "/",
            "linux/",
            "a/b/c/d",
            "linux/amd64/",
            "linux amd64",
            "nonsense",
        ] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_nearest_platform_is_chosen() {
        let index = [
            "linux/386",
            "linux/arm/v6",
            "linux/amd64/v3",
            "linux/amd64",
            "linux/arm64",
        ];
        let index: Vec<Platform> = index.iter().map(|text| of(text)).collect();
        let choose = |wanted: &str| {
            of(wanted)
                .choose(index.iter().map(Some))
                .map(|at| index[at].to_string())
        };
        assert_eq!(choose("linux/amd64").as_deref(), Some("linux/amd64"));
        assert_eq!(choose("linux/amd64/v2").as_deref(), Some("linux/amd64"));
        assert_eq!(choose("linux/amd64/v4").as_deref(), Some("linux/amd64/v3"));
        assert_eq!(choose("linux/arm64/v8").as_deref(), Some("linux/arm64"));
        assert_eq!(choose("linux/arm/v7").as_deref(), Some("linux/arm/v6"));
        assert_eq!(choose("linux/arm/v5"), None);
        assert_eq!(choose("windows/amd64"), None);
        assert_eq!(of("linux/amd64").choose([Some(&index[0])]), Some(0));
    }

    #[test]
    fn a_lone_candidate_without_a_platform_is_taken_and_attestations_are_not() {
        let wanted = of("linux/amd64");
        let unknown = Platform::new("unknown", "unknown", None);
        assert_eq!(wanted.choose([None]), Some(0));
        assert_eq!(wanted.choose([None, None]), None);
        assert_eq!(wanted.choose([Some(&unknown)]), None);
        assert_eq!(wanted.choose([Some(&unknown), Some(&wanted)]), Some(1));
    }
}
