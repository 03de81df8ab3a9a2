//! Records of the write-ahead log, read from segment files that no server has any more, as PostgreSQL
//! 15 lays them out (`xlogrecord.h`, `xlog_internal.h`). What isn't exactly so ends the log.

use everhold_core::ids::{Lsn, Tli};
use everhold_core::page::PAGE;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Of a page of the log: the version of its form.
const MAGIC_15: u16 = 0xD110;
pub const SHORT_HEADER: u64 = 24;
pub const LONG_HEADER: u64 = 40;
const LONG: u16 = 0x0002;
pub const RECORD_HEADER: usize = 24;
/// PostgreSQL's own bound is 1 GB; a record of a row is far below this.
const RECORD_BYTES_MAX: usize = 256 << 20;

pub const XLOG: u8 = 0;
pub const XACT: u8 = 1;
pub const HEAP2: u8 = 9;
pub const HEAP: u8 = 10;
const SWITCH: u8 = 0x40;

/// A file of a relation, by the numbers the log knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Relation {
    pub tablespace: u32,
    pub database: u32,
    pub file: u32,
}

/// A page that a record is about.
#[derive(Clone, Debug)]
pub struct Block {
    pub relation: Relation,
    /// 0: the relation's main file.
    pub fork: u8,
    pub number: u32,
    /// The whole page as it is after the record.
    pub image: Option<Image>,
    pub data: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Image {
    Page(Vec<u8>),
    /// Compressed by something that isn't read here.
    Unread,
}

#[derive(Clone, Debug)]
pub struct Record {
    pub at: Lsn,
    pub end: Lsn,
    pub xid: u32,
    pub manager: u8,
    pub info: u8,
    pub blocks: Vec<Block>,
    pub main: Vec<u8>,
}

/// The records of one timeline, one after the other.
pub struct Records {
    dir: PathBuf,
    tli: Tli,
    segment_bytes: u64,
    /// The segment at hand, and the page of it: a segment may be a gigabyte.
    segment: Option<(u64, fs::File)>,
    page: Option<(u64, Vec<u8>)>,
    next: u64,
}

impl Records {
    /// From a place where a record begins.
    pub fn from(dir: &Path, tli: Tli, segment_bytes: u64, begin: Lsn) -> Records {
        Records {
            dir: dir.to_path_buf(),
            tli,
            segment_bytes,
            segment: None,
            page: None,
            next: begin.0,
        }
    }

    /// `None`: the log ends here. An error is the disk's.
    pub fn next(&mut self) -> io::Result<Option<Record>> {
        let Some(at) = self.begin_of_record(self.next)? else { return Ok(None) };
        let mut place = at;
        let Some(length) = self.take(&mut place, 4)? else { return Ok(None) };
        let length = u32_at(&length, 0).unwrap_or(0) as usize;
        if !(RECORD_HEADER..=RECORD_BYTES_MAX).contains(&length) {
            return Ok(None);
        }
        let mut place = at;
        let Some(bytes) = self.take(&mut place, length)? else { return Ok(None) };
        if checksum(&bytes) != u32_at(&bytes, 20) {
            return Ok(None);
        }
        let Some(mut record) = parse(&bytes) else { return Ok(None) };
        (record.at, record.end) = (Lsn(at), Lsn(place.next_multiple_of(8)));
        let switches = record.manager == XLOG && record.info & 0xF0 == SWITCH;
        self.next = match switches {
            // The rest of the segment is empty.
            true => (at / self.segment_bytes + 1) * self.segment_bytes,
            false => record.end.0,
        };
        Ok(Some(record))
    }

    /// Behind the header of a page, and aligned.
    fn begin_of_record(&mut self, at: u64) -> io::Result<Option<u64>> {
        let at = at.next_multiple_of(8);
        if !at.is_multiple_of(PAGE as u64) {
            return Ok(Some(at));
        }
        Ok(self.header(at)?.map(|header| at + header))
    }

    /// The length of the header of the page that begins at `at`; `None`: it is none of this log.
    fn header(&mut self, at: u64) -> io::Result<Option<u64>> {
        let tli = self.tli;
        let Some(page) = self.bytes(at, SHORT_HEADER as usize)? else { return Ok(None) };
        let magic = u16_at(page, 0);
        let (own_tli, address) = (u32_at(page, 4), u64_at(page, 8));
        let long = u16_at(page, 2).is_some_and(|info| info & LONG != 0);
        // The first pages of a timeline are copies of its parent's.
        let known = own_tli.is_some_and(|own| own <= tli);
        let ours = magic == Some(MAGIC_15) && known && address == Some(at);
        Ok(ours.then_some(if long { LONG_HEADER } else { SHORT_HEADER }))
    }

    /// So many bytes of the log from `place` on, headers of pages left out.
    fn take(&mut self, place: &mut u64, mut count: usize) -> io::Result<Option<Vec<u8>>> {
        let mut taken = Vec::new();
        while count > 0 {
            if place.is_multiple_of(PAGE as u64) {
                match self.header(*place)? {
                    Some(header) => *place += header,
                    None => return Ok(None),
                }
            }
            let room = PAGE - (*place % PAGE as u64) as usize;
            let part = room.min(count);
            let Some(bytes) = self.bytes(*place, part)? else { return Ok(None) };
            taken.extend_from_slice(bytes);
            *place += part as u64;
            count -= part;
        }
        Ok(Some(taken))
    }

    /// Bytes of one page.
    fn bytes(&mut self, at: u64, count: usize) -> io::Result<Option<&[u8]>> {
        let begin = at - at % PAGE as u64;
        if self.page.as_ref().is_none_or(|(known, _)| *known != begin) {
            let Some(content) = self.read_page(begin)? else { return Ok(None) };
            self.page = Some((begin, content));
        }
        let from = (at - begin) as usize;
        Ok(self.page.as_ref().and_then(|(_, content)| content.get(from..from + count)))
    }

    fn read_page(&mut self, begin: u64) -> io::Result<Option<Vec<u8>>> {
        let number = begin / self.segment_bytes;
        let file = match self.segment.take() {
            Some((known, file)) if known == number => file,
            _ => {
                let per_id = 0x1_0000_0000 / self.segment_bytes;
                let (id, rest) = (number / per_id, number % per_id);
                let name = format!("{:08X}{id:08X}{rest:08X}", self.tli);
                match fs::File::open(self.dir.join(name)) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
        };
        let mut content = vec![0; PAGE];
        let read = file.read_exact_at(&mut content, begin % self.segment_bytes);
        self.segment = Some((number, file));
        match read {
            Ok(()) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// CRC-32C of what follows the header, then of the header before the checksum itself.
pub fn checksum(record: &[u8]) -> Option<u32> {
    let (body, header) = (record.get(RECORD_HEADER..)?, record.get(..20)?);
    Some(crc(&[body, header]))
}

/// What each byte does to a CRC-32C.
static CASTAGNOLI: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & 0u32.wrapping_sub(crc & 1));
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

pub fn crc(parts: &[&[u8]]) -> u32 {
    let step =
        |crc: u32, byte: &u8| (crc >> 8) ^ CASTAGNOLI[usize::from(crc.to_le_bytes()[0] ^ byte)];
    !parts.iter().copied().flatten().fold(u32::MAX, step)
}

/// Bytes that are eaten from the front.
struct Eater<'a>(&'a [u8]);

impl<'a> Eater<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Option<u16> {
        u16_at(self.take(2)?, 0)
    }

    fn u32(&mut self) -> Option<u32> {
        u32_at(self.take(4)?, 0)
    }
}

/// What is known of an image before its bytes come.
struct ImageHead {
    length: usize,
    hole_offset: usize,
    hole_length: usize,
    info: u8,
}

fn parse(record: &[u8]) -> Option<Record> {
    let mut from = Eater(record.get(RECORD_HEADER..)?);
    let mut heads: Vec<(Block, Option<ImageHead>, usize)> = Vec::new();
    let mut main = 0;
    let mut bodies = 0;
    while from.0.len() > bodies + main {
        let id = from.u8()?;
        match id {
            255 => main = from.u8()? as usize,
            254 => main = from.u32()? as usize,
            253 => drop(from.u16()?),
            252 => drop(from.u32()?),
            0..=32 => {
                let flags = from.u8()?;
                let data = from.u16()? as usize;
                let image = if flags & 0x10 != 0 { Some(image_head(&mut from)?) } else { None };
                let relation = match (flags & 0x80 != 0, heads.last()) {
                    (true, Some((before, ..))) => before.relation,
                    (true, None) => return None,
                    (false, _) => Relation {
                        tablespace: from.u32()?,
                        database: from.u32()?,
                        file: from.u32()?,
                    },
                };
                let number = from.u32()?;
                bodies += data + image.as_ref().map_or(0, |image| image.length);
                let fork = flags & 0x0F;
                let block = Block { relation, fork, number, image: None, data: Vec::new() };
                heads.push((block, image, data));
            }
            _ => return None,
        }
    }
    let mut blocks = Vec::new();
    for (mut block, image, data) in heads {
        if let Some(head) = image {
            block.image = Some(restored(&head, from.take(head.length)?)?);
        }
        block.data = from.take(data)?.to_vec();
        blocks.push(block);
    }
    Some(Record {
        at: Lsn(0),
        end: Lsn(0),
        xid: u32_at(record, 4)?,
        manager: *record.get(17)?,
        info: *record.get(16)?,
        blocks,
        main: from.take(main)?.to_vec(),
    })
}

fn image_head(from: &mut Eater<'_>) -> Option<ImageHead> {
    let length = from.u16()? as usize;
    let hole_offset = from.u16()? as usize;
    let info = from.u8()?;
    let compressed = info & 0x1C != 0;
    let hole_length = match (compressed, info & 0x01 != 0) {
        (true, true) => from.u16()? as usize,
        (true, false) => 0,
        (false, _) => PAGE.checked_sub(length)?,
    };
    (hole_offset + hole_length <= PAGE).then_some(ImageHead {
        length,
        hole_offset,
        hole_length,
        info,
    })
}

/// The page of an image: what lies in its hole is zero.
fn restored(head: &ImageHead, bytes: &[u8]) -> Option<Image> {
    let full = PAGE - head.hole_length;
    let content = match head.info & 0x1C {
        0 => bytes.to_vec(),
        0x04 => decompressed(bytes, full)?,
        _ => return Some(Image::Unread),
    };
    let (before, after) = content.split_at_checked(head.hole_offset)?;
    let mut page = before.to_vec();
    page.resize(head.hole_offset + head.hole_length, 0);
    page.extend_from_slice(after);
    (page.len() == PAGE).then_some(Image::Page(page))
}

/// PostgreSQL's own compression (`pg_lzcompress.c`).
pub fn decompressed(bytes: &[u8], size: usize) -> Option<Vec<u8>> {
    let mut from = Eater(bytes);
    let mut out: Vec<u8> = Vec::with_capacity(size);
    while out.len() < size {
        let control = from.u8()?;
        for bit in 0..8 {
            if out.len() >= size {
                break;
            }
            if control >> bit & 1 == 0 {
                out.push(from.u8()?);
                continue;
            }
            let (low, high) = (from.u8()? as usize, from.u8()? as usize);
            let back = (low & 0xF0) << 4 | high;
            let mut count = (low & 0x0F) + 3;
            if count == 18 {
                count += from.u8()? as usize;
            }
            let begin = out.len().checked_sub(back).filter(|_| back > 0)?;
            for at in begin..(begin + count).min(begin + size - out.len()) {
                let byte = *out.get(at)?;
                out.push(byte);
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_castagnolis() {
        // Its published check value.
        assert_eq!(crc(&[b"1234", b"56789"]), 0xE306_9283);
    }

    #[test]
    fn what_was_compressed_comes_back() {
        // Three letters, then nine more of the same by a step back of three.
        assert_eq!(
            decompressed(&[0b1000, b'a', b'b', b'c', 0x06, 3], 12).unwrap(),
            b"abcabcabcabc"
        );
        assert_eq!(decompressed(&[0b0001, 0x06, 3], 12), None, "back to before the beginning");
        assert_eq!(decompressed(&[0, b'a'], 3), None, "too short");
    }
}
