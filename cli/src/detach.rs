//! Finds the detach keys in what is typed.

/// Looks for a sequence of keys in a stream of bytes. What was held back as the
/// sequence's possible beginning is let through when it turns out not to be.
#[derive(Debug)]
pub(crate) struct Detector {
    keys: Vec<u8>,
    matched: usize,
}

/// What some typed bytes come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Typed {
    /// For the container.
    pub(crate) through: Vec<u8>,
    /// The sequence is complete.
    pub(crate) detach: bool,
}

impl Detector {
    pub(crate) fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Typed {
        let mut through = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if self.keys.get(self.matched) == Some(&byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return Typed {
                        through,
                        detach: true,
                    };
                }
                continue;
            }
            through.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if self.keys.first() == Some(&byte) && self.keys.len() > 1 {
                self.matched = 1;
            } else {
                through.push(byte);
            }
        }
        Typed {
            through,
            detach: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(detector: &mut Detector, bytes: &[u8]) -> (Vec<u8>, bool) {
        let typed = detector.feed(bytes);
        (typed.through, typed.detach)
    }

    #[test]
    fn the_sequence_is_found_across_reads_and_not_sent() {
        let mut detector = Detector::new(vec![16, 17]);
        assert_eq!(typed(&mut detector, b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(typed(&mut detector, b"\x11c"), (Vec::new(), true));
    }

    #[test]
    fn a_beginning_that_is_not_continued_is_sent() {
        let mut detector = Detector::new(vec![16, 17]);
        assert_eq!(typed(&mut detector, b"\x10"), (Vec::new(), false));
        assert_eq!(typed(&mut detector, b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(
            typed(&mut detector, b"\x10\x10\x11"),
            (b"\x10".to_vec(), true)
        );
    }

    #[test]
    fn without_keys_everything_goes_through() {
        let mut detector = Detector::new(Vec::new());
        assert_eq!(
            typed(&mut detector, b"\x10\x11"),
            (b"\x10\x11".to_vec(), false)
        );
    }
}
