//! From `everhold.toml` to a spec that is true.
//!
//! Text → what was written, with places (`raw`) → what is true (`validate`) → what this machine can
//! do (`local`). Each step reports every fault it finds, not the first one. Nothing here creates or
//! changes a file.

pub mod fault;
pub mod local;
mod raw;
mod reader;
pub mod record;
mod validate;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use everhold_core::spec::Spec;

pub use fault::{Code, Fault};
pub use validate::{StorePorts, duration_ms};

/// A spec names dozens of things, not thousands; a larger file is the wrong file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a spec with the embedded store's ports. `filename` is only used in faults.
pub fn load_with(text: &str, filename: &str, store: StorePorts) -> Result<Spec, Vec<Fault>> {
    let mut faults = fault::Faults::new(text, filename);
    let Some(document) = raw::document(text, &mut faults) else { return Err(faults.sorted()) };
    let raw = raw::read(&document, &mut faults);
    let spec = validate::validate(&raw, store, &mut faults);
    if faults.is_empty() { Ok(spec) } else { Err(faults.sorted()) }
}

/// Reads a spec from a file.
pub fn load_file(path: &Path, store: StorePorts) -> Result<Spec, Vec<Fault>> {
    let (text, filename) = text_of(path)?;
    load_with(&text, &filename, store)
}

/// The same, or what a repository gave out of a spec that a cluster had.
pub fn load_file_or_record(path: &Path) -> Result<Spec, Vec<Fault>> {
    let (text, filename) = text_of(path)?;
    // No document in TOML begins so, and every record does.
    if text.trim_start().starts_with('{') {
        let spec = record::from_printed(&text);
        return spec.map_err(|error| vec![error.fault(&filename)]);
    }
    load_with(&text, &filename, StorePorts::default())
}

fn text_of(path: &Path) -> Result<(String, String), Vec<Fault>> {
    let filename = path.display().to_string();
    let text = read(path).map_err(|why| {
        let message = format!("cannot read the spec: {why}");
        vec![Fault::of_file(Code::Unreadable, &filename, message)]
    })?;
    Ok((text, filename))
}

fn read(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    if !file.metadata().map_err(|error| error.to_string())?.is_file() {
        return Err("it is not a regular file".into());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it is larger than {FILE_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|error| {
        format!("it is not UTF-8 text (byte {})", error.utf8_error().valid_up_to())
    })
}

#[cfg(test)]
mod tests;
