//! Objects' texts, read without what no policy can ask for: managed fields, most of a pod, most of a status.
//!
//! What is left out is skipped as it is parsed and never held. What is kept has the form that the parsers in `api` read.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Which parts of a value are kept.
#[derive(Debug)]
pub(super) enum Shape {
    /// All of it.
    Any,
    /// Of a map, these members.
    Map(&'static [(&'static str, Shape)]),
    /// Of a map, all members; of these, only what their shapes say.
    Open(&'static [(&'static str, Shape)]),
    /// Of a list's elements.
    List(&'static Shape),
}

use Shape::{Any, List, Open};

/// The end of a streaming list is told by this annotation of a bookmark.
pub(super) const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// What every kind is known by. Annotations: those that the parsers read, and that of bookmarks.
const METADATA: Shape = Shape::Map(&[
    ("name", Any),
    ("namespace", Any),
    ("uid", Any),
    ("resourceVersion", Any),
    ("creationTimestamp", Any),
    ("deletionTimestamp", Any),
    ("labels", Any),
    (
        "annotations",
        Shape::Map(&[
            (INITIAL_EVENTS_END, Any),
            ("cni.projectcalico.org/allowedSourcePrefixes", Any),
            ("projectcalico.org/metadata", Any),
            ("kubernetes.io/config.hash", Any),
        ]),
    ),
    (
        "ownerReferences",
        List(&Shape::Map(&[("kind", Any), ("name", Any), ("controller", Any)])),
    ),
]);

const CONTAINER: Shape = Shape::Map(&[(
    "ports",
    List(&Shape::Map(&[("name", Any), ("protocol", Any), ("containerPort", Any)])),
)]);

pub(super) static POD: Shape = Shape::Map(&[
    ("apiVersion", Any),
    ("kind", Any),
    ("metadata", METADATA),
    (
        "spec",
        Shape::Map(&[
            ("nodeName", Any),
            ("hostNetwork", Any),
            ("serviceAccountName", Any),
            ("serviceAccount", Any),
            ("containers", List(&CONTAINER)),
            ("initContainers", List(&CONTAINER)),
        ]),
    ),
    ("status", Shape::Map(&[("phase", Any), ("podIP", Any), ("podIPs", Any)])),
]);

pub(super) static NODE: Shape = Shape::Map(&[
    ("apiVersion", Any),
    ("kind", Any),
    ("metadata", METADATA),
    ("status", Shape::Map(&[("addresses", Any)])),
]);

pub(super) static METADATA_OF: Shape = Shape::Map(&[("apiVersion", Any), ("kind", Any), ("metadata", METADATA)]);

pub(super) static SERVICE: Shape = Shape::Map(&[
    ("apiVersion", Any),
    ("kind", Any),
    ("metadata", METADATA),
    (
        "spec",
        Shape::Map(&[
            ("clusterIP", Any),
            ("clusterIPs", Any),
            ("externalIPs", Any),
            ("ports", Any),
        ]),
    ),
    ("status", Shape::Map(&[("loadBalancer", Any)])),
]);

pub(super) static ENDPOINT_SLICE: Shape = Shape::Map(&[
    ("apiVersion", Any),
    ("kind", Any),
    ("metadata", METADATA),
    ("addressType", Any),
    ("endpoints", List(&Shape::Map(&[("addresses", Any)]))),
    ("ports", Any),
]);

/// All of it but metadata: what is not known there may change what the policy means, and is told.
pub(super) static POLICY: Shape = Open(&[("metadata", METADATA), ("status", Shape::Map(&[]))]);

/// A value of a shape.
#[derive(Clone, Copy)]
pub(super) struct Of(pub(super) &'static Shape);

impl<'de> DeserializeSeed<'de> for Of {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Of {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<Key<'de>>()? {
            let shape = match self.0 {
                Shape::Map(fields) | Shape::Open(fields) => fields
                    .iter()
                    .find(|(field, _)| *field == key.0)
                    .map(|(_, shape)| shape)
                    .or(matches!(self.0, Shape::Open(_)).then_some(&Any)),
                Shape::Any | Shape::List(_) => Some(&Any),
            };
            match shape {
                Some(shape) => {
                    let value = map.next_value_seed(Of(shape))?;
                    out.insert(key.0.into_owned(), value);
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(out))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let shape = match self.0 {
            List(shape) => shape,
            _ => &Any,
        };
        let mut out = Vec::new();
        while let Some(value) = list.next_element_seed(Of(shape))? {
            out.push(value);
        }
        Ok(Value::Array(out))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::String(text.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number that is none"))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

/// A member's name, borrowed where its text needs no decoding.
struct Key<'de>(std::borrow::Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl<'de> Visitor<'de> for KeyVisitor {
            type Value = Key<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member's name")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Key<'de>, E> {
                Ok(Key(text.into()))
            }

            fn visit_str<E>(self, text: &str) -> Result<Key<'de>, E> {
                Ok(Key(text.to_owned().into()))
            }
        }
        deserializer.deserialize_str(KeyVisitor)
    }
}

/// One line of a watch.
#[derive(Debug, PartialEq)]
pub(super) struct Line {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    pub(super) event: String,
    pub(super) object: Value,
}

/// Reads a line of a watch, of the object what its shape keeps; of an `ERROR`, all.
pub(super) fn line(text: &[u8], shape: &'static Shape) -> serde_json::Result<Line> {
    let line = read(text, shape)?;
    // What an error says is not of the shape.
    if line.event == "ERROR" {
        read(text, &Any)
    } else {
        Ok(line)
    }
}

fn read(text: &[u8], shape: &'static Shape) -> serde_json::Result<Line> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let line = LineVisitor(shape).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(line)
}

struct LineVisitor(&'static Shape);

impl<'de> DeserializeSeed<'de> for LineVisitor {
    type Value = Line;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Line, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for LineVisitor {
    type Value = Line;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event of a watch")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Line, A::Error> {
        let (mut event, mut object) = (None, None);
        while let Some(key) = map.next_key::<Key<'de>>()? {
            match &*key.0 {
                "type" => event = Some(map.next_value()?),
                "object" => object = Some(map.next_value_seed(Of(self.0))?),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Line {
            event: event.ok_or_else(|| A::Error::missing_field("type"))?,
            object: object.ok_or_else(|| A::Error::missing_field("object"))?,
        })
    }
}

/// One page of a list.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Page {
    pub(super) version: String,
    /// How to ask for the next page. Empty: this is the last.
    pub(super) next: String,
    pub(super) items: Vec<Value>,
}

/// Reads one page of a list, of each item what its shape keeps.
pub(super) fn page(text: &[u8], shape: &'static Shape) -> serde_json::Result<Page> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let page = PageVisitor(shape).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(page)
}

struct PageVisitor(&'static Shape);

impl<'de> DeserializeSeed<'de> for PageVisitor {
    type Value = Page;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Page, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PageVisitor {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Page, A::Error> {
        #[derive(Default, serde::Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct ListMeta {
            resource_version: String,
            r#continue: String,
        }
        let mut page = Page::default();
        while let Some(key) = map.next_key::<Key<'de>>()? {
            match &*key.0 {
                "metadata" => {
                    let metadata: ListMeta = map.next_value()?;
                    page.version = metadata.resource_version;
                    page.next = metadata.r#continue;
                }
                "items" => page.items = map.next_value_seed(Items(self.0))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(page)
    }
}

struct Items(&'static Shape);

impl<'de> DeserializeSeed<'de> for Items {
    type Value = Vec<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Value>, D::Error> {
        // An empty list of Go's may be null.
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the items of a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<Value>, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = list.next_element_seed(Of(self.0))? {
            out.push(item);
        }
        Ok(out)
    }

    fn visit_unit<E>(self) -> Result<Vec<Value>, E> {
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web-1", "namespace": "shop", "uid": "u-1", "resourceVersion": "17",
                "labels": {"app": "web"},
                "annotations": {
                    "cni.projectcalico.org/allowedSourcePrefixes": "[]", "kubectl/last": "x".repeat(4000),
                    "kubernetes.io/config.hash": "0123456789abcdef0123456789abcdef",
                },
                "managedFields": [{"manager": "kubelet", "fieldsV1": {"f:status": {"f:phase": {}}}}],
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "controller": true, "uid": "u"}],
            },
            "spec": {
                "nodeName": "n1", "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 80, "hostIP": ""}]}],
            },
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "Ready"}]},
        })
    }

    fn trimmed() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web-1", "namespace": "shop", "uid": "u-1", "resourceVersion": "17",
                "labels": {"app": "web"},
                "annotations": {
                    "cni.projectcalico.org/allowedSourcePrefixes": "[]",
                    "kubernetes.io/config.hash": "0123456789abcdef0123456789abcdef",
                },
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "controller": true}],
            },
            "spec": {"nodeName": "n1", "containers": [{"ports": [{"name": "http", "containerPort": 80}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        })
    }

    #[test]
    fn of_a_pod_only_what_policies_can_ask_for_is_kept() {
        let text = json!({"type": "ADDED", "object": pod()}).to_string();
        let line = line(text.as_bytes(), &POD).expect("parses");
        assert_eq!((line.event.as_str(), line.object), ("ADDED", trimmed()));
    }

    #[test]
    fn a_trimmed_object_means_what_the_whole_one_means() {
        let mut parser = crate::api::Parser::new();
        let whole = parser.parse(&pod(), None);
        let lean = crate::api::Parser::of_validated().parse(&trimmed(), None);
        assert_eq!(whole.outcome, lean.outcome);
        assert_eq!(whole.key, lean.key);
    }

    #[test]
    fn of_a_policy_everything_but_metadata_is_kept() {
        let policy = json!({
            "metadata": {"name": "p", "managedFields": [1], "annotations": {"a": "b"}},
            "spec": {"podSelector": {}, "unheardOf": [{"x": null, "y": 1.5, "z": -3}]}, "more": true,
        });
        let text = json!({"object": policy, "type": "MODIFIED"}).to_string();
        let line = line(text.as_bytes(), &POLICY).expect("parses");
        assert_eq!(
            line.object,
            json!({
                "metadata": {"name": "p", "annotations": {}},
                "spec": {"podSelector": {}, "unheardOf": [{"x": null, "y": 1.5, "z": -3}]}, "more": true,
            })
        );
    }

    #[test]
    fn an_error_is_read_whole_whatever_the_shape() {
        let text = br#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old","metadata":{}}}"#;
        let line = line(text, &POD).expect("parses");
        assert_eq!(line.object["code"], 410);
        assert_eq!(line.object["message"], "too old");
    }

    #[test]
    fn values_of_an_unexpected_type_are_kept_for_the_parser_to_report() {
        let text = br#"{"type":"ADDED","object":{"metadata":7,"spec":["a"],"status":"b"}}"#;
        let line = line(text, &POD).expect("parses");
        assert_eq!(line.object, json!({"metadata": 7, "spec": ["a"], "status": "b"}));
    }

    #[test]
    fn pages_say_their_version_and_the_next_page() {
        let text = json!({
            "kind": "PodList", "items": [pod(), pod()],
            "metadata": {"resourceVersion": "99", "continue": "abc", "remainingItemCount": 4},
        });
        let read = page(text.to_string().as_bytes(), &POD).expect("parses");
        assert_eq!(
            read,
            Page {
                version: "99".to_owned(),
                next: "abc".to_owned(),
                items: vec![trimmed(), trimmed()]
            }
        );
        let empty = page(br#"{"items":null,"metadata":{"resourceVersion":"1"}}"#, &POD).expect("parses");
        assert!(empty.items.is_empty());
    }

    #[test]
    fn text_that_goes_on_after_its_end_or_ends_too_soon_is_refused() {
        for text in [
            &br#"{"type":"ADDED","object":{}} x"#[..],
            br#"{"type":"ADDED""#,
            br#"{"type":"ADDED"}"#,
            b"",
        ] {
            assert!(line(text, &POD).is_err());
        }
    }
}
