//! What gateways tell each other of their clients' requests: no addresses, only hashes.
//!
//! Version, kind, how many limits; then for each limit its hash, how many clients, and for each of them
//! its hash and a number. All numbers are little-endian. Whatever is not just so is refused whole.

/// The only one there is so far. What another one says is not understood, and clients count at each
/// gateway alone until all have the same.
const VERSION: u8 = 1;
const ADMITTED: u8 = 1;
const OWED: u8 = 2;

/// Clients in one message.
pub const KEYS_MAX: usize = 4096;
/// Limits in one message.
pub const LIMITS_MAX: usize = 1024;
/// The longest message.
pub const LENGTH_MAX: usize = 4 + LIMITS_MAX * 10 + KEYS_MAX * 16;

/// Of one limit, by key, ascending.
pub type Section<T> = (u64, Vec<(u64, T)>);

/// By limit, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// So many requests since the last such word.
    Admitted(Vec<Section<u16>>),
    /// So many nanoseconds: to who begins.
    Owed(Vec<Section<u64>>),
}

/// Why a message is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadWord {
    #[error("it is of another version")]
    Version,
    #[error("it is too long")]
    Long,
    #[error("it is malformed")]
    Malformed,
}

impl Word {
    pub fn write(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        match self {
            Word::Admitted(sections) => {
                out.push(ADMITTED);
                write(&mut out, sections, |it| it.to_le_bytes());
            }
            Word::Owed(sections) => {
                out.push(OWED);
                write(&mut out, sections, |it| it.to_le_bytes());
            }
        }
        out
    }

    pub fn read(message: &[u8]) -> Result<Word, BadWord> {
        if message.len() > LENGTH_MAX {
            return Err(BadWord::Long);
        }
        let mut rest = message;
        let [version] = take(&mut rest)?;
        if version != VERSION {
            return Err(BadWord::Version);
        }
        match take(&mut rest)? {
            [ADMITTED] => read(rest, u16::from_le_bytes).map(Word::Admitted),
            [OWED] => read(rest, u64::from_le_bytes).map(Word::Owed),
            [_] => Err(BadWord::Malformed),
        }
    }
}

fn write<T: Copy, const N: usize>(
    out: &mut Vec<u8>,
    sections: &[Section<T>],
    bytes: impl Fn(T) -> [u8; N],
) {
    debug_assert!(sections.len() <= LIMITS_MAX, "whoever tells bounds it");
    out.extend_from_slice(&(sections.len() as u16).to_le_bytes());
    for (limit, clients) in sections {
        debug_assert!(clients.len() <= KEYS_MAX, "and this");
        out.extend_from_slice(&limit.to_le_bytes());
        out.extend_from_slice(&(clients.len() as u16).to_le_bytes());
        for (key, number) in clients {
            out.extend_from_slice(&key.to_le_bytes());
            out.extend_from_slice(&bytes(*number));
        }
    }
}

fn read<T: Copy + Default + PartialEq, const N: usize>(
    mut rest: &[u8],
    number: impl Fn([u8; N]) -> T,
) -> Result<Vec<Section<T>>, BadWord> {
    let (mut sections, mut last_limit, mut left) = (Vec::new(), None, KEYS_MAX);
    let limits = usize::from(u16::from_le_bytes(take(&mut rest)?));
    if limits > LIMITS_MAX {
        return Err(BadWord::Malformed);
    }
    for _ in 0..limits {
        let limit = u64::from_le_bytes(take(&mut rest)?);
        let count = usize::from(u16::from_le_bytes(take(&mut rest)?));
        let in_order = last_limit.is_none_or(|last| last < limit);
        if !in_order || count == 0 || count > left {
            return Err(BadWord::Malformed);
        }
        (last_limit, left) = (Some(limit), left - count);
        let (mut clients, mut last_key) = (Vec::with_capacity(count), None);
        for _ in 0..count {
            let key = u64::from_le_bytes(take(&mut rest)?);
            let number = number(take(&mut rest)?);
            // Twice the same could be counted twice, nothing is not worth a word.
            if last_key.is_some_and(|last| last >= key) || number == T::default() {
                return Err(BadWord::Malformed);
            }
            last_key = Some(key);
            clients.push((key, number));
        }
        sections.push((limit, clients));
    }
    match rest {
        [] => Ok(sections),
        [..] => Err(BadWord::Malformed),
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], BadWord> {
    let (first, left) = rest.split_first_chunk().ok_or(BadWord::Malformed)?;
    *rest = left;
    Ok(*first)
}
