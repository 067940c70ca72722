//! The text of a manifest file -> objects.
//!
//! Documents are taken one at a time, and the items of a List one at a time too, so that a file of ten thousand pods
//! needs little memory besides its text.

use std::{cell::RefCell, fmt, path::Path};

use serde::{
    Deserialize,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};
use serde_saphyr::{Options, Spanned};

use super::parse::{Outcome, Parsed, Parser};

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    /// Where it begins, from 1.
    pub line: u32,
    pub parsed: Parsed,
}

/// Where the text is no YAML (or JSON).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct YamlError {
    pub line: Option<u32>,
    pub message: String,
}

/// The objects of a file's text. With an error come the objects of those documents that are good.
pub fn objects(path: &Path, text: &str, parser: &mut Parser) -> (Vec<Document>, Vec<YamlError>) {
    let mut out = Vec::new();
    let mut errors = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if path.extension().is_some_and(|extension| extension == "json") {
        json(text, parser, &mut out, &mut errors);
    } else {
        for (line, document) in documents(text) {
            yaml(line, document, parser, &mut out, &mut errors);
        }
    }
    (out, errors)
}

/// Splits at document markers, which YAML has at the beginning of a line only. With each the number of its first line.
fn documents(text: &str) -> impl Iterator<Item = (u32, &str)> {
    let mut starts = vec![(1, 0, 0)];
    let mut offset = 0;
    for (number, line) in (1u32..).zip(text.split_inclusive('\n')) {
        let marked = |marker| {
            line.strip_prefix(marker)
                .is_some_and(|rest: &str| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        if marked("---") || marked("...") {
            starts.push((number, offset, offset + 3));
        }
        offset += line.len();
    }
    let ends: Vec<usize> = starts
        .iter()
        .skip(1)
        .map(|(_, end, _)| *end)
        .chain([text.len()])
        .collect();
    starts
        .into_iter()
        .zip(ends)
        .map(move |((number, _, start), end)| (number, &text[start..end]))
}

/// Whether there is nothing but blank lines, comments and directives.
fn is_blank(document: &str) -> bool {
    document
        .lines()
        .all(|line| line.trim_start().is_empty() || line.trim_start().starts_with('#') || line.starts_with('%'))
}

fn yaml(base: u32, text: &str, parser: &mut Parser, out: &mut Vec<Document>, errors: &mut Vec<YamlError>) {
    if is_blank(text) {
        return;
    }
    let blank_lines = text
        .lines()
        .take_while(|line| line.trim_start().is_empty() || line.trim_start().starts_with('#'))
        .count();
    let line = base.saturating_add(u32::try_from(blank_lines).unwrap_or(u32::MAX));
    let body = Body::<Spanned<Value>>::new(parser, |item: &Spanned<Value>| {
        Some(base.saturating_add(u32::try_from(item.defined.line().saturating_sub(1)).ok()?))
    });
    let parsed = serde_saphyr::with_deserializer_from_str_with_options(text, options(), |deserializer| {
        body.deserialize(deserializer)
    });
    match parsed {
        Ok(whole) => finish(whole, line, parser, out),
        Err(error) => {
            let error = error.without_snippet();
            let at = error
                .location()
                .and_then(|location| u32::try_from(location.line()).ok());
            errors.push(YamlError {
                line: Some(at.map_or(line, |at| base.saturating_add(at.saturating_sub(1)))),
                message: error.to_string(),
            });
        }
    }
}

fn options() -> Options {
    let mut budget = serde_saphyr::Budget::default();
    // A file of ten thousand pods is legitimate. Depth and aliases stay bounded: they are what can be abused.
    budget.max_events = usize::MAX;
    budget.max_nodes = usize::MAX;
    budget.max_total_scalar_bytes = usize::MAX;
    let mut alias_limits = serde_saphyr::options::AliasLimits::default();
    alias_limits.max_total_replayed_events = 100_000;
    serde_saphyr::options! {
        budget: Some(budget),
        alias_limits: alias_limits,
        strict_booleans: true,
        with_snippet: false,
    }
}

fn json(text: &str, parser: &mut Parser, out: &mut Vec<Document>, errors: &mut Vec<YamlError>) {
    let mut rest = text;
    let mut line = 1;
    loop {
        let blank = rest.len() - rest.trim_start().len();
        line += newlines(&rest[..blank]);
        rest = &rest[blank..];
        if rest.is_empty() {
            return;
        }
        let mut reader = serde_json::Deserializer::from_str(rest);
        let parsed = Body::<Value>::new(parser, |_| None).deserialize(&mut reader);
        match parsed {
            Ok(whole) => {
                finish(whole, line, parser, out);
                let mut again = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
                again.next();
                let end = again.byte_offset().max(1).min(rest.len());
                line += newlines(&rest[..end]);
                rest = &rest[end..];
            }
            Err(error) => {
                errors.push(YamlError {
                    line: Some(line.saturating_add(u32::try_from(error.line()).unwrap_or(1).saturating_sub(1))),
                    message: error.to_string(),
                });
                return;
            }
        }
    }
}

fn newlines(text: &str) -> u32 {
    u32::try_from(text.bytes().filter(|byte| *byte == b'\n').count()).unwrap_or(u32::MAX)
}

/// A document that has been read: an object, or a list whose items have been taken already.
struct Whole {
    object: Value,
    /// Items that said their own kind.
    items: Vec<(Option<u32>, Parsed)>,
    /// Items that did not: the list's kind says it.
    bare: Vec<(Option<u32>, Value)>,
    has_items: bool,
}

fn finish(whole: Whole, line: u32, parser: &mut Parser, out: &mut Vec<Document>) {
    if whole.object.is_null() {
        return;
    }
    let said = |key| whole.object.get(key).and_then(Value::as_str);
    let item_kind = said("kind").and_then(|kind| kind.strip_suffix("List"));
    if let (Some(kind), true) = (item_kind, whole.has_items) {
        for (item_line, parsed) in whole.items {
            out.push(Document {
                line: item_line.unwrap_or(line),
                parsed,
            });
        }
        let of_list = said("apiVersion")
            .filter(|_| !kind.is_empty())
            .map(|version| (version, kind));
        for (item_line, item) in whole.bare {
            out.push(Document {
                line: item_line.unwrap_or(line),
                parsed: parser.parse(&item, of_list),
            });
        }
        return;
    }
    // A list without items, as in `items: null`.
    if item_kind.is_some()
        && whole
            .object
            .get("metadata")
            .and_then(|metadata| metadata.get("name"))
            .is_none()
    {
        return;
    }
    out.push(Document {
        line,
        parsed: parser.parse(&whole.object, None),
    });
}

/// What an item of a list is read as.
trait Item: for<'de> Deserialize<'de> {
    fn value(self) -> Value;
}

impl Item for Value {
    fn value(self) -> Value {
        self
    }
}

impl Item for Spanned<Value> {
    fn value(self) -> Value {
        self.value
    }
}

type LineOf<'p, I> = dyn Fn(&I) -> Option<u32> + 'p;

/// Reads one document.
struct Body<'p, I> {
    parser: RefCell<&'p mut Parser>,
    /// The line of an item.
    line: Box<LineOf<'p, I>>,
}

impl<'p, I: Item> Body<'p, I> {
    fn new(parser: &'p mut Parser, line: impl Fn(&I) -> Option<u32> + 'p) -> Self {
        Self {
            parser: RefCell::new(parser),
            line: Box::new(line),
        }
    }
}

impl<'de, I: Item> DeserializeSeed<'de> for Body<'_, I> {
    type Value = Whole;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Whole, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, I: Item> Visitor<'de> for Body<'_, I> {
    type Value = Whole;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a Kubernetes object (a map with apiVersion, kind and metadata)")
    }

    fn visit_unit<E>(self) -> Result<Whole, E> {
        Ok(Whole {
            object: Value::Null,
            items: Vec::new(),
            bare: Vec::new(),
            has_items: false,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Whole, A::Error> {
        let mut object = Map::new();
        let mut items = Vec::new();
        let mut bare = Vec::new();
        let mut has_items = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                has_items = map.next_value_seed(Items {
                    body: &self,
                    items: &mut items,
                    bare: &mut bare,
                })?;
            } else {
                object.insert(key, map.next_value()?);
            }
        }
        Ok(Whole {
            object: Value::Object(object),
            items,
            bare,
            has_items,
        })
    }
}

/// Reads the items of a list. True if it is one.
struct Items<'a, 'p, I> {
    body: &'a Body<'p, I>,
    items: &'a mut Vec<(Option<u32>, Parsed)>,
    bare: &'a mut Vec<(Option<u32>, Value)>,
}

impl<'de, I: Item> DeserializeSeed<'de> for Items<'_, '_, I> {
    type Value = bool;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, I: Item> Visitor<'de> for Items<'_, '_, I> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the items of a list")
    }

    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<bool, A::Error> {
        while let Some(item) = seq.next_element::<I>()? {
            let line = (self.body.line)(&item);
            let item = item.value();
            if item.get("kind").is_some() && item.get("apiVersion").is_some() {
                let parsed = self.body.parser.borrow_mut().parse(&item, None);
                self.items.push((line, parsed));
            } else {
                self.bare.push((line, item));
            }
        }
        Ok(true)
    }
}

impl Document {
    /// An object that should be there and of which not even the name can be read.
    #[must_use]
    pub fn is_nameless(&self) -> bool {
        self.parsed.key.is_none() && self.parsed.outcome == Outcome::Invalid
    }
}
