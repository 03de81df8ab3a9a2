//! Read buffers. A connection has one only while it has something to say: ten thousand idle ones
//! share what the busy ones left.

use std::cell::RefCell;

/// Holds any head that is taken, and most bodies in one read.
pub const SIZE: usize = 16 << 10;
/// Kept for the next connection; the rest goes back to the allocator.
const KEPT_MAX: usize = 256;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that came in and have not been taken yet.
#[derive(Default)]
pub struct Buf {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buf {
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub fn is_full(&self) -> bool {
        self.end - self.start == SIZE
    }

    /// Takes the first bytes out. An empty buffer goes back to the others.
    pub fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            self.release();
        }
    }

    /// Where the next bytes go; empty only if it is full.
    pub fn room(&mut self) -> &mut [u8] {
        if self.bytes.is_empty() {
            let free = FREE.with_borrow_mut(Vec::pop);
            self.bytes = free.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice());
        } else if self.end == SIZE && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    /// So many bytes were put into [`Buf::room`].
    pub fn filled(&mut self, count: usize) {
        self.end += count;
        if self.start == self.end {
            self.release();
        }
    }

    /// Gives the memory back if there is nothing in it.
    pub fn release(&mut self) {
        if self.start < self.end {
            return;
        }
        (self.start, self.end) = (0, 0);
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() {
            return;
        }
        // The thread may be ending.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT_MAX {
                free.push(bytes);
            }
        });
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.start = self.end;
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_in_comes_out_and_memory_is_kept_only_for_it() {
        let mut buf = Buf::default();
        assert!(buf.is_empty() && buf.data().is_empty());
        let fill = |buf: &mut Buf, byte: u8, count: usize| {
            buf.room()[..count].fill(byte);
            buf.filled(count);
        };
        fill(&mut buf, 1, 10);
        buf.consume(4);
        fill(&mut buf, 2, SIZE - 10);
        assert!(!buf.is_full(), "what was taken out can be filled again");
        fill(&mut buf, 3, 4);
        assert!(buf.is_full() && buf.room().is_empty());
        assert_eq!((buf.data()[5], buf.data()[6], buf.data()[SIZE - 1]), (1, 2, 3));
        buf.consume(SIZE);
        assert!(buf.bytes.is_empty());
        buf.room();
        buf.filled(0);
        assert!(buf.bytes.is_empty(), "nothing came");
    }
}
