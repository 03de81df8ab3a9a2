//! What is to happen, by time; at the same time, in the order in which it was planned.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The heap orders tickets alone: events are large, and are moved in once and out once.
pub struct Queue<T> {
    heap: BinaryHeap<Reverse<Ticket>>,
    events: Vec<Option<T>>,
    free: Vec<u32>,
    planned: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ticket {
    at: u64,
    planned: u64,
    place: u32,
}

impl<T> Queue<T> {
    pub fn new() -> Queue<T> {
        Queue { heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), planned: 0 }
    }

    pub fn push(&mut self, at: u64, event: T) {
        self.planned += 1;
        let place = match self.free.pop() {
            Some(place) => {
                self.events[place as usize] = Some(event);
                place
            }
            None => {
                self.events.push(Some(event));
                self.events.len() as u32 - 1
            }
        };
        self.heap.push(Reverse(Ticket { at, planned: self.planned, place }));
    }

    /// The next one and its time.
    pub fn pop(&mut self) -> Option<(u64, T)> {
        let Reverse(Ticket { at, place, .. }) = self.heap.pop()?;
        self.free.push(place);
        Some((at, self.events[place as usize].take()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_first_then_the_order_of_planning() {
        let mut queue = Queue::new();
        let mut seen = Vec::new();
        for (at, event) in [(5, 'c'), (1, 'a'), (5, 'd'), (3, 'b')] {
            queue.push(at, event);
        }
        seen.extend(queue.pop());
        queue.push(5, 'e');
        queue.push(4, 'x');
        seen.extend(std::iter::from_fn(|| queue.pop()));
        assert_eq!(seen, [(1, 'a'), (3, 'b'), (4, 'x'), (5, 'c'), (5, 'd'), (5, 'e')]);
    }
}
