//! Editing network configuration lists as text: everything that is not ours stays as it is, byte for byte, and taking
//! our entry out gives back what was there before it went in.

use std::ops::Range;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::cni::{PLUGIN, plugin::VERSIONS};

/// Our entry of a list of plugins.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    #[serde(rename = "type")]
    plugin: &'static str,
    run_dir: String,
    wait_seconds: f64,
    exempt_namespaces: Vec<String>,
    status_needs_agent: bool,
}

impl Entry {
    /// What the plugin will be told: see [`crate::cni::plugin`].
    #[must_use]
    pub fn new(run_dir: &str, wait: std::time::Duration, exempt_namespaces: &[String]) -> Self {
        Self {
            plugin: PLUGIN,
            run_dir: run_dir.to_owned(),
            wait_seconds: wait.as_secs_f64(),
            exempt_namespaces: exempt_namespaces.to_vec(),
            // The kubelet takes a node that fails STATUS for not ready, and takes all its pods out of their Services: an
            // agent that restarts must not do that to pods that it does not touch otherwise.
            status_needs_agent: false,
        }
    }

    fn text(&self) -> String {
        // A struct of texts and finite numbers always has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Why a file is left alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("it is no JSON: {0}")]
    Json(String),
    #[error("it is no network configuration: {0}")]
    Shape(&'static str),
    #[error("its CNI version {0:?} is none that {PLUGIN} speaks")]
    Version(String),
    /// Without the entry there would be nothing.
    #[error("{PLUGIN} is its only plugin, and makes no interfaces")]
    Alone,
    #[error("it is no UTF-8 text")]
    Encoding,
    #[error("it cannot be edited without changing something else")]
    Edit,
}

impl Fault {
    /// No runtime can use such a file, either (libcni's ConfFromBytes and ConfListFromBytes refuse it). Of the others some
    /// can, only that our entry cannot be put in.
    pub(super) const fn is_everybodys(&self) -> bool {
        matches!(self, Self::Json(_) | Self::Shape(_))
    }
}

/// Puts our entry at the end of a list, in place of any that is there. None: it is there as it should be.
///
/// # Errors
/// The text is no list that a runtime would take, or none that our plugin can be in.
pub fn insert(text: &str, entry: &Entry) -> Result<Option<String>, Fault> {
    let list = parse(text)?;
    check_list(&list)?;
    let plugins = plugins(&list)?;
    let wanted: Value = serde_json::to_value(entry).map_err(|error| Fault::Json(error.to_string()))?;
    let ours = plugins.iter().filter(|plugin| is_ours(plugin)).count();
    if ours == 1 && plugins.last() == Some(&wanted) {
        return Ok(None);
    }
    let without = remove(text)?;
    let text = without.as_deref().unwrap_or(text);
    let spans = elements(text)?;
    let Some(last) = spans.last() else {
        return Err(Fault::Shape("it has no plugins"));
    };
    // The entry begins as the one before it does: on a line of its own, or not.
    let lead = text[..last.start].trim_end_matches([' ', '\t', '\n', '\r']).len();
    let lead = &text[lead..last.start];
    let edited = [&text[..last.end], ",", lead, &entry.text(), &text[last.end..]].concat();
    // Whatever else may be wrong with the above: a list that a runtime cannot read starts no pods.
    let mut expected: Vec<&Value> = plugins.iter().filter(|plugin| !is_ours(plugin)).collect();
    expected.push(&wanted);
    confirm(&edited, &list, &expected)?;
    Ok(Some(edited))
}

/// Takes our entry out. None: there is none.
///
/// # Errors
/// The text is no list; nothing would be left of it.
pub fn remove(text: &str) -> Result<Option<String>, Fault> {
    let list = parse(text)?;
    let Some(Value::Array(plugins)) = list.get("plugins") else {
        return Ok(None);
    };
    let others: Vec<&Value> = plugins.iter().filter(|plugin| !is_ours(plugin)).collect();
    if others.len() == plugins.len() {
        return Ok(None);
    }
    if others.is_empty() {
        return Err(Fault::Alone);
    }
    let mut edited = text.to_owned();
    while let Some(index) = plugins_of(&edited)?.iter().position(is_ours) {
        let spans = elements(&edited)?;
        let range = match (
            index.checked_sub(1).and_then(|before| spans.get(before)),
            spans.get(index),
        ) {
            (Some(before), Some(ours)) => before.end..ours.end,
            (None, Some(ours)) => ours.start..spans.get(index + 1).map_or(ours.end, |next| next.start),
            _ => return Err(Fault::Edit),
        };
        edited.replace_range(range, "");
    }
    confirm(&edited, &list, &others)?;
    Ok(Some(edited))
}

/// Whether the text speaks of our plugin at all, also where it cannot be read.
#[must_use]
pub fn mentions(text: &[u8]) -> bool {
    text.windows(PLUGIN.len()).any(|window| window == PLUGIN.as_bytes())
}

/// Whether a runtime may call our plugin for this text: an object somewhere in it is of our type, or it speaks of the
/// plugin and cannot be read.
#[must_use]
pub fn still_names(text: &[u8]) -> bool {
    fn within(value: &Value) -> bool {
        is_ours(value)
            || match value {
                Value::Array(items) => items.iter().any(within),
                Value::Object(fields) => fields.values().any(within),
                _ => false,
            }
    }
    match serde_json::from_slice(text) {
        Ok(value) => within(&value),
        Err(_) => mentions(text),
    }
}

/// The list that a runtime makes of a single plugin's configuration (libcni's ConfListFromConf), with our entry.
///
/// # Errors
/// The text is no configuration of a plugin that a runtime would take.
pub fn wrap(text: &str, entry: &Entry) -> Result<String, Fault> {
    let plugin = parse(text)?;
    if is_ours(&Value::Object(plugin.clone())) {
        return Err(Fault::Alone);
    }
    if plugin.get("type").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(Fault::Shape("it has no type"));
    }
    check_list(&plugin)?;
    let field = |name: &str| plugin.get(name).map(Value::to_string).unwrap_or_default();
    Ok(format!(
        "{{\n  \"cniVersion\": {},\n  \"name\": {},\n  \"plugins\": [\n{},\n{}\n  ]\n}}\n",
        field("cniVersion"),
        field("name"),
        text.trim(),
        entry.text()
    ))
}

fn parse(text: &str) -> Result<Map<String, Value>, Fault> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(Fault::Shape("it is no object")),
        Err(error) => Err(Fault::Json(error.to_string())),
    }
}

/// What every runtime asks of a list, and that whichever version it chooses of it is one that we speak.
fn check_list(list: &Map<String, Value>) -> Result<(), Fault> {
    if list.get("name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(Fault::Shape("it has no name"));
    }
    let version = list.get("cniVersion").map_or(Some(""), Value::as_str);
    let mut versions: Vec<&str> = vec![version.ok_or(Fault::Shape("cniVersion is no text"))?];
    for more in list.get("cniVersions").and_then(Value::as_array).into_iter().flatten() {
        let more = more.as_str().ok_or(Fault::Shape("cniVersions are no texts"))?;
        // Those that we do not speak because they are old are never chosen beside one that we do.
        if !matches!(more, "0.1.0" | "0.2.0") {
            versions.push(more);
        }
    }
    match versions.iter().find(|version| !VERSIONS.contains(version)) {
        Some(foreign) => Err(Fault::Version((*foreign).to_owned())),
        None => Ok(()),
    }
}

fn plugins(list: &Map<String, Value>) -> Result<&Vec<Value>, Fault> {
    let plugins = list
        .get("plugins")
        .and_then(Value::as_array)
        .ok_or(Fault::Shape("it has no list of plugins"))?;
    if plugins.is_empty() {
        return Err(Fault::Shape("it has no plugins"));
    }
    let typed = |plugin: &Value| {
        plugin
            .get("type")
            .and_then(Value::as_str)
            .is_some_and(|kind| !kind.is_empty())
    };
    if !plugins.iter().all(typed) {
        return Err(Fault::Shape("a plugin has no type"));
    }
    Ok(plugins)
}

fn plugins_of(text: &str) -> Result<Vec<Value>, Fault> {
    match parse(text)?.remove("plugins") {
        Some(Value::Array(plugins)) => Ok(plugins),
        _ => Err(Fault::Shape("it has no list of plugins")),
    }
}

fn is_ours(plugin: &Value) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(PLUGIN)
}

/// The edited text says what it should: these plugins, and everything else as before.
fn confirm(edited: &str, before: &Map<String, Value>, plugins: &[&Value]) -> Result<(), Fault> {
    let mut after = parse(edited)?;
    let same = match after.remove("plugins") {
        Some(Value::Array(list)) => list.iter().collect::<Vec<_>>() == plugins,
        _ => false,
    };
    let mut before = before.clone();
    before.remove("plugins");
    if same && after == before {
        return Ok(());
    }
    Err(Fault::Edit)
}

/// Where the elements of the top-level list `plugins` are in a text that is known to be a JSON object.
fn elements(text: &str) -> Result<Vec<Range<usize>>, Fault> {
    let mut scanner = Scanner {
        text: text.as_bytes(),
        at: 0,
    };
    let mut found = None;
    scanner.items(|scanner| {
        let key = scanner.value();
        scanner.space();
        scanner.at += 1;
        scanner.space();
        let start = scanner.at;
        let value = scanner.value();
        // Of several of one name the last counts, for serde as for Go.
        if serde_json::from_slice::<String>(&scanner.text[key]).is_ok_and(|key| key == "plugins") {
            found = Some(start);
        }
        value
    });
    let start = found.ok_or(Fault::Shape("it has no list of plugins"))?;
    scanner.at = start;
    Ok(scanner.items(Scanner::value))
}

/// Finds ends of values in valid JSON. On anything else it stops somewhere within the text.
struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn byte(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.byte().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// The items of the object or list that begins here.
    fn items(&mut self, mut item: impl FnMut(&mut Self) -> Range<usize>) -> Vec<Range<usize>> {
        let mut items = Vec::new();
        self.space();
        self.at += 1;
        loop {
            self.space();
            match self.byte() {
                None | Some(b']' | b'}') => return items,
                Some(b',') => self.at += 1,
                Some(_) => items.push(item(self)),
            }
        }
    }

    /// Goes to the end of the value that begins here.
    fn value(&mut self) -> Range<usize> {
        let start = self.at;
        let mut depth = 0usize;
        while let Some(byte) = self.byte() {
            match byte {
                b'"' => self.string(),
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    // The end of what this value is in.
                    if depth == 0 {
                        break;
                    }
                    depth -= 1;
                    self.at += 1;
                }
                b',' if depth == 0 => break,
                byte if depth == 0 && byte.is_ascii_whitespace() => break,
                _ if depth == 0 => {
                    while self
                        .byte()
                        .is_some_and(|byte| !byte.is_ascii_whitespace() && !b",]}".contains(&byte))
                    {
                        self.at += 1;
                    }
                    break;
                }
                _ => self.at += 1,
            }
            if depth == 0 {
                break;
            }
        }
        // Never without an advance, whatever the text.
        self.at = self.at.max(start + 1).min(self.text.len());
        start..self.at
    }

    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.byte() {
            self.at += 1;
            match byte {
                b'\\' => self.at += 1,
                b'"' => return,
                _ => {}
            }
        }
    }
}
