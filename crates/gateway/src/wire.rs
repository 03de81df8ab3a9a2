//! The little of PostgreSQL's protocol that a gateway must understand: the first packet, and how to
//! say no. Everything else passes through as bytes.
//!
//! Source: PostgreSQL documentation, "Message Formats" and "Message Flow", protocol 3.

/// The length and the code that open every connection.
pub const HEAD: usize = 8;
/// The longest first packet that PostgreSQL accepts (MAX_STARTUP_PACKET_LENGTH).
pub const FIRST_PACKET_MAX: usize = 10_000;
/// The longest cancel request: a key of 256 bytes (protocol 3.2). PostgreSQL 15 sends 4.
const CANCEL_MAX: usize = 12 + 256;

const CODE_CANCEL: u32 = 80_877_102;
const CODE_SSL: u32 = 80_877_103;
const CODE_GSS: u32 = 80_877_104;

/// What a client wants, by the first eight bytes it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// Cancel a query of another connection; the whole packet is `length` bytes.
    Cancel { length: usize },
    /// Speak TLS or GSSAPI if the server will.
    Encryption,
    /// A session, or something that only the server can judge.
    Session,
}

/// Reads the first eight bytes of a connection.
pub fn opening(head: [u8; HEAD]) -> Opening {
    let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
    let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    match u32::from_be_bytes([c0, c1, c2, c3]) {
        CODE_CANCEL if (16..=CANCEL_MAX).contains(&length) => Opening::Cancel { length },
        CODE_SSL | CODE_GSS if length == HEAD => Opening::Encryption,
        _ => Opening::Session,
    }
}

/// An ErrorResponse of severity FATAL, as a server sends it before it closes a connection.
pub fn fatal(sqlstate: &str, message: &str, hint: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(64 + message.len() + hint.len());
    for (field, value) in
        [(b'S', "FATAL"), (b'V', "FATAL"), (b'C', sqlstate), (b'M', message), (b'H', hint)]
    {
        body.push(field);
        body.extend_from_slice(value.as_bytes());
        body.push(0);
    }
    body.push(0);
    let mut packet = vec![b'E'];
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&body);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_packet_tells_what_a_client_wants() {
        #[rustfmt::skip]
        let cases = [
            (16,  CODE_CANCEL, Opening::Cancel { length: 16 }),
            (268, CODE_CANCEL, Opening::Cancel { length: 268 }),
            (269, CODE_CANCEL, Opening::Session),
            (12,  CODE_CANCEL, Opening::Session),
            (8,   CODE_SSL,    Opening::Encryption),
            (8,   CODE_GSS,    Opening::Encryption),
            (9,   CODE_SSL,    Opening::Session),
            (80,  196_608,     Opening::Session),
            (0,   0,           Opening::Session),
            (u32::MAX, u32::MAX, Opening::Session),
        ];
        for (length, code, expected) in cases {
            let mut head = [0; HEAD];
            head[..4].copy_from_slice(&u32::to_be_bytes(length));
            head[4..].copy_from_slice(&u32::to_be_bytes(code));
            assert_eq!(opening(head), expected, "length {length} code {code}");
        }
    }

    #[test]
    fn a_refusal_is_a_well_formed_error_response() {
        let packet = fatal("57P03", "no", "wait");
        let text = b"SFATAL\0VFATAL\0C57P03\0Mno\0Hwait\0\0";
        assert_eq!(packet[0], b'E');
        assert_eq!(packet[1..5], (4 + text.len() as u32).to_be_bytes());
        assert_eq!(&packet[5..], text);
    }
}
