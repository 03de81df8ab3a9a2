//! Passwords and tokens: made once, from the kernel's randomness, in files only their owner reads.

use crate::disk;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// 192 bits: nobody guesses it, and it fits a URL.
const BYTES: usize = 24;

/// Makes the file with a fresh secret, unless it is there.
pub fn make_once(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    disk::write_whole(path, &fresh()?)
}

/// The secret in the file.
pub fn read(path: &Path) -> std::io::Result<String> {
    Ok(std::fs::read_to_string(path)?.trim().to_string())
}

/// A directory only its owner can look into.
pub fn private_dir(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn fresh() -> std::io::Result<String> {
    let mut bytes = [0_u8; BYTES];
    let mut filled = 0;
    while filled < BYTES {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)?;
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
