//! What a client of HTTP/2 may have a gateway do for nothing.
//!
//! Frames that are no requests and carry nothing cost points, what is sent to the client gives some
//! back: whoever asks and is answered may ping, widen windows and give up streams as any browser and any
//! gRPC client does. What is left over drains away with time, and too much at once ends the connection.
//! Floods of header blocks, of empty and of small data the h2 crate bounds by itself.

/// Points at once: a thousand streams given up, as nghttp2 allows.
const MOST: u32 = 10_000;
/// So many drain away in a second: 100 pings or streams given up, three times what nghttp2 allows.
const PER_SECOND: u64 = 1_000;

/// Kinds of frames: RFC 9113 section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// What each connection of HTTP/2 begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD: usize = 9;

/// Finds the heads of frames in bytes that come in pieces.
#[derive(Debug, Clone, Default)]
struct Frames {
    head: [u8; HEAD],
    /// Of the head, so many bytes are there.
    have: usize,
    /// Before the next head.
    skip: usize,
}

impl Frames {
    /// Kind and length of each frame that begins.
    fn each(&mut self, mut bytes: &[u8], mut then: impl FnMut(u8, usize)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let count = (HEAD - self.have).min(bytes.len());
            self.head[self.have..][..count].copy_from_slice(&bytes[..count]);
            self.have += count;
            bytes = &bytes[count..];
            if self.have < HEAD {
                return;
            }
            let [a, b, c, kind, ..] = self.head;
            self.have = 0;
            self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
            then(kind, self.skip);
        }
    }
}

/// What one connection has had done for nothing.
#[derive(Debug, Clone)]
pub struct Score {
    asked: Frames,
    said: Frames,
    points: u32,
    drained_at_ms: u64,
}

impl Score {
    /// Of a connection that begins, before its preface.
    pub fn new(now_ms: u64) -> Score {
        let asked = Frames { skip: PREFACE.len(), ..Frames::default() };
        Score { asked, said: Frames::default(), points: 0, drained_at_ms: now_ms }
    }

    /// The client said that. `true`: there may be too much; then [`Score::is_too_much`] tells.
    pub fn asked(&mut self, bytes: &[u8]) -> bool {
        let Score { asked, points, .. } = self;
        asked.each(bytes, |kind, length| *points = points.saturating_add(cost(kind, length)));
        self.points > MOST
    }

    /// The client was told that.
    pub fn said(&mut self, bytes: &[u8]) {
        let Score { said, points, .. } = self;
        said.each(bytes, |kind, length| *points = points.saturating_sub(worth(kind, length)));
    }

    pub fn is_too_much(&mut self, now_ms: u64) -> bool {
        let drained = now_ms.saturating_sub(self.drained_at_ms).saturating_mul(PER_SECOND) / 1000;
        self.drained_at_ms = now_ms;
        self.points = self.points.saturating_sub(u32::try_from(drained).unwrap_or(u32::MAX));
        self.points > MOST
    }
}

fn cost(kind: u8, length: usize) -> u32 {
    match kind {
        // A request, which is counted elsewhere, or what belongs to one.
        HEADERS | GOAWAY => 0,
        DATA if length > 0 => 0,
        // Each window is announced to be wider: after each few kB by Go, twice.
        WINDOW_UPDATE => 6,
        // gRPC pings once for what it gets within a round trip, to find out how wide a window should be.
        RST_STREAM | PING | CONTINUATION | DATA => 10,
        // Each is confirmed, and all streams are adjusted.
        SETTINGS => 20,
        // PRIORITY, and what isn't known: it is only read.
        _ => 5,
    }
}

/// What a frame to the client gives back.
fn worth(kind: u8, length: usize) -> u32 {
    match kind {
        // An answer, or its end.
        HEADERS => 20,
        // At least what the ping to it costs.
        DATA if length > 0 => 10 + u32::try_from(length / 128).unwrap_or(u32::MAX),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::chance::Chance;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let [_, a, b, c] = (length as u32).to_be_bytes();
        let mut frame = vec![a, b, c, kind, 0, 0, 0, 0, 1];
        frame.resize(HEAD + length, 0xAB);
        frame
    }

    /// Rounds of what one says and is told, so many in a second; after how many it is too much.
    fn rounds(asked: &[(u8, usize)], said: &[(u8, usize)], per_second: u64) -> Option<u64> {
        let mut score = Score::new(7_000);
        score.asked(PREFACE);
        let of = |frames: &[(u8, usize)]| -> Vec<u8> {
            frames.iter().flat_map(|(kind, length)| frame(*kind, *length)).collect()
        };
        let (asked, said) = (of(asked), of(said));
        (1..=50_000).find(|round| {
            let too_much =
                score.asked(&asked) && score.is_too_much(7_000 + round * 1000 / per_second);
            score.said(&said);
            too_much
        })
    }

    #[test]
    fn floods_end_and_work_goes_on() {
        let (head, data, reset) = ((HEADERS, 40), (DATA, 1024), (RST_STREAM, 4));
        let (ping, wider, settings) = ((PING, 8), (WINDOW_UPDATE, 4), (SETTINGS, 6));
        type Case<'c> = (&'c str, &'c [(u8, usize)], &'c [(u8, usize)], u64, Option<u64>);
        #[rustfmt::skip]
        let cases: &[Case<'_>] = &[
            ("rapid reset",               &[head, reset],              &[],                          10_000, Some(1011)),
            ("a ping flood",              &[ping],                     &[ping],                      10_000, Some(1011)),
            ("a settings flood",          &[settings],                 &[(SETTINGS, 0)],             10_000, Some(503)),
            ("a window flood",            &[wider],                    &[],                          10_000, Some(1695)),
            ("a priority flood",          &[(2, 5)],                   &[],                          10_000, Some(2041)),
            ("empty data",                &[(DATA, 0)],                &[],                          10_000, Some(1011)),
            ("frames nobody knows",       &[(0xBE, 100)],              &[],                          10_000, Some(2041)),
            ("slowly",                    &[head, reset],              &[],                          100,    None),
            ("requests",                  &[head],                     &[head, data],                50_000, None),
            ("uploads",                   &[head, data, data],         &[wider, head, data],         50_000, None),
            ("downloads of Go",           &[wider; 8],                 &[(DATA, 16_384)],            50_000, None),
            ("given up when it is there", &[head, reset],              &[head, data],                50_000, None),
            ("gRPC, streams in dialog",   &[(DATA, 20), ping],         &[(DATA, 20), ping],          50_000, None),
            ("gRPC, calls",               &[head, (DATA, 9), wider, ping], &[head, (DATA, 9), head], 50_000, None),
        ];
        for (what, asked, said, per_second, expected) in cases {
            assert_eq!(rounds(asked, said, *per_second), *expected, "{what}");
        }
    }

    /// Points are the same however the bytes come, and what is in frames is none.
    #[test]
    fn frames_are_found_in_any_pieces() {
        let mut chance = Chance(11);
        let mut bytes = PREFACE.to_vec();
        let mut due = 0;
        for _ in 0..500 {
            let (kind, length) = (chance.below(12) as u8, chance.below(40));
            bytes.extend(frame(kind, length));
            due += cost(kind, length);
        }
        for _ in 0..100 {
            let mut score = Score::new(0);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (piece, left) = rest.split_at(1 + chance.below(rest.len().min(60)));
                score.asked(piece);
                rest = left;
            }
            assert_eq!(score.points, due);
        }
    }
}
