//! Requests that are remembered for longer than the last ones: of each minute of the last hour the
//! first that went wrong, and the slowest. However many there are, no minute is pushed out by another.

use super::ledger::Record;
use std::collections::VecDeque;

const SLOT_MS: u64 = 60_000;
const SLOTS: u64 = 60;
/// Of one slot: half a kilobyte each.
const WRONG: usize = 6;
const SLOW: usize = 3;

#[derive(Default)]
pub struct Sample(VecDeque<Slot>);

struct Slot {
    number: u64,
    wrong: Vec<Record>,
    slow: Vec<Record>,
}

impl Sample {
    pub fn take(&mut self, record: &Record, went_wrong: bool) {
        let number = record.at_ms / SLOT_MS;
        // Of a clock that was ahead, and was set back.
        while self.0.back().is_some_and(|last| last.number > number + 1) {
            self.0.pop_back();
        }
        while self.0.front().is_some_and(|first| first.number + SLOTS <= number) {
            self.0.pop_front();
        }
        if self.0.back().is_none_or(|last| last.number < number) {
            self.0.push_back(Slot { number, wrong: Vec::new(), slow: Vec::new() });
        }
        let Some(slot) = self.0.back_mut() else { return };
        if went_wrong {
            if slot.wrong.len() < WRONG {
                slot.wrong.push(record.clone());
            }
            return;
        }
        if slot.slow.len() < SLOW {
            return slot.slow.push(record.clone());
        }
        let quickest = slot.slow.iter_mut().min_by_key(|it| it.took_us);
        if let Some(quickest) = quickest.filter(|it| it.took_us < record.took_us) {
            quickest.clone_from(record);
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.0.iter().flat_map(|slot| slot.wrong.iter().chain(&slot.slow))
    }
}
