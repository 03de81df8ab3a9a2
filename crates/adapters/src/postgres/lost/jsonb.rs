//! A `jsonb` value as JSON (`jsonb.h`): a container of entries, each with a type and a length or an end.

use super::record::u32_at;
use super::tuple::numeric;
use serde_json::{Map, Value};

const OBJECT: u32 = 0x2000_0000;
const SCALAR: u32 = 0x1000_0000;
const COUNT: u32 = 0x0FFF_FFFF;
/// Deeper than this is nothing that a person reads.
const DEPTH_MAX: usize = 64;

pub fn text(bytes: &[u8]) -> Option<Value> {
    container(bytes, 0)
}

fn container(bytes: &[u8], depth: usize) -> Option<Value> {
    if depth > DEPTH_MAX {
        return None;
    }
    let head = u32_at(bytes, 0)?;
    let (count, is_object) = ((head & COUNT) as usize, head & OBJECT != 0);
    let entries = if is_object { count * 2 } else { count };
    let data = bytes.get(4 + 4 * entries..)?;
    let mut values = Vec::new();
    let mut at = 0;
    for number in 0..entries {
        let entry = u32_at(bytes, 4 + 4 * number)?;
        let length = (entry & COUNT) as usize;
        // Some entries tell where they end, the others how long they are.
        let end = if entry & 0x8000_0000 != 0 { length } else { at + length };
        values.push(value(entry >> 28 & 7, data, at, end, depth)?);
        at = end;
    }
    if is_object {
        let rest = values.split_off(count);
        let keys = values.into_iter().map(|key| key.as_str().map(str::to_string));
        let pairs = keys.zip(rest).map(|(key, value)| Some((key?, value)));
        return pairs.collect::<Option<Map<String, Value>>>().map(Value::Object);
    }
    if head & SCALAR != 0 { values.pop() } else { Some(Value::Array(values)) }
}

fn value(kind: u32, data: &[u8], at: usize, end: usize, depth: usize) -> Option<Value> {
    let aligned = at.next_multiple_of(4);
    Some(match kind {
        0 => Value::String(String::from_utf8_lossy(data.get(at..end)?).to_string()),
        1 => {
            // A number lies there as a value of its own, with its length before it.
            let bytes = data.get(aligned..end)?;
            let first = *bytes.first()?;
            let digits = if first & 1 == 1 { bytes.get(1..)? } else { bytes.get(4..)? };
            let number = numeric(digits)?;
            number.parse::<serde_json::Number>().map_or(Value::String(number), Value::Number)
        }
        2 => Value::Bool(false),
        3 => Value::Bool(true),
        4 => Value::Null,
        5 => container(data.get(aligned..end)?, depth + 1)?,
        _ => return None,
    })
}
