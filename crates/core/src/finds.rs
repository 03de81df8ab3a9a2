//! How gateways find an instance of an HTTP service. Each has its own checks and its own requests, and
//! none of them speaks for the others.

use std::collections::BTreeMap;

/// A gateway's word about an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Healthy,
    /// Its checks fail.
    Unhealthy,
    /// Its requests fail, so it is left alone for a while.
    Ejected,
    /// It was not checked yet, or a newer version says something else.
    Unknown,
    /// The table in force doesn't name it.
    Unnamed,
}

/// What the gateways say that tell of its service, by their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Finds(pub BTreeMap<String, Word>);

impl Finds {
    /// What speaks against it; `None`: all that tell find it well. Where nobody tells nobody knows.
    pub fn doubt(&self) -> Option<String> {
        let doubt = self.0.iter().find_map(|(gateway, word)| {
            let finds = match word {
                Word::Healthy => return None,
                Word::Unhealthy => "finds it unhealthy",
                Word::Ejected => "has ejected it, since its requests fail",
                Word::Unknown => "has not checked it yet",
                Word::Unnamed => "does not name it yet",
            };
            Some(format!("the gateway {gateway} {finds}"))
        });
        doubt.or_else(|| self.0.is_empty().then(|| "no gateway tells how it is".to_string()))
    }

    /// All that tell have looked, and nobody is served by it.
    pub fn is_broken(&self) -> bool {
        let broken = |word: &Word| matches!(word, Word::Unhealthy | Word::Ejected);
        !self.0.is_empty() && self.0.values().all(broken)
    }

    /// All that tell find that its checks fail.
    pub fn is_dead(&self) -> bool {
        !self.0.is_empty() && self.0.values().all(|word| *word == Word::Unhealthy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_gateways_have_to_find_it_well() {
        // Words of a, b, …: H ealthy, D ead, E jected, ? unknown, - unnamed.
        let check = |words: &str, doubt: Option<&str>, broken: bool, dead: bool| {
            let word = |letter: char| match letter {
                'H' => Word::Healthy,
                'D' => Word::Unhealthy,
                'E' => Word::Ejected,
                '?' => Word::Unknown,
                _ => Word::Unnamed,
            };
            let names = ('a'..).map(String::from);
            let finds = Finds(names.zip(words.chars().map(word)).collect());
            let found = (finds.doubt(), finds.is_broken(), finds.is_dead());
            assert_eq!(found, (doubt.map(str::to_string), broken, dead), "{words}");
        };
        check("H", None, false, false);
        check("HH", None, false, false);
        check("", Some("no gateway tells how it is"), false, false);
        check("HD", Some("the gateway b finds it unhealthy"), false, false);
        check("H?", Some("the gateway b has not checked it yet"), false, false);
        check("H-", Some("the gateway b does not name it yet"), false, false);
        let ejected = Some("the gateway a has ejected it, since its requests fail");
        check("EH", ejected, false, false);
        check("ED", ejected, true, false);
        check("DD", Some("the gateway a finds it unhealthy"), true, true);
        // Who has not looked may find it well.
        check("D?", Some("the gateway a finds it unhealthy"), false, false);
        check("D-", Some("the gateway a finds it unhealthy"), false, false);
    }
}
