//! The keys that leave a container's terminal: "ctrl-p,ctrl-q", "ctrl-a,d".

use super::{ParseError, Parsed};

/// What leaves where nothing else is said.
pub(crate) const DEFAULT: [u8; 2] = [16, 17];

/// The bytes that the keys send.
pub(crate) fn keys(text: &str) -> Parsed<Vec<u8>> {
    text.split(',').map(key).collect()
}

fn key(text: &str) -> Parsed<u8> {
    let wrong = || {
        ParseError::refusal(format!(
            "{text:?} is not a key; say a character, or ctrl- and one of a-z @ [ \\ ] ^ _"
        ))
    };
    if let [byte] = text.as_bytes()
        && byte.is_ascii()
    {
        return Ok(*byte);
    }
    match text.strip_prefix("ctrl-").map(str::as_bytes) {
        Some([letter @ b'a'..=b'z']) => Ok(letter - b'a' + 1),
        Some([b'@']) => Ok(0),
        Some([sign @ b'['..=b'_']) => Ok(sign - b'[' + 27),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_characters_or_control_characters() {
        assert_eq!(keys("ctrl-p,ctrl-q").unwrap(), DEFAULT);
        assert_eq!(keys("ctrl-@,a,ctrl-\\,ctrl-_").unwrap(), [0, b'a', 28, 31]);
        for bad in ["", "ctrl-", "ctrl-P", "ab", "a,,b"] {
            assert!(keys(bad).is_err(), "{bad}");
        }
    }
}
