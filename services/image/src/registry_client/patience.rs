//! How long to wait before asking again.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use jiff::Timestamp;

/// The longest pause that a registry may ask for. Who asks for a longer one is
/// not waited for: whoever called wants to know.
const LONGEST: Duration = Duration::from_secs(60);

/// Pauses that grow, and that many clients do not make alike.
#[derive(Debug)]
pub(crate) struct Pauses {
    next: Duration,
}

impl Pauses {
    pub(crate) const fn from(first: Duration) -> Self {
        Self { next: first }
    }

    /// The next pause: as long as it was asked for, else by itself. `None`: it
    /// was asked for one that is too long.
    pub(crate) fn next_after(&mut self, asked: Option<Duration>) -> Option<Duration> {
        let own = self.next;
        self.next = (own * 2).min(LONGEST);
        match asked {
            Some(asked) if asked > LONGEST => None,
            // Not all at once, but not earlier than asked either.
            Some(asked) => Some(asked + jitter(own / 2)),
            None => Some(own / 2 + jitter(own / 2)),
        }
    }
}

/// Something between nothing and `most`.
fn jitter(most: Duration) -> Duration {
    // Keyed anew for each, which is all the chance that is needed here.
    let chance = RandomState::new().build_hasher().finish();
    let part = u32::try_from(chance >> 32).unwrap_or(0);
    most.mul_f64(f64::from(part) / f64::from(u32::MAX))
}

/// The value of `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
pub(super) fn retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    let left = date.duration_since(Timestamp::now());
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_differ_and_heed_what_was_asked() {
        let first = Duration::from_millis(200);
        let mut pauses = Pauses::from(first);
        let mut expected = first;
        for _ in 0..5 {
            let pause = pauses.next_after(None).unwrap();
            assert!(expected / 2 <= pause && pause <= expected, "{pause:?}");
            expected *= 2;
        }
        let asked = Duration::from_secs(30);
        let pause = pauses.next_after(Some(asked)).unwrap();
        assert!(asked <= pause && pause <= asked * 2, "{pause:?}");
        assert_eq!(pauses.next_after(Some(Duration::from_secs(3600))), None);
        let differ = (0..20).map(|_| jitter(Duration::from_secs(1)));
        assert!(differ.collect::<std::collections::HashSet<_>>().len() > 1);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(retry_after(" 7 "), Some(Duration::from_secs(7)));
        assert_eq!(
            retry_after("Wed, 21 Oct 2015 07:28:00 GMT"),
            Some(Duration::ZERO)
        );
        let soon = Timestamp::now() + jiff::SignedDuration::from_secs(100);
        let text = soon.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let left = retry_after(&text).unwrap();
        assert!(left > Duration::from_secs(90) && left <= Duration::from_secs(100));
        assert_eq!(retry_after("soon"), None);
        assert_eq!(retry_after("-5"), None);
    }
}
