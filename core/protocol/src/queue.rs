//! A queue that grows in pieces: however much a peer puts into it, no allocation is large.

use std::collections::VecDeque;

/// First in, first out.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    first: VecDeque<T>,
    /// Empty while everything fits into the first.
    rest: VecDeque<VecDeque<T>>,
}

impl<T> Queue<T> {
    /// What one piece holds.
    const PIECE: usize = 128;

    pub(crate) fn push_back(&mut self, item: T) {
        let last = self.rest.back_mut().unwrap_or(&mut self.first);
        if last.len() < Self::PIECE {
            last.push_back(item);
        } else {
            self.rest.push_back(VecDeque::from([item]));
        }
    }

    pub(crate) fn pop_front(&mut self) -> Option<T> {
        let item = self.first.pop_front();
        if self.first.is_empty()
            && let Some(next) = self.rest.pop_front()
        {
            self.first = next;
        }
        item
    }

    pub(crate) fn front(&self) -> Option<&T> {
        self.first.front()
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { first: VecDeque::new(), rest: VecDeque::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::Queue;

    #[test]
    fn order_is_kept_over_pieces() {
        let mut queue = Queue::default();
        let (mut next, mut taken) = (0, 0);
        for burst in [1, 127, 128, 129, 1_000, 0, 300] {
            for _ in 0..burst {
                queue.push_back(next);
                next += 1;
            }
            for _ in 0..burst / 2 + 1 {
                assert_eq!(queue.front().copied(), (taken < next).then_some(taken));
                let item = queue.pop_front();
                assert_eq!(item, (taken < next).then_some(taken));
                taken += usize::from(item.is_some());
            }
        }
        assert_eq!(
            std::iter::from_fn(|| queue.pop_front()).collect::<Vec<_>>(),
            (taken..next).collect::<Vec<_>>()
        );
    }
}
