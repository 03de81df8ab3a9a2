//! Where a message's body ends, by RFC 9112 section 6, and the chunked coding of section 7.1.
//!
//! What two parsers could read differently is refused: digits with signs or spaces, bare CR or LF,
//! sizes that don't fit, extensions without end.

/// How a body is delimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
    /// By the end of the connection, or of a stream of HTTP/2.
    End,
}

/// Extensions of all chunks of one body. Nobody uses them for anything but harm.
const EXTENSIONS_MAX: usize = 4 << 10;
/// Of a chunk's size, as many digits as 64 bits have.
const DIGITS_MAX: u8 = 16;
/// Fields after the last chunk.
pub const TRAILERS_MAX: usize = 8 << 10;
const TRAILER_FIELDS_MAX: usize = 64;

/// The body is not what HTTP says it has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// What stands at the beginning of the bytes that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many bytes of the body. [`Decoder::took`] says how many were taken.
    Data(usize),
    /// So many bytes that only delimit; they are to be dropped.
    Drop(usize),
    /// The fields after the last chunk, so many bytes with the empty line.
    Trailers(usize),
    /// Nothing can be said before more comes.
    More,
    /// The body is over; what follows is another message's.
    Over,
}

/// Reads one body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoder {
    state: State,
    extensions: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Left(u64),
    Rest,
    Size { value: u64, digits: u8 },
    Extension { value: u64, at: Extension },
    SizeLf { value: u64 },
    Chunk(u64),
    ChunkCr,
    ChunkLf,
    Trailers,
    Over,
}

/// Where in `;NAME` or `;NAME=VALUE` the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    NameBegins,
    Name,
    ValueBegins,
    Value,
    Quoted,
    Escaped,
    Closed,
}

impl Extension {
    /// After that byte; `None`: it may not stand there.
    fn next(self, byte: u8) -> Option<Extension> {
        let is_text = matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
        let is_token =
            is_text && (byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
        match (self, byte) {
            (Extension::Quoted, b'"') => Some(Extension::Closed),
            (Extension::Quoted, b'\\') => Some(Extension::Escaped),
            (Extension::Quoted | Extension::Escaped, _) => is_text.then_some(Extension::Quoted),
            (Extension::Name | Extension::Value | Extension::Closed, b';') => {
                Some(Extension::NameBegins)
            }
            (Extension::Name, b'=') => Some(Extension::ValueBegins),
            (Extension::ValueBegins, b'"') => Some(Extension::Quoted),
            (Extension::NameBegins | Extension::Name, _) => is_token.then_some(Extension::Name),
            (Extension::ValueBegins | Extension::Value, _) => is_token.then_some(Extension::Value),
            (Extension::Closed, _) => None,
        }
    }

    /// Whether the line may end here.
    fn may_end(self) -> bool {
        match self {
            Extension::Name | Extension::Value | Extension::Closed => true,
            Extension::NameBegins
            | Extension::ValueBegins
            | Extension::Quoted
            | Extension::Escaped => false,
        }
    }
}

impl Decoder {
    pub fn new(framing: Framing) -> Decoder {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Over,
            Framing::Length(length) => State::Left(length),
            Framing::Chunked => State::Size { value: 0, digits: 0 },
            Framing::End => State::Rest,
        };
        Decoder { state, extensions: 0 }
    }

    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// How many bytes are still to come, where that is known.
    pub fn left(&self) -> Option<u64> {
        match self.state {
            State::Left(left) => Some(left),
            State::Over => Some(0),
            _ => None,
        }
    }

    /// What the bytes begin with.
    pub fn step(&mut self, data: &[u8]) -> Result<Step, Malformed> {
        match self.state {
            State::Over => Ok(Step::Over),
            _ if data.is_empty() => Ok(Step::More),
            State::Left(left) | State::Chunk(left) => {
                Ok(Step::Data(data.len().min(usize::try_from(left).unwrap_or(usize::MAX))))
            }
            State::Rest => Ok(Step::Data(data.len())),
            State::Trailers => self.trailers(data),
            State::Size { .. }
            | State::Extension { .. }
            | State::SizeLf { .. }
            | State::ChunkCr
            | State::ChunkLf => self.delimiter(data),
        }
    }

    /// So many bytes of the last [`Step::Data`] were taken.
    pub fn took(&mut self, count: usize) {
        let count = count as u64;
        self.state = match self.state {
            State::Left(left) if left == count => State::Over,
            State::Left(left) => State::Left(left - count),
            State::Chunk(left) if left == count => State::ChunkCr,
            State::Chunk(left) => State::Chunk(left - count),
            other => other,
        };
    }

    /// Reads on over what is there, for what is wrong with it.
    pub fn look(mut self, mut data: &[u8]) -> Result<(), Malformed> {
        loop {
            let count = match self.step(data)? {
                Step::Data(count) => {
                    self.took(count);
                    count
                }
                Step::Drop(count) => count,
                Step::Trailers(_) | Step::More | Step::Over => return Ok(()),
            };
            data = &data[count..];
        }
    }

    /// The connection ended. Only one that ends by that has said everything.
    pub fn end(&mut self) -> Result<(), Malformed> {
        match self.state {
            State::Rest | State::Over => {
                self.state = State::Over;
                Ok(())
            }
            _ => Err(Malformed("the body ends before its end")),
        }
    }

    fn delimiter(&mut self, data: &[u8]) -> Result<Step, Malformed> {
        for (index, byte) in data.iter().enumerate() {
            self.state = match (self.state, byte) {
                (State::ChunkCr, b'\r') => State::ChunkLf,
                (State::ChunkLf, b'\n') => State::Size { value: 0, digits: 0 },
                (State::ChunkCr | State::ChunkLf, _) => {
                    return Err(Malformed("a chunk does not end where its size says"));
                }
                (State::Size { value, digits: 1.. }, b'\r') => State::SizeLf { value },
                (State::Size { value, digits: 1.. }, b';') => {
                    State::Extension { value, at: Extension::NameBegins }
                }
                (State::Size { value, digits }, _) => {
                    let digit = char::from(*byte).to_digit(16).filter(|_| digits < DIGITS_MAX);
                    let digit = digit.ok_or(Malformed("a chunk's size is no number"))?;
                    State::Size { value: value << 4 | u64::from(digit), digits: digits + 1 }
                }
                (State::Extension { value, at }, b'\r') if at.may_end() => State::SizeLf { value },
                (State::Extension { value, at }, byte) => {
                    self.extensions += 1;
                    if self.extensions > EXTENSIONS_MAX {
                        return Err(Malformed("the extensions of chunks have no end"));
                    }
                    let at = at.next(*byte).ok_or(Malformed("a chunk's extension is none"))?;
                    State::Extension { value, at }
                }
                (State::SizeLf { value: 0 }, b'\n') => State::Trailers,
                (State::SizeLf { value }, b'\n') => State::Chunk(value),
                (State::SizeLf { .. }, _) => {
                    return Err(Malformed("a line that ends with a carriage return alone"));
                }
                (State::Left(_) | State::Rest | State::Chunk(_), _)
                | (State::Trailers | State::Over, _) => return Ok(Step::Drop(index)),
            };
            if matches!(self.state, State::Chunk(_) | State::Trailers) {
                return Ok(Step::Drop(index + 1));
            }
        }
        Ok(Step::Drop(data.len()))
    }

    fn trailers(&mut self, data: &[u8]) -> Result<Step, Malformed> {
        let length = match data {
            [b'\r', b'\n', ..] => 2,
            _ => match memchr::memmem::find(data, b"\r\n\r\n") {
                Some(at) if at + 4 <= TRAILERS_MAX => at + 4,
                // Who waits for the end of what has none waits for long.
                None if !lines_are_whole(data.strip_suffix(b"\r").unwrap_or(data)) => {
                    return Err(Malformed("a line that ends without both CR and LF"));
                }
                None if data.len() < TRAILERS_MAX => return Ok(Step::More),
                _ => return Err(Malformed("too many fields after the body")),
            },
        };
        if !lines_are_whole(&data[..length]) {
            return Err(Malformed("a line that ends without both CR and LF"));
        }
        let mut fields = [httparse::EMPTY_HEADER; TRAILER_FIELDS_MAX];
        match httparse::parse_headers(&data[..length], &mut fields) {
            Ok(httparse::Status::Complete(_)) => {}
            _ => return Err(Malformed("the fields after the body are malformed")),
        }
        self.state = State::Over;
        Ok(Step::Trailers(length))
    }
}

/// Whether each line ends with CR LF and there is neither without the other. The parser takes a bare
/// LF for an end, others don't.
pub fn lines_are_whole(text: &[u8]) -> bool {
    let pairs = text.iter().zip(text.get(1..).unwrap_or_default());
    // Without a way out in between, so that many bytes are compared at once.
    let whole =
        pairs.fold(true, |whole, (one, next)| whole & ((*one == b'\r') == (*next == b'\n')));
    whole && text.first() != Some(&b'\n') && text.last() != Some(&b'\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of a body as it comes in pieces of a size: data, rest, or why not.
    fn read(framing: Framing, text: &[u8], piece: usize) -> Result<(String, String), &'static str> {
        let mut decoder = Decoder::new(framing);
        let (mut data, mut held, mut rest) = (Vec::new(), Vec::new(), text);
        loop {
            match decoder.step(&held).map_err(|it| it.0)? {
                Step::Data(count) => {
                    data.extend(held.drain(..count));
                    decoder.took(count);
                }
                Step::Drop(count) => drop(held.drain(..count)),
                Step::Trailers(count) => {
                    data.push(b'|');
                    data.extend_from_slice(&held[..count - 2]);
                    held.drain(..count);
                }
                Step::More if rest.is_empty() => {
                    decoder.end().map_err(|it| it.0)?;
                }
                Step::More => {
                    let (now, later) = rest.split_at(piece.min(rest.len()));
                    held.extend_from_slice(now);
                    rest = later;
                }
                Step::Over => {
                    held.extend_from_slice(rest);
                    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
                    return Ok((text(data), text(held)));
                }
            }
        }
    }

    #[test]
    fn bodies_end_where_they_say() {
        let fine = |data: &str, rest: &str| Ok((data.to_string(), rest.to_string()));
        type Case<'a> = (Framing, &'a str, Result<(String, String), &'a str>);
        #[rustfmt::skip]
        let cases: &[Case<'_>] = &[
            (Framing::None,      "GET",                                 fine("", "GET")),
            (Framing::Length(3), "abcGET",                              fine("abc", "GET")),
            (Framing::Length(9), "abc",                                 Err("the body ends before its end")),
            (Framing::End,       "abc",                                 fine("abc", "")),
            (Framing::Chunked,   "3\r\nabc\r\n0\r\n\r\nGET",            fine("abc|", "GET")),
            (Framing::Chunked,   "A\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n", fine("0123456789x|", "")),
            (Framing::Chunked,   "003;a=\"b c\"\r\nabc\r\n0;x\r\n\r\n", fine("abc|", "")),
            (Framing::Chunked,   "1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\nG", fine("x|A: b\r\nC: d\r\n", "G")),
            (Framing::Chunked,   "3\r\nabc",                            Err("the body ends before its end")),
            (Framing::Chunked,   "3\nabc\r\n0\r\n\r\n",                 Err("a chunk's size is no number")),
            (Framing::Chunked,   "3\r\nabc\n0\r\n\r\n",                 Err("a chunk does not end where its size says")),
            (Framing::Chunked,   "3\r\nabcd\r\n0\r\n\r\n",              Err("a chunk does not end where its size says")),
            (Framing::Chunked,   "\r\n",                                Err("a chunk's size is no number")),
            (Framing::Chunked,   ";a\r\n",                              Err("a chunk's size is no number")),
            (Framing::Chunked,   "+3\r\n",                              Err("a chunk's size is no number")),
            (Framing::Chunked,   "0x3\r\n",                             Err("a chunk's size is no number")),
            (Framing::Chunked,   "3 \r\n",                              Err("a chunk's size is no number")),
            (Framing::Chunked,   " 3\r\n",                              Err("a chunk's size is no number")),
            (Framing::Chunked,   "00000000000000003\r\n",               Err("a chunk's size is no number")),
            (Framing::Chunked,   "3\rX",                                Err("a line that ends with a carriage return alone")),
            (Framing::Chunked,   "3;a\nb\r\n",                          Err("a chunk's extension is none")),
            (Framing::Chunked,   "3;\r\n",                              Err("a chunk's extension is none")),
            (Framing::Chunked,   "3;a=\"b\r\n",                         Err("a chunk's extension is none")),
            (Framing::Chunked,   "0\r\nA: b\n\r\n\r\n",                 Err("a line that ends without both CR and LF")),
            (Framing::Chunked,   "0\r\n A: b\r\n\r\n",                  Err("the fields after the body are malformed")),
            (Framing::Chunked,   "0\r\nA : b\r\n\r\n",                  Err("the fields after the body are malformed")),
        ];
        for (framing, text, expected) in cases {
            for piece in [1, 2, 3, 7, 1_000] {
                let got = read(*framing, text.as_bytes(), piece);
                assert_eq!(got, *expected, "{text:?} in pieces of {piece}");
            }
        }
    }

    #[test]
    fn nothing_goes_on_without_end() {
        let long = format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(EXTENSIONS_MAX + 1));
        assert_eq!(
            read(Framing::Chunked, long.as_bytes(), 999),
            Err("the extensions of chunks have no end")
        );
        let many = "1;abcdefg\r\nx\r\n".repeat(1_000);
        assert_eq!(
            read(Framing::Chunked, many.as_bytes(), 999),
            Err("the extensions of chunks have no end")
        );
        let long = format!("0\r\nA: {}\r\n\r\n", "a".repeat(TRAILERS_MAX));
        assert_eq!(
            read(Framing::Chunked, long.as_bytes(), 999),
            Err("too many fields after the body")
        );
    }
}
