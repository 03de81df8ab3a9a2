//! Rows: where they lie in records and pages (`htup_details.h`), and their values as text.

use super::record::{decompressed, u16_at, u32_at, u64_at};
use serde_json::{Map, Value, json};

/// Letters of one value that are shown.
const TEXT_MAX: usize = 300;
/// Of a row's header, before its bitmap of nulls.
const HEADER: usize = 23;

/// A row as it lies in a page, behind its fixed header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuple {
    infomask2: u16,
    infomask: u16,
    hoff: u8,
    body: Vec<u8>,
}

/// A column of a table, as the catalogue describes it.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    pub length: i16,
    pub align: u8,
    pub dropped: bool,
}

impl Tuple {
    /// As records hold it: a short header, then what follows the fixed one.
    pub fn from_record(bytes: &[u8]) -> Option<Tuple> {
        Some(Tuple {
            infomask2: u16_at(bytes, 0)?,
            infomask: u16_at(bytes, 2)?,
            hoff: *bytes.get(4)?,
            body: bytes.get(5..)?.to_vec(),
        })
    }

    /// The row of that number in a page.
    pub fn from_page(page: &[u8], number: u16) -> Option<Tuple> {
        let pointer = u32_at(page, 24 + 4 * usize::from(number.checked_sub(1)?))?;
        let lower = usize::from(u16_at(page, 12)?);
        let (offset, flags, length) = (pointer & 0x7FFF, pointer >> 15 & 3, pointer >> 17);
        if flags != 1 || 24 + 4 * usize::from(number) > lower {
            return None;
        }
        let bytes = page.get(offset as usize..(offset + length) as usize)?;
        Some(Tuple {
            infomask2: u16_at(bytes, 18)?,
            infomask: u16_at(bytes, 20)?,
            hoff: *bytes.get(22)?,
            body: bytes.get(HEADER..)?.to_vec(),
        })
    }

    fn data_at(&self) -> Option<usize> {
        usize::from(self.hoff).checked_sub(HEADER)
    }

    /// A changed row, of which the log leaves out what it shares with `old` at both ends.
    pub fn with_ends_of(mut self, old: &Tuple, prefix: usize, suffix: usize) -> Option<Tuple> {
        let at = self.data_at()?;
        let old = old.body.get(old.data_at()?..)?;
        let tail = old.get(old.len().checked_sub(suffix)?..)?;
        let rest = self.body.split_off_checked(at)?;
        self.body.extend_from_slice(old.get(..prefix)?);
        self.body.extend(rest);
        self.body.extend_from_slice(tail);
        Some(self)
    }

    /// Its values by column; `None`: it doesn't fit the columns.
    pub fn row(&self, columns: &[Column]) -> Option<Map<String, Value>> {
        let count = usize::from(self.infomask2 & 0x07FF);
        let has_nulls = self.infomask & 1 != 0;
        let data = self.body.get(self.data_at()?..)?;
        let mut at = 0;
        let mut row = Map::new();
        for (number, column) in columns.iter().enumerate() {
            let is_null = number >= count
                || (has_nulls && self.body.get(number / 8)? >> (number % 8) & 1 == 0);
            let mut value = Value::Null;
            if !is_null {
                let field = field(data, &mut at, column)?;
                value = text(column.type_oid, field);
            }
            if !column.dropped {
                row.insert(column.name.clone(), value);
            }
        }
        (count <= columns.len()).then_some(row)
    }

    pub fn hex(&self) -> String {
        let bytes = self.body.get(self.data_at().unwrap_or(0)..).unwrap_or(&[]);
        match bytes.get(..TEXT_MAX) {
            Some(begin) => format!("{}… ({} bytes)", hex(begin), bytes.len()),
            None => hex(bytes),
        }
    }
}

trait SplitOffChecked {
    fn split_off_checked(&mut self, at: usize) -> Option<Vec<u8>>;
}

impl SplitOffChecked for Vec<u8> {
    fn split_off_checked(&mut self, at: usize) -> Option<Vec<u8>> {
        (at <= self.len()).then(|| self.split_off(at))
    }
}

/// What stands for a value.
enum Field<'a> {
    Bytes(&'a [u8]),
    Unpacked(Vec<u8>),
    /// Kept outside of the row, so large.
    Outside(u32),
    /// Compressed by something that isn't read here.
    Packed(&'a [u8]),
}

fn field<'a>(data: &'a [u8], at: &mut usize, column: &Column) -> Option<Field<'a>> {
    let aligned = |at: usize| match column.align {
        b's' => at.next_multiple_of(2),
        b'i' => at.next_multiple_of(4),
        b'd' => at.next_multiple_of(8),
        _ => at,
    };
    match column.length {
        -1 => {
            // A short value is not aligned, and no padding looks like one.
            if *data.get(*at)? == 0 {
                *at = aligned(*at);
            }
            let first = *data.get(*at)?;
            let (begin, length) = (*at, u32_at(data, *at).map_or(0, |word| (word >> 2) as usize));
            if first == 1 {
                *at += 18;
                return (data.get(begin + 1) == Some(&18))
                    .then_some(Field::Outside(u32_at(data, begin + 2)?));
            }
            if first & 1 == 1 {
                *at += usize::from(first >> 1);
                return Some(Field::Bytes(data.get(begin + 1..*at)?));
            }
            *at += length;
            let bytes = data.get(begin + 4..*at)?;
            if first & 3 != 2 {
                return Some(Field::Bytes(bytes));
            }
            let size = u32_at(bytes, 0)?;
            match size >> 30 {
                0 => {
                    Some(Field::Unpacked(decompressed(&bytes[4..], (size & 0x3FFF_FFFF) as usize)?))
                }
                _ => Some(Field::Packed(bytes)),
            }
        }
        -2 => {
            let end = data.get(*at..)?.iter().position(|byte| *byte == 0)? + *at;
            let bytes = &data[*at..end];
            *at = end + 1;
            Some(Field::Bytes(bytes))
        }
        length => {
            let begin = aligned(*at);
            *at = begin + usize::try_from(length).ok()?;
            Some(Field::Bytes(data.get(begin..*at)?))
        }
    }
}

/// A value as its type writes it; of types that aren't read here, `\x` and its bytes.
fn text(type_oid: u32, field: Field<'_>) -> Value {
    let owned;
    let bytes = match field {
        Field::Bytes(bytes) => bytes,
        Field::Unpacked(bytes) => {
            owned = bytes;
            &owned
        }
        Field::Outside(size) => return json!(format!("(kept outside of the row, {size} bytes)")),
        Field::Packed(bytes) => return json!(format!("(compressed) \\x{}", hex(bytes))),
    };
    let value = known(type_oid, bytes).unwrap_or_else(|| json!(format!("\\x{}", hex(bytes))));
    match value.as_str().filter(|text| text.len() > TEXT_MAX) {
        None => value,
        Some(text) => {
            let begin: String = text.chars().take(TEXT_MAX).collect();
            json!(format!("{begin}… ({} bytes)", bytes.len()))
        }
    }
}

fn known(type_oid: u32, bytes: &[u8]) -> Option<Value> {
    let i16_at = |at| u16_at(bytes, at).map(|it| it as i16);
    let long = || u64_at(bytes, 0).map(|it| it as i64);
    Some(match type_oid {
        16 => json!(*bytes.first()? != 0),
        18 => json!(char::from(*bytes.first()?).to_string()),
        19 => json!(String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next()?)),
        20 => json!(long()?),
        21 => json!(i16_at(0)?),
        23 => json!(u32_at(bytes, 0)? as i32),
        26 => json!(u32_at(bytes, 0)?),
        // text, json, xml, bpchar, varchar, and what is said as the first.
        25 | 114 | 142 | 1042 | 1043 | 2275 => json!(String::from_utf8_lossy(bytes)),
        700 => json!(f32::from_bits(u32_at(bytes, 0)?).to_string()),
        701 => json!(f64::from_bits(u64_at(bytes, 0)?).to_string()),
        1082 => json!(date(i64::from(u32_at(bytes, 0)? as i32))),
        1083 => json!(clock(long()?)),
        1114 => json!(timestamp(long()?)),
        1184 => json!(format!("{}+00", timestamp(long()?))),
        1700 => json!(numeric(bytes)?),
        2950 => {
            let hex = hex(bytes.get(..16)?);
            json!(format!(
                "{}-{}-{}-{}-{}",
                &hex[..8],
                &hex[8..12],
                &hex[12..16],
                &hex[16..20],
                &hex[20..]
            ))
        }
        3802 => super::jsonb::text(bytes)?,
        _ => return None,
    })
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A day counted from 2000-01-01, by Hinnant's "chrono-compatible low-level date algorithms".
fn date(days: i64) -> String {
    match days {
        2_147_483_647 => return "infinity".to_string(),
        -2_147_483_648 => return "-infinity".to_string(),
        _ => {}
    }
    let z = days + 10_957 + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

fn clock(us: i64) -> String {
    let (s, us) = (us.div_euclid(1_000_000), us.rem_euclid(1_000_000));
    let whole = format!("{:02}:{:02}:{:02}", s / 3_600, s / 60 % 60, s % 60);
    if us == 0 { whole } else { format!("{whole}.{us:06}").trim_end_matches('0').to_string() }
}

pub fn timestamp(us: i64) -> String {
    match us {
        i64::MAX => "infinity".to_string(),
        i64::MIN => "-infinity".to_string(),
        _ => {
            let day = 86_400_000_000;
            format!("{} {}", date(us.div_euclid(day)), clock(us.rem_euclid(day)))
        }
    }
}

/// `numeric.c`: groups of four decimal digits, the first of weight 10000^weight.
pub fn numeric(bytes: &[u8]) -> Option<String> {
    let head = u16_at(bytes, 0)?;
    let (negative, scale, weight, digits) = match head & 0xC000 {
        0xC000 => {
            let name = match head {
                0xD000 => "Infinity",
                0xF000 => "-Infinity",
                _ => "NaN",
            };
            return Some(name.to_string());
        }
        0x8000 => {
            let low = (head & 0x3F) as i16;
            let weight = if head & 0x40 != 0 { low - 64 } else { low };
            (head & 0x2000 != 0, usize::from(head >> 7 & 0x3F), weight, &bytes[2..])
        }
        sign => {
            let weight = u16_at(bytes, 2)? as i16;
            (sign == 0x4000, usize::from(head & 0x3FFF), weight, bytes.get(4..)?)
        }
    };
    let group =
        |at: i16| usize::try_from(at).ok().and_then(|at| u16_at(digits, 2 * at)).unwrap_or(0);
    let mut text = String::new();
    for at in 0..=weight.max(0) {
        let digits = if weight < 0 { 0 } else { group(at) };
        text += &if text.is_empty() { digits.to_string() } else { format!("{digits:04}") };
        if text == "0" && at < weight {
            text.clear();
        }
    }
    let mut fraction = String::new();
    let mut at = weight + 1;
    for _ in weight.min(-1) + 1..0 {
        fraction += "0000";
    }
    if weight < 0 {
        at = 0;
    }
    while fraction.len() < scale {
        fraction += &format!("{:04}", group(at));
        at += 1;
    }
    fraction.truncate(scale);
    let sign = if negative { "-" } else { "" };
    let point = if scale > 0 { "." } else { "" };
    Some(format!("{sign}{text}{point}{fraction}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_their_types_do() {
        let short = |scale: u16, weight: i16, negative: bool, digits: &[u16]| {
            let sign = if negative { 0x2000 } else { 0 };
            let low = (weight as u16) & 0x7F;
            let head = 0x8000 | sign | scale << 7 | low;
            let words: Vec<u16> = [&[head], digits].concat();
            words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()
        };
        #[rustfmt::skip]
        let cases = [
            (short(0, 0, false, &[]), "0"), (short(0, 0, false, &[42]), "42"),
            (short(2, 0, true, &[1, 5000]), "-1.50"), (short(0, 1, false, &[12, 34]), "120034"),
            (short(0, 1, false, &[1]), "10000"), (short(3, -1, false, &[10]), "0.001"),
            (short(6, -2, false, &[100]), "0.000001"), (short(2, 1, false, &[1, 0, 2500]), "10000.25"),
            (vec![0, 0xC0], "NaN"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(numeric(&bytes).as_deref(), Some(expected), "{bytes:?}");
        }
        assert_eq!(date(0), "2000-01-01");
        assert_eq!(date(9_820), "2026-11-20");
        assert_eq!(date(-1), "1999-12-31");
        assert_eq!(timestamp(848_534_400_000_000 - 1), "2026-11-20 23:59:59.999999");
        assert_eq!(clock(3_723_500_000), "01:02:03.5");
    }

    #[test]
    fn ends_that_are_left_out_come_from_the_old_row() {
        let old = Tuple { infomask2: 2, infomask: 0, hoff: 24, body: b"\0abcdefgh".to_vec() };
        let new = Tuple { infomask2: 2, infomask: 0, hoff: 24, body: b"\0XY".to_vec() };
        let whole = new.clone().with_ends_of(&old, 2, 3).unwrap();
        assert_eq!(whole.body, b"\0abXYfgh");
        assert_eq!(new.with_ends_of(&old, 20, 0), None);
    }
}
