//! Any list: what goes in comes out again, and nothing else does.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    super::conflist::{self, Fault},
    entry, plugins,
};
use crate::cni::PLUGIN;

fn space() -> impl Strategy<Value = String> {
    "[ \t\n]{0,3}"
}

/// JSON values as texts, with spaces wherever they may be.
fn json_text() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("-1.5e3".to_owned()),
        Just("9007199254740993".to_owned()),
        any::<String>().prop_map(|text| Value::String(text).to_string()),
        Just(r#""\"plugins\": [\\""#.to_owned()),
        Just("\"]}\"".to_owned()),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec((space(), inner.clone(), space()), 0..4).prop_map(|items| {
                let items: Vec<String> = items.into_iter().map(|(a, item, b)| format!("{a}{item}{b}")).collect();
                format!("[{}]", items.join(","))
            }),
            prop::collection::vec((space(), any::<String>(), space(), inner, space()), 0..4).prop_map(|fields| {
                let fields: Vec<String> = fields
                    .into_iter()
                    .map(|(a, key, b, value, c)| format!("{a}{}{b}:{value}{c}", Value::String(key)))
                    .collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    })
}

fn plugin_text() -> impl Strategy<Value = String> {
    (space(), "[a-z]{1,8}", space(), json_text(), space())
        .prop_map(|(a, kind, b, more, c)| format!(r#"{a}{{"type":{b}"{kind}","plugins":{more}{c}}}{a}"#))
}

fn list_text() -> impl Strategy<Value = String> {
    let fields = prop::collection::vec((space(), "x[a-z\"\\\\]{0,6}", json_text()), 0..4);
    let plugins = prop::collection::vec(plugin_text(), 1..4);
    (space(), fields, plugins, any::<prop::sample::Index>(), space()).prop_map(|(a, fields, plugins, at, b)| {
        let mut parts: Vec<String> = fields
            .into_iter()
            .map(|(space, key, value)| format!("{space}{}{space}:{value}", Value::String(key)))
            .collect();
        parts.push(format!(r#"{a}"cniVersion" : "1.0.0""#));
        parts.push(format!(r#""name":{b}"n"{b}"#));
        let at = at.index(parts.len() + 1);
        parts.insert(at, format!(r#""plugins"{a}:{b}[{}]{a}"#, plugins.join(",")));
        format!("{a}{{{}}}{b}", parts.join(","))
    })
}

proptest! {
    #[test]
    fn out_gives_back_what_was_there_before_in(text in list_text()) {
        let edited = conflist::insert(&text, &entry()).expect("a list").expect("an edit");
        prop_assert_eq!(plugins(&edited).pop(), Some(PLUGIN.to_owned()));
        prop_assert_eq!(conflist::insert(&edited, &entry()).expect("a list"), None);
        prop_assert_eq!(conflist::remove(&edited).expect("a list"), Some(text.clone()));
        prop_assert_eq!(conflist::remove(&text).expect("a list"), None);
    }

    #[test]
    fn wherever_others_have_moved_it_only_ours_is_taken_out(text in list_text(), at in any::<prop::sample::Index>()) {
        let mut list: Value = serde_json::from_str(&text).expect("JSON");
        let others = list.clone();
        let plugins = list["plugins"].as_array_mut().expect("plugins");
        let at = at.index(plugins.len() + 1);
        plugins.insert(at, json!({"type": PLUGIN, "old": true}));
        plugins.push(json!({"type": PLUGIN}));
        let pretty = serde_json::to_string_pretty(&list).expect("JSON");
        let removed = conflist::remove(&pretty).expect("a list").expect("an edit");
        prop_assert_eq!(serde_json::from_str::<Value>(&removed).expect("JSON"), others);
        let inserted = conflist::insert(&pretty, &entry()).expect("a list").expect("an edit");
        prop_assert_eq!(conflist::remove(&inserted).expect("a list"), Some(removed));
    }

    #[test]
    fn no_text_is_too_strange(text in any::<String>(), cut in any::<prop::sample::Index>(), list in list_text()) {
        let _ = conflist::insert(&text, &entry());
        let _ = conflist::wrap(&text, &entry());
        let cut = (0..=list.len()).filter(|at| list.is_char_boundary(*at)).nth(cut.index(list.chars().count())).unwrap_or(0);
        let _ = conflist::insert(&list[..cut], &entry());
        let _ = conflist::remove(&list[..cut]);
    }
}

#[test]
fn the_last_of_several_lists_of_plugins_is_the_one_that_counts() {
    let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a"}],"plugins":[{"type":"b"}]}"#;
    let edited = conflist::insert(text, &entry()).expect("a list").expect("an edit");
    assert_eq!(plugins(&edited), ["b", PLUGIN]);
    assert_eq!(conflist::remove(&edited), Ok(Some(text.to_owned())));
    assert_eq!(
        conflist::insert(r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, &entry()),
        Err(Fault::Shape("it has no list of plugins"))
    );
}
