//! The memory budget: bytes held by batches, bounded over the whole process (I9).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A budget in bytes. Sources take from it before they read on; batches give back when the last stage drops them.
#[derive(Clone, Debug)]
pub struct Budget {
    semaphore: Arc<Semaphore>,
    units: u32,
}

/// A share of the budget, given back on drop.
#[derive(Debug)]
pub struct Permit {
    _inner: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// Bytes are counted in units of this size, so that a budget of many GiB fits a semaphore.
    pub const UNIT: usize = 1024;

    /// A budget of `bytes`, at least one unit of 1 KiB.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let units = u32::try_from(bytes / Budget::UNIT)
            .unwrap_or(u32::MAX)
            .clamp(1, u32::MAX >> 3);
        Budget {
            semaphore: Arc::new(Semaphore::new(units as usize)),
            units,
        }
    }

    /// Waits until `bytes` are free and takes them. A request above the whole budget takes the whole budget, so that
    /// one huge row passes alone instead of never. Cancel-safe; waiters are served in order.
    pub async fn take(&self, bytes: usize) -> Permit {
        let units = u32::try_from(bytes.div_ceil(Budget::UNIT))
            .unwrap_or(u32::MAX)
            .clamp(1, self.units);
        // The semaphore is never closed, so acquiring cannot fail; without it the permit would be empty and harmless.
        Permit {
            _inner: Arc::clone(&self.semaphore)
                .acquire_many_owned(units)
                .await
                .ok(),
        }
    }

    /// Bytes taken at the moment.
    #[must_use]
    pub fn used(&self) -> usize {
        (self.units as usize - self.semaphore.available_permits()) * Budget::UNIT
    }

    /// Bytes in all.
    #[must_use]
    pub fn total(&self) -> usize {
        self.units as usize * Budget::UNIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gives_back_on_drop_and_lets_one_giant_pass() {
        let budget = Budget::new(10 * Budget::UNIT);
        let first = budget.take(4 * Budget::UNIT).await;
        assert_eq!(budget.used(), 4 * Budget::UNIT);
        let giant = budget.take(100 * Budget::UNIT);
        tokio::pin!(giant);
        assert!(
            futures_poll(&mut giant).await.is_none(),
            "the giant waits for the whole budget"
        );
        drop(first);
        let giant = giant.await;
        assert_eq!(budget.used(), budget.total());
        drop(giant);
        assert_eq!(budget.used(), 0);
    }

    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        tokio::select! { biased; out = future => Some(out), () = std::future::ready(()) => None }
    }
}
