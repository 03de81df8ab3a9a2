//! Whether there is still somebody at the other end of a connection that owes something.
//!
//! Looks are counted, one each second, and not time: a process that was stopped, or whose machine was,
//! has not looked, and to it a sound connection was not silent.

/// Looks in a row without a byte, after which it is asked.
const SILENT: u32 = 10;
/// Looks after the question; if nothing came by then nobody is there.
const GONE: u32 = 5;
/// Servers of gRPC end a connection for a third ping within five minutes in which nothing else was
/// said.
const AGAIN: u32 = 300;
/// A pong on the wire.
const PONG_BYTES: u64 = 17;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// There is nothing to do.
    Steady,
    /// It should be asked; [`Pulse::asked`] if it was.
    Ask,
    /// It was asked and says nothing.
    Gone,
}

/// What is known of one connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pulse {
    heard: u64,
    silent: u32,
    /// How much had been heard when it was asked, and looks since then.
    asked: Option<(u64, u32)>,
}

impl Pulse {
    /// One look; `heard`: bytes that came in all.
    pub fn look(&mut self, heard: u64) -> Beat {
        self.silent = if heard == self.heard { self.silent.saturating_add(1) } else { 0 };
        self.heard = heard;
        if let Some((by_then, looks)) = &mut self.asked {
            *looks += 1;
            if heard == *by_then {
                return if *looks >= GONE { Beat::Gone } else { Beat::Steady };
            }
            if *looks >= AGAIN || heard > *by_then + PONG_BYTES {
                self.asked = None;
            }
        }
        match self.asked.is_none() && self.silent >= SILENT {
            true => Beat::Ask,
            false => Beat::Steady,
        }
    }

    pub fn asked(&mut self) {
        self.asked = Some((self.heard, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes before each look: nothing `N` times, or `+BYTES`. When it is asked and when it is
    /// gone, by the look.
    fn check(script: &str, expected: &str) {
        let (mut pulse, mut heard, mut look) = (Pulse::default(), 0, 0);
        let mut said = Vec::new();
        for word in script.split_whitespace() {
            let looks = match word.strip_prefix('+') {
                Some(bytes) => {
                    heard += bytes.parse::<u64>().unwrap();
                    1
                }
                None => word.parse().unwrap(),
            };
            for _ in 0..looks {
                look += 1;
                match pulse.look(heard) {
                    Beat::Steady => {}
                    Beat::Ask => {
                        pulse.asked();
                        said.push(format!("asked {look}"));
                    }
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
        check("+1 14 +17 9", "asked 11");
        // With nothing but a pong in between it is not asked again for long.
        check("+1 10 +17 298", "asked 11");
        check("+1 10 +17 299", "asked 11, asked 311");
        check("+1 10 +17 299 5", "asked 11, asked 311, gone 316");
        // What comes beside the pong is a sign of life.
        check("+1 10 +18 10", "asked 11, asked 22");
        check("+1 10 +17 20 +9 9", "asked 11");
        check("+1 10 +17 20 +9 10", "asked 11, asked 43");
    }

    /// It can't be asked while another question is on its way.
    #[test]
    fn who_could_not_be_asked_is_asked_at_the_next_look() {
        let mut pulse = Pulse::default();
        let beats: Vec<Beat> = (0..SILENT + 2).map(|_| pulse.look(0)).collect();
        assert_eq!(beats[SILENT as usize - 1..], [Beat::Ask; 3]);
    }
}
