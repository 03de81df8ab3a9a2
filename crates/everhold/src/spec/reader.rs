//! Reads the values of one TOML table, noting where each stood and what was wrong.
//!
//! The keys that are asked for are the keys that are known: what is left over at the end is refused
//! with the nearest known one.

use std::collections::BTreeMap;

use toml_edit::{Item, TableLike};

use super::fault::{Code, Faults};

/// A value and the byte of the document where it stood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed<T> {
    pub value: T,
    pub at: usize,
}

/// A key that may be left out. `Faulty`: given, but already reported, so that whatever hangs on it
/// is not reported again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part<T> {
    Absent,
    Faulty,
    Is(T),
}

impl<T> Part<T> {
    pub fn is(&self) -> Option<&T> {
        match self {
            Part::Is(value) => Some(value),
            Part::Absent | Part::Faulty => None,
        }
    }
}

/// Where a key was given again, and which: in the document it has a spare name.
pub(super) type Again = BTreeMap<usize, String>;

/// An entry of a table whose keys are names.
pub(super) struct Entry<'d> {
    pub name: Placed<String>,
    pub table: Part<Reader<'d>>,
    /// Whether the name was given before. Its faults count, its values do not.
    pub again: bool,
}

/// One table.
pub(super) struct Reader<'d> {
    /// By the name a person would give it: `[service.main]`. Empty for the document itself.
    pub path: String,
    /// Where its name stands.
    pub at: usize,
    table: &'d dyn TableLike,
    /// Keys given before, by their place; see `raw::document`.
    again: &'d Again,
    asked: Vec<&'static str>,
}

impl<'d> Reader<'d> {
    pub fn new(path: &str, at: usize, table: &'d dyn TableLike, again: &'d Again) -> Self {
        Reader { path: path.to_owned(), at, table, again, asked: Vec::new() }
    }

    pub fn string(&mut self, key: &'static str, faults: &mut Faults<'_>) -> Part<Placed<String>> {
        let Some(item) = self.item(key) else { return Part::Absent };
        match item.as_str() {
            Some(text) => Part::Is(Placed { value: text.to_owned(), at: place(item, self.at) }),
            None => self.mistyped(key, item, "a string", faults),
        }
    }

    pub fn integer(&mut self, key: &'static str, faults: &mut Faults<'_>) -> Part<Placed<i64>> {
        let Some(item) = self.item(key) else { return Part::Absent };
        match item.as_integer() {
            Some(value) => Part::Is(Placed { value, at: place(item, self.at) }),
            None => self.mistyped(key, item, "a whole number", faults),
        }
    }

    pub fn boolean(&mut self, key: &'static str, faults: &mut Faults<'_>) -> Part<Placed<bool>> {
        let Some(item) = self.item(key) else { return Part::Absent };
        match item.as_bool() {
            Some(value) => Part::Is(Placed { value, at: place(item, self.at) }),
            None => self.mistyped(key, item, "true or false", faults),
        }
    }

    pub fn number(&mut self, key: &'static str, faults: &mut Faults<'_>) -> Part<Placed<f64>> {
        let Some(item) = self.item(key) else { return Part::Absent };
        let value = item.as_float().or_else(|| item.as_integer().map(|whole| whole as f64));
        match value {
            Some(value) => Part::Is(Placed { value, at: place(item, self.at) }),
            None => self.mistyped(key, item, "a number", faults),
        }
    }

    /// A list of whatever.
    pub fn list(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'_>,
    ) -> Part<Placed<&'d toml_edit::Array>> {
        let Some(item) = self.item(key) else { return Part::Absent };
        match item.as_array() {
            Some(value) => Part::Is(Placed { value, at: place(item, self.at) }),
            None => self.mistyped(key, item, "a list", faults),
        }
    }

    /// A table whose keys are free and whose values are strings.
    pub fn texts(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'_>,
    ) -> Vec<(Placed<String>, Placed<String>)> {
        let Part::Is(table) = self.table(key, faults) else { return Vec::new() };
        let mut found = Vec::new();
        for (name, item) in table.entries() {
            match item.as_str() {
                Some(text) => {
                    let value = Placed { value: text.to_owned(), at: place(item, name.at) };
                    found.push((name, value));
                }
                None => drop(table.mistyped::<()>(&name.value, item, "a string", faults)),
            }
        }
        found
    }

    /// A list of strings.
    pub fn strings(
        &mut self,
        key: &'static str,
        faults: &mut Faults<'_>,
    ) -> Part<Placed<Vec<Placed<String>>>> {
        let Some(item) = self.item(key) else { return Part::Absent };
        let at = place(item, self.at);
        let Some(array) = item.as_array() else {
            return self.mistyped(key, item, "a list of strings", faults);
        };
        let mut value = Vec::new();
        for entry in array {
            let at = entry.span().map_or(at, |span| span.start);
            match entry.as_str() {
                Some(text) => value.push(Placed { value: text.to_owned(), at }),
                None => {
                    let kind = entry.type_name();
                    let message =
                        format!("`{key}` {} lists strings, not {}", self.within(), a(kind));
                    faults.add(Code::WrongType, at, message);
                }
            }
        }
        Part::Is(Placed { value, at })
    }

    /// A table under this one.
    pub fn table(&mut self, key: &'static str, faults: &mut Faults<'_>) -> Part<Reader<'d>> {
        let Some(item) = self.item(key) else { return Part::Absent };
        match item.as_table_like() {
            Some(table) => {
                let name = Placed { value: key.to_owned(), at: self.key_place(key) };
                Part::Is(self.below(&name, table))
            }
            None => self.mistyped(key, item, "a table", faults),
        }
    }

    /// The entries of a table whose keys are names, each of them a table.
    pub fn tables(&self, faults: &mut Faults<'_>) -> Vec<Entry<'d>> {
        let mut found = Vec::new();
        for (mut name, item) in self.all() {
            let given = self.again.get(&name.at);
            if let Some(given) = given {
                name.value.clone_from(given);
            }
            let table = match item.as_table_like() {
                Some(table) => Part::Is(self.below(&name, table)),
                None => self.mistyped(&name.value, item, "a table", faults),
            };
            found.push(Entry { name, table, again: given.is_some() });
        }
        found
    }

    /// Every entry as it is, for tables whose keys are free.
    pub fn entries(&self) -> Vec<(Placed<String>, &'d Item)> {
        self.all().into_iter().filter(|(key, _)| !self.again.contains_key(&key.at)).collect()
    }

    /// A key of the schema that this version cannot act on.
    pub fn later(&mut self, key: &'static str, what: &str, faults: &mut Faults<'_>) {
        if self.item(key).is_some() {
            let at = self.key_place(key);
            let message = format!(
                "`{key}` {} ({what}) is known but not supported by this version",
                self.within()
            );
            faults.add(Code::NotYet, at, message);
        }
    }

    /// Where a key stands, if it does.
    pub fn given(&self, key: &str) -> Option<usize> {
        self.table.get(key).filter(|item| !item.is_none()).map(|_| self.key_place(key))
    }

    /// Reports that a key has to be there. `example` is what could stand there.
    pub fn missing(&self, key: &str, example: &str, faults: &mut Faults<'_>) {
        let message = format!("`{key}` is missing {}", self.within());
        faults.add(Code::Missing, self.at, message).next = format!("add {key} = {example}");
    }

    /// Reports the keys that nobody asked for.
    pub fn finish(self, faults: &mut Faults<'_>) {
        for (key, _) in self.entries() {
            if !self.asked.contains(&key.value.as_str()) {
                let near = nearest(&key.value, self.asked.iter().copied());
                unknown(&key, &self.within(), near, faults);
            }
        }
    }

    fn within(&self) -> String {
        if self.path.is_empty() { "at top level".into() } else { format!("in {}", self.path) }
    }

    fn key_place(&self, key: &str) -> usize {
        self.table.key(key).and_then(|key| key.span()).map_or(self.at, |span| span.start)
    }

    fn item(&mut self, key: &'static str) -> Option<&'d Item> {
        if !self.asked.contains(&key) {
            self.asked.push(key);
        }
        self.table.get(key).filter(|item| !item.is_none())
    }

    fn all(&self) -> Vec<(Placed<String>, &'d Item)> {
        let place = |key: &str| Placed { value: key.to_owned(), at: self.key_place(key) };
        self.table.iter().map(|(key, item)| (place(key), item)).collect()
    }

    /// A table below this one.
    pub fn below(&self, name: &Placed<String>, table: &'d dyn TableLike) -> Reader<'d> {
        let key = &name.value;
        let path = match self.path.trim_matches(['[', ']']) {
            "" => format!("[{key}]"),
            path => format!("[{path}.{key}]"),
        };
        Reader::new(&path, name.at, table, self.again)
    }

    fn mistyped<T>(&self, key: &str, item: &Item, want: &str, faults: &mut Faults<'_>) -> Part<T> {
        let message =
            format!("`{key}` {} must be {want}, not {}", self.within(), a(item.type_name()));
        faults.add(Code::WrongType, place(item, self.key_place(key)), message);
        Part::Faulty
    }
}

/// Reports a key that is not known.
pub(super) fn unknown(
    key: &Placed<String>,
    within: &str,
    near: Option<&str>,
    faults: &mut Faults<'_>,
) {
    let hint = near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    let message = format!("unknown key `{}` {within}{hint}", key.value);
    let fault = faults.add(Code::UnknownKey, key.at, message);
    if let Some(near) = near {
        fault.next = format!("write `{near}`, or take the key out");
    }
}

/// The known word that was probably meant: one slip per three letters at most, none in a shorter
/// one, where every word is near every other.
pub(super) fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let folded = word.to_ascii_lowercase().replace('-', "_");
    let distance = |known: &str| strsim::damerau_levenshtein(&folded, &known.to_ascii_lowercase());
    known
        .map(|known| (distance(known), known))
        .filter(|(distance, known)| match known.len().min(word.len()) {
            0..3 => *distance == 0,
            length => *distance <= length.div_ceil(3),
        })
        .min()
        .map(|(_, known)| known)
}

/// Where a value stands.
pub(super) fn place(item: &Item, otherwise: usize) -> usize {
    item.span().map_or(otherwise, |span| span.start)
}

/// With its article.
pub(super) fn a(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {kind}")
}
