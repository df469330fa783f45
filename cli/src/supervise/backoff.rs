//! When a service that has ended is started again.
//!
//! A service that is killed, or that fails once, is missed by every caller: it is
//! started again at once. One that ends soon after each start is started later
//! each time, so that it does not keep the machine busy; a caller that waits on
//! its socket shortens that to [`CALLED_DELAY`].

use std::os::fd::AsFd;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::program::Order;
use super::readable;

/// A service that ran for so long has not ended soon after its start.
const STEADY: Duration = Duration::from_secs(10);

/// So many starts follow a quick end at once.
const AT_ONCE: u32 = 3;

/// The first delay after these, which doubles each time, up to the last.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(10);

/// The longest delay while somebody waits for the service.
const CALLED_DELAY: Duration = Duration::from_millis(500);

/// How often one service has ended soon after its start, without a steady run in
/// between.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    quick_ends: u32,
}

impl Backoff {
    /// How long to wait before the next start of a service that ran for `ran`.
    pub(super) fn next(&mut self, ran: Duration) -> Duration {
        if ran >= STEADY {
            self.quick_ends = 0;
        }
        self.quick_ends = self.quick_ends.saturating_add(1);
        match self.quick_ends.checked_sub(AT_ONCE + 1) {
            None => Duration::ZERO,
            Some(doublings) => FIRST_DELAY
                .saturating_mul(2_u32.saturating_pow(doublings))
                .min(LAST_DELAY),
        }
    }
}

/// Waits for `delay`, or until there is another order, or somebody has waited for
/// a service that listens on `listener` for a little while.
pub(super) async fn pause(
    delay: Duration,
    listener: impl AsFd,
    orders: &mut watch::Receiver<Order>,
) {
    let called = async {
        sleep(CALLED_DELAY).await;
        if readable(listener).await.is_err() {
            // It cannot be watched: the pause is not shortened.
            std::future::pending().await
        }
    };
    tokio::select! {
        () = sleep(delay) => {}
        () = called => {}
        _ = orders.changed() => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_service_is_started_again_at_once_and_later_each_time_it_ends_soon_again() {
        let mut backoff = Backoff::default();
        let short = Duration::from_secs(1);
        for _ in 0..AT_ONCE {
            assert_eq!(backoff.next(short), Duration::ZERO);
        }
        assert_eq!(backoff.next(short), FIRST_DELAY);
        assert_eq!(backoff.next(short), 2 * FIRST_DELAY);
        let later: Vec<Duration> = (0..100).map(|_| backoff.next(short)).collect();
        assert!(later.is_sorted() && later.last() == Some(&LAST_DELAY));
        assert_eq!(backoff.next(STEADY), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_call_that_waits_shortens_the_pause() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let (_order, mut orders) = watch::channel(Order::Run);
        let _waits = UnixStream::connect(&path).unwrap();
        let paused = pause(Duration::from_secs(3_600), &listener, &mut orders);
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, paused).await.unwrap();
    }

    #[tokio::test]
    async fn another_order_ends_the_pause() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let (order, mut orders) = watch::channel(Order::Run);
        order.send_replace(Order::Stop);
        let paused = pause(Duration::from_secs(3_600), &listener, &mut orders);
        let limit = Duration::from_secs(60);
        tokio::time::timeout(limit, paused).await.unwrap();
    }
}
