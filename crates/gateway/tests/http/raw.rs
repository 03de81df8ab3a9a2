//! A client of HTTP/2 that says any frames, also those that no library would.

use super::fixture::PATIENCE;
use super::links::frame;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

/// What an upload begins with.
pub const METHOD: (&str, &str) = (":method", "POST");
pub const SCHEME: (&str, &str) = (":scheme", "http");
pub const AUTHORITY: (&str, &str) = (":authority", "a");
pub const PATH: (&str, &str) = (":path", "/hostile");
pub const POST: &[(&str, &str)] = &[METHOD, SCHEME, AUTHORITY, PATH];
pub const GET: &[(&str, &str)] = &[(":method", "GET"), SCHEME, AUTHORITY, (":path", "/fine")];

/// Fields as literals without a table: RFC 7541 section 6.2.2.
pub fn block<'f>(fields: impl IntoIterator<Item = &'f (&'f str, &'f str)>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

fn text(block: &mut Vec<u8>, text: &str) {
    match u8::try_from(text.len()).ok().filter(|length| *length < 127) {
        Some(length) => block.push(length),
        None => {
            block.push(127);
            let mut left = text.len() - 127;
            while left >= 128 {
                block.push((left % 128) as u8 | 128);
                left /= 128;
            }
            block.push(left as u8);
        }
    }
    block.extend_from_slice(text.as_bytes());
}

/// What came of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Came {
    Answer {
        status: u16,
        body: Vec<u8>,
    },
    Reset(u32),
    /// All of the connection ended, with that code, or without one.
    End(Option<u32>),
}

pub struct Raw {
    pub socket: TcpStream,
}

impl Raw {
    /// Both have agreed; `window`: what may be sent to it on each stream.
    pub fn connect(address: SocketAddr, window: u32) -> Raw {
        let mut raw = Raw { socket: TcpStream::connect(address).unwrap() };
        raw.socket.set_nodelay(true).unwrap();
        raw.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        raw.socket.set_write_timeout(Some(PATIENCE)).unwrap();
        // No table, so that what is read stands for itself.
        let [a, b, c, d] = window.to_be_bytes();
        let settings = [0, 1, 0, 0, 0, 0, 0, 4, a, b, c, d];
        raw.say(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        raw.say(frame(SETTINGS, 0, 0, &settings));
        raw
    }

    /// A gateway that has ended the connection takes no more.
    pub fn say(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.socket.write_all(bytes.as_ref());
    }

    pub fn get(&mut self, stream: u32) -> Came {
        self.say(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(GET)));
        self.until(stream)
    }

    /// Reads until that stream, or the connection, has ended.
    pub fn until(&mut self, stream: u32) -> Came {
        let (mut status, mut body) = (0, Vec::new());
        loop {
            let Some((kind, flags, of, payload)) = self.next() else { return Came::End(None) };
            let code = |at: usize| {
                payload.get(at..at + 4).map(|it| u32::from_be_bytes(it.try_into().unwrap()))
            };
            match kind {
                SETTINGS if flags & ACK == 0 => self.say(frame(SETTINGS, ACK, 0, &[])),
                PING if flags & ACK == 0 => self.say(frame(PING, ACK, 0, &payload)),
                GOAWAY if code(4) != Some(0) => return Came::End(code(4)),
                RST_STREAM if of == stream => return Came::Reset(code(0).unwrap()),
                HEADERS if of == stream && status < 200 => status = status_of(&payload),
                DATA if of == stream => body.extend_from_slice(&payload),
                _ => {}
            }
            if matches!(kind, HEADERS | DATA) && of == stream && flags & END_STREAM != 0 {
                return Came::Answer { status, body };
            }
        }
    }

    /// Kind, flags, stream and payload of the next frame; `None`: the end.
    pub fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.exactly(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.exactly(&mut payload)?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, payload))
    }

    fn exactly(&mut self, room: &mut [u8]) -> Option<()> {
        let read = self.socket.read_exact(room);
        let waited = read.as_ref().is_err_and(|it| it.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!waited, "nothing for {PATIENCE:?}");
        read.ok()
    }
}

/// The first field of an answer's head: a code of the static table, or three digits.
fn status_of(block: &[u8]) -> u16 {
    // What is said of the table's size stands before it.
    let at = block.iter().position(|byte| byte >> 5 != 1).unwrap();
    match block[at..] {
        [byte @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(byte - 0x88)],
        [0x08 | 0x18 | 0x48, 3, a, b, c, ..] => {
            [a, b, c].iter().fold(0, |all, digit| all * 10 + u16::from(digit - b'0'))
        }
        [0x08 | 0x18 | 0x48, length @ 0x82..=0xff, ref rest @ ..] => {
            huffman(&rest[..usize::from(length - 0x80)])
        }
        _ => panic!("no status: {block:?}"),
    }
}

/// Three digits by RFC 7541 appendix B.
fn huffman(bytes: &[u8]) -> u16 {
    let mut bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1));
    let mut take = |count: usize| bits.by_ref().take(count).fold(0, |all, bit| all << 1 | bit);
    (0..3).fold(0, |all, _| {
        let short = take(5);
        let digit = if short < 3 { short } else { (short << 1 | take(1)) - 0x19 + 3 };
        all * 10 + u16::from(digit)
    })
}
