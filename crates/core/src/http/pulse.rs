//! Whether there is still somebody at the other end of a connection that owes something.
//!
//! Looks are counted, one each second, and not time: a process that was stopped, or whose machine was,
//! has not looked, and to it a sound connection was not silent.

/// Looks in a row without a byte, after which it is asked.
const SILENT: u32 = 10;
/// Further ones after the question, after which nobody is there.
const GONE: u32 = 5;
/// Looks between two questions, unless it said something of an answer in between. Servers of gRPC hold
/// against a client each ping that comes within five minutes of the last one, end its connection for
/// the third, and forget them when they send a head or data: asked like this, none comes too early.
const AGAIN: u32 = 300;
/// An answer to a question on the wire.
const PONG_BYTES: u64 = 17;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// There is nothing to do.
    Steady,
    /// It is to be asked, and counts as asked from now on.
    Ask,
    /// It was asked and says nothing.
    Gone,
}

/// What came on a connection in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    pub bytes: u64,
    /// Heads and pieces of answers to requests, when they were taken: that may be long after they came.
    pub said: u64,
    /// Answers to questions.
    pub pongs: u64,
}

/// What is known of one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulse {
    bytes: u64,
    silent: u32,
    /// What had come when it was asked, and looks since then.
    asked: Option<(Heard, u32)>,
}

impl Pulse {
    pub fn look(&mut self, heard: Heard) -> Beat {
        self.silent = if heard.bytes == self.bytes { self.silent.saturating_add(1) } else { 0 };
        self.bytes = heard.bytes;
        if let Some((by_then, looks)) = &mut self.asked {
            *looks += 1;
            // The question stays open until it is answered: another one can't be put meanwhile.
            if heard.pongs == by_then.pongs {
                let gone = *looks >= GONE && self.silent >= SILENT + GONE;
                return if gone { Beat::Gone } else { Beat::Steady };
            }
            let came = heard.bytes > by_then.bytes + PONG_BYTES;
            if *looks >= AGAIN || came && heard.said > by_then.said {
                self.asked = None;
            }
        }
        if self.asked.is_some() || self.silent < SILENT {
            return Beat::Steady;
        }
        self.asked = Some((heard, 0));
        Beat::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes before each look: nothing `N` times, `+BYTES`, a `pong`, or something of an answer that
    /// is `said` now, or is `taken` after it came. When it is asked and when it is gone, by the look.
    fn check(script: &str, expected: &str) {
        let (mut pulse, mut heard, mut look) = (Pulse::default(), Heard::default(), 0);
        let mut said = Vec::new();
        for word in script.split_whitespace() {
            let (bytes, looks) = match word {
                "pong" => (PONG_BYTES, 1),
                "said" => (9, 1),
                "taken" => (0, 1),
                _ if word.starts_with('+') => (word.parse().unwrap(), 1),
                _ => (0, word.parse().unwrap()),
            };
            heard.bytes += bytes;
            heard.pongs += u64::from(word == "pong");
            heard.said += u64::from(matches!(word, "said" | "taken"));
            for _ in 0..looks {
                look += 1;
                match pulse.look(heard) {
                    Beat::Steady => {}
                    Beat::Ask => said.push(format!("asked {look}")),
                    Beat::Gone => said.push(format!("gone {look}")),
                }
            }
        }
        assert_eq!(said.join(", "), expected, "{script}");
    }

    #[test]
    fn who_is_silent_is_asked_and_gone_if_nothing_comes() {
        check("+1 9", "");
        check("+1 10", "asked 11");
        check("+1 14", "asked 11");
        check("+1 15", "asked 11, gone 16");
        check("+1 9 +1 9 +1 9", "");
        check("+1 14 pong 9", "asked 11");
        // With nothing of an answer in between it is not asked again for long.
        check("+1 10 pong 298", "asked 11");
        check("+1 10 pong 299", "asked 11, asked 311");
        check("+1 10 pong 299 5", "asked 11, asked 311, gone 316");
        check("+1 10 pong 20 +9 50 +1000 9", "asked 11");
        // To who has said something of an answer since then, the count has begun anew.
        check("+1 10 pong said 9", "asked 11");
        check("+1 10 pong said 10", "asked 11, asked 23");
        check("+1 10 said pong 10", "asked 11, asked 23");
        check("+1 10 pong 20 said 10", "asked 11, asked 43");
        check("+1 10 pong 20 taken 10", "asked 11");
    }

    /// Another question can't be put to it, and isn't needed.
    #[test]
    fn a_question_stays_open_until_it_is_answered() {
        check("+1 10 +1 14", "asked 11");
        check("+1 10 +1 15", "asked 11, gone 27");
        check("+1 10 said 15", "asked 11, gone 27");
        check("+1 10 said 14 said 15", "asked 11, gone 42");
        check("+1 10 said 5 pong 9", "asked 11");
        check("+1 10 said 5 pong 10", "asked 11, asked 28");
    }
}
