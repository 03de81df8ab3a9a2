//! What is wrong with a spec or with the machine that is to run it.
//!
//! Every kind of fault has a code that never changes its meaning, a next step, and a section in
//! `docs/errors/`.

use std::fmt;
use std::ops::Range;

use serde::{Serialize, Serializer};

macro_rules! codes {
    ($($name:ident $code:literal $title:literal $next:literal;)*) => {
        /// A kind of fault. E0xx: the document; E1xx: this machine.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $($name),* }

        impl Code {
            /// Every code, in order.
            #[cfg(test)]
            pub const ALL: &[Code] = &[$(Code::$name),*];

            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code),* }
            }

            /// The heading of its section in `docs/errors/`.
            #[cfg(test)]
            pub fn title(self) -> &'static str {
                match self { $(Code::$name => $title),* }
            }

            /// What to do about it, where the fault itself does not know better.
            pub fn next(self) -> &'static str {
                match self { $(Code::$name => $next),* }
            }
        }
    };
}

codes! {
    Syntax "E001" "not TOML" "correct the line; the rest of the document is read once it parses";
    DuplicateKey "E002" "key given twice" "keep one of the two";
    UnknownKey "E003" "unknown key" "see docs/spec.md for the keys there are";
    NotYet "E004" "known, but not supported by this version"
        "take it out; this version runs without it";
    WrongType "E005" "wrong type" "see docs/spec.md for the form of each value";
    Missing "E006" "key missing" "add the key";
    OutOfRange "E007" "value not allowed" "choose an allowed value";
    BadName "E008" "name not allowed"
        "choose a name of 1 to 31 letters a-z, digits, _ or -, with a letter first";
    NameTaken "E009" "name taken" "choose another name";
    BadDuration "E010" "not a duration"
        "write a whole number with a unit: ms, s, m or h, as in \"500ms\"";
    BadAddress "E011" "not an address or port range" "see docs/spec.md for the form of each value";
    UnknownReference "E012" "no such node or service" "declare it, or name one that is declared";
    Repeated "E013" "named twice" "name it once";
    PortCollision "E014" "ports collide" "give each its own port or range";
    TooFewStandbys "E015" "more synchronous standbys than standbys"
        "lower `synchronous.number` or add nodes";
    CannotSpread "E016" "nothing to spread over"
        "give every node of the service the key, with two values or more";
    UnsupportedVersion "E017" "version not supported" "use a version that this Everhold runs";
    NewerSchema "E018" "schema not supported" "use an Everhold that knows this schema";
    Count "E019" "too few or too many" "see docs/spec.md for the limits";
    UnknownSetting "E020" "no such PostgreSQL setting" "correct the name, or take it out";
    BadSetting "E021" "value PostgreSQL would refuse" "correct the value";
    OurSetting "E022" "setting that Everhold decides" "take it out";
    WeakSetting "E023" "setting that weakens a guarantee" "take it out, or choose an allowed value";
    ApiExposed "E024" "API beyond this machine"
        "bind it to a loopback address, and reach it through ssh or a proxy with TLS";
    NoCandidate "E025" "nobody may become primary"
        "leave `failover` on for the first node and one more";
    NotApplicable "E026" "key without effect here" "take it out";
    Unreadable "E027" "spec cannot be read" "check the path and its permissions";

    DataNotWritable "E101" "data directory not writable"
        "make it writable, or choose another one with --data";
    DataForeign "E102" "not an Everhold data directory"
        "choose an empty or new directory with --data";
    OtherCluster "E103" "data of another cluster"
        "choose another directory with --data, or use the spec of that cluster";
    NewerRecord "E104" "written by a newer version"
        "use that version or a later one; nothing was touched";
    TornRecord "E105" "record cannot be read"
        "restore the file from a copy, or move the directory away; nothing was touched";
    OtherMajor "E106" "data of another PostgreSQL version"
        "declare that version, or choose another directory with --data";
    Unreachable "E107" "PostgreSQL's user cannot reach the data"
        "choose a directory that every user may enter, such as one under /var/lib";
    WrongOwner "E108" "wrong owner or mode"
        "correct it with chown and chmod; PostgreSQL refuses to start otherwise";
    MissingProgram "E109" "program missing" "install it, or run `make up`, which does";
    WrongProgram "E110" "program of another version" "install the version that the spec declares";
    SocketPath "E111" "socket path too long" "choose a shorter directory with --data";
    PortTaken "E112" "port taken" "end the other program, or choose another port";
    NotOurAddress "E113" "address of another machine"
        "use an address of this machine, or start this node where the address is";
    NoUser "E114" "no unprivileged user"
        "install PostgreSQL from the distribution, which creates it, or do not run as root";
    PortForbidden "E115" "port not permitted"
        "choose a port above 1023, or grant the right to bind it";
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

/// One fault. As text, `FILE:LINE:COLUMN: CODE message` and the next step on a line of its own.
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
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
            if let (Some(line), Some(column)) = (self.line, self.column) {
                write!(f, "{line}:{column}:")?;
            }
            write!(f, " ")?;
        }
        write!(f, "{} {}\n  next: {}", self.code.as_str(), self.message, self.next)
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
