//! What is wrong with a spec or with the machine that is to run it.

use std::fmt;
use std::ops::Range;

use crate::code;
pub use crate::code::Code;
use serde::Serialize;

/// One fault. As text, `FILE:LINE:COLUMN: CODE message; next step: what to do`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    pub code: Code,
    /// The document; absent where a fault is the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// From 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// From 1, in characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    pub message: String,
    pub next: String,
}

impl Fault {
    /// A fault of this machine.
    pub fn of_machine(code: Code, message: String) -> Fault {
        let next = code.next().to_owned();
        Fault { code, file: None, line: None, column: None, message, next }
    }

    /// A fault of a document as a whole.
    pub fn of_file(code: Code, file: &str, message: String) -> Fault {
        Fault { file: Some(file.to_owned()), ..Fault::of_machine(code, message) }
    }

    /// The same with a better next step.
    pub fn next(mut self, next: impl Into<String>) -> Fault {
        self.next = next.into();
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.file.as_ref().map(|file| match (self.line, self.column) {
            (Some(line), Some(column)) => format!("{file}:{line}:{column}"),
            _ => file.clone(),
        });
        let code = self.code.as_str();
        f.write_str(&code::line(place.as_deref(), code, &self.message, &self.next))
    }
}

/// The faults of one document, while it is read.
pub(super) struct Faults<'t> {
    text: &'t str,
    file: &'t str,
    found: Vec<Fault>,
}

impl<'t> Faults<'t> {
    pub fn new(text: &'t str, file: &'t str) -> Self {
        Faults { text, file, found: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub fn count(&self) -> usize {
        self.found.len()
    }

    /// Adds a fault at a byte of the document; the caller may better its next step.
    pub fn add(&mut self, code: Code, at: usize, message: String) -> &mut Fault {
        let (line, column) = self.place(at);
        let mut fault = Fault::of_file(code, self.file, message);
        (fault.line, fault.column) = (Some(line), Some(column));
        self.found.push(fault);
        let last = self.found.len() - 1;
        &mut self.found[last]
    }

    /// As a person would say it: `line 12`.
    pub fn line(&self, at: usize) -> String {
        format!("line {}", self.place(at).0)
    }

    /// What was written there.
    pub fn written(&self, span: Range<usize>) -> &'t str {
        self.text.get(span).unwrap_or_default()
    }

    /// All of them, in the order of the document.
    pub fn sorted(mut self) -> Vec<Fault> {
        let key = |it: &Fault| (it.line, it.column, it.code, it.message.clone());
        self.found.sort_by_key(key);
        self.found.dedup();
        self.found
    }

    fn place(&self, at: usize) -> (u32, u32) {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        let before = &self.text[..at];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }
}
