//! CustomResourceDefinitions of the stored kinds, for clusters in which Calico never was.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceValidation, JSONSchemaProps,
    JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

use super::{
    STORED,
    schema::{
        Field, GLOBAL_NETWORK_POLICY, NETWORK_POLICY, NETWORK_SET, STAGED_GLOBAL_NETWORK_POLICY,
        STAGED_KUBERNETES_POLICY, STAGED_NETWORK_POLICY, Shape, TIER,
    },
};
use crate::api::registry::Kind;

/// What a kind's spec holds, and what the kind is for.
fn spec(kind: &str) -> Option<(&'static Shape, &'static str)> {
    Some(match kind {
        "NetworkPolicy" => (
            &NETWORK_POLICY,
            "Rules for the pods of one namespace, in a tier, in order.",
        ),
        "GlobalNetworkPolicy" => (
            &GLOBAL_NETWORK_POLICY,
            "Rules for pods of all namespaces, in a tier, in order.",
        ),
        "StagedNetworkPolicy" => (
            &STAGED_NETWORK_POLICY,
            "A NetworkPolicy that is not enforced: flow records say what it would do.",
        ),
        "StagedGlobalNetworkPolicy" => (
            &STAGED_GLOBAL_NETWORK_POLICY,
            "A GlobalNetworkPolicy that is not enforced: flow records say what it would do.",
        ),
        "StagedKubernetesNetworkPolicy" => (
            &STAGED_KUBERNETES_POLICY,
            "A Kubernetes NetworkPolicy that is not enforced: flow records say what it would do.",
        ),
        "Tier" => (&TIER, "A group of policies, which comes before or after others."),
        "NetworkSet" => (
            &NETWORK_SET,
            "Addresses that policies select by the labels of this object, in its namespace.",
        ),
        "GlobalNetworkSet" => (
            &NETWORK_SET,
            "Addresses that policies select by the labels of this object.",
        ),
        _ => return None,
    })
}

/// One definition for each kind, as Calico's own are called, so that each stands for the other.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    STORED
        .iter()
        .filter_map(|kind| spec(kind.kind).map(|(shape, about)| definition(kind, shape, about)))
        .collect()
}

fn definition(kind: &Kind, shape: &'static Shape, about: &str) -> CustomResourceDefinition {
    let singular = kind.kind.to_lowercase();
    let plural = match singular.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{singular}s"),
    };
    let versions = kind.versions.iter().map(|version| CustomResourceDefinitionVersion {
        name: (*version).to_owned(),
        served: true,
        storage: true,
        schema: Some(CustomResourceValidation {
            open_api_v3_schema: Some(object(shape, about)),
        }),
        additional_printer_columns: Some(columns(shape)),
        ..CustomResourceDefinitionVersion::default()
    });
    let mut definition = CustomResourceDefinition {
        spec: CustomResourceDefinitionSpec {
            group: kind.group.to_owned(),
            names: CustomResourceDefinitionNames {
                kind: kind.kind.to_owned(),
                list_kind: Some(format!("{}List", kind.kind)),
                plural: plural.clone(),
                singular: Some(singular),
                ..CustomResourceDefinitionNames::default()
            },
            scope: if kind.namespaced { "Namespaced" } else { "Cluster" }.to_owned(),
            versions: versions.collect(),
            ..CustomResourceDefinitionSpec::default()
        },
        ..CustomResourceDefinition::default()
    };
    definition.metadata.name = Some(format!("{plural}.{}", kind.group));
    definition
}

/// What `kubectl get` shows.
fn columns(shape: &Shape) -> Vec<CustomResourceColumnDefinition> {
    const COLUMNS: [(&str, &str, &str); 3] = [
        ("tier", "Tier", "string"),
        ("order", "Order", "number"),
        ("defaultAction", "Default", "string"),
    ];
    let Shape::Map(fields) = shape else {
        return Vec::new();
    };
    let has = |name: &str| fields.iter().any(|field| field.name == name);
    let column = |path: String, name: &str, type_: &str| CustomResourceColumnDefinition {
        json_path: path,
        name: name.to_owned(),
        type_: type_.to_owned(),
        ..CustomResourceColumnDefinition::default()
    };
    let own = COLUMNS.iter().filter(|(field, ..)| has(field));
    own.map(|(field, name, type_)| column(format!(".spec.{field}"), name, type_))
        .chain([column(".metadata.creationTimestamp".to_owned(), "Age", "date")])
        .collect()
}

/// The whole object.
fn object(spec: &Shape, about: &str) -> JSONSchemaProps {
    let text = |about: &str| described(of_type("string"), about);
    JSONSchemaProps {
        properties: Some(
            [
                ("apiVersion", text("Group and version of the API.")),
                ("kind", text("The kind of object.")),
                ("metadata", of_type("object")),
                ("spec", schema(spec)),
            ]
            .map(|(name, schema)| (name.to_owned(), schema))
            .into(),
        ),
        ..described(of_type("object"), about)
    }
}

/// OpenAPI's words for a shape.
/// <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>
fn schema(shape: &Shape) -> JSONSchemaProps {
    match shape {
        Shape::Foreign => JSONSchemaProps::default(),
        Shape::Boolean => of_type("boolean"),
        Shape::Integer(least, most) => JSONSchemaProps {
            minimum: Some((*least).into()),
            maximum: Some((*most).into()),
            ..of_type("integer")
        },
        Shape::Number => of_type("number"),
        Shape::Text => of_type("string"),
        Shape::Bounded(most) => JSONSchemaProps {
            max_length: limit(*most),
            ..of_type("string")
        },
        Shape::Pattern(pattern) => JSONSchemaProps {
            pattern: Some((*pattern).to_owned()),
            ..of_type("string")
        },
        Shape::IntOrText => JSONSchemaProps {
            any_of: Some(vec![of_type("integer"), of_type("string")]),
            x_kubernetes_int_or_string: Some(true),
            ..JSONSchemaProps::default()
        },
        Shape::Texts => JSONSchemaProps {
            additional_properties: Some(JSONSchemaPropsOrBool::Schema(Box::new(of_type("string")))),
            ..of_type("object")
        },
        Shape::Map(fields) => {
            let own = || fields.iter().filter(|field| !matches!(field.shape, Shape::Foreign));
            let required: Vec<String> = own().filter(|field| field.required).map(name).collect();
            JSONSchemaProps {
                properties: Some(
                    own()
                        .map(|field| (name(field), described(schema(&field.shape), field.about)))
                        .collect(),
                ),
                required: (!required.is_empty()).then_some(required),
                ..of_type("object")
            }
        }
        Shape::List(shape, most) => JSONSchemaProps {
            items: Some(JSONSchemaPropsOrArray::Schema(Box::new(schema(shape)))),
            max_items: most.and_then(limit),
            ..of_type("array")
        },
    }
}

fn name(field: &Field) -> String {
    field.name.to_owned()
}

fn limit(most: usize) -> Option<i64> {
    i64::try_from(most).ok()
}

fn of_type(name: &str) -> JSONSchemaProps {
    JSONSchemaProps {
        type_: Some(name.to_owned()),
        ..JSONSchemaProps::default()
    }
}

fn described(schema: JSONSchemaProps, about: &str) -> JSONSchemaProps {
    JSONSchemaProps {
        description: Some(about.to_owned()),
        ..schema
    }
}

/// The definitions as files: name and text.
///
/// # Errors
/// If one cannot be written as YAML.
pub fn files() -> Result<Vec<(String, String)>, serde_saphyr::ser::Error> {
    definitions()
        .iter()
        .map(|definition| {
            let names = &definition.spec.names;
            let file = format!("{}_{}.yaml", definition.spec.group, names.plural);
            let text = serde_saphyr::to_string(definition)?;
            Ok((file, format!("# Made by `cargo xtask crds`.\n{text}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::{STORED, files, spec};

    #[test]
    fn every_stored_kind_has_a_definition() {
        for kind in &STORED {
            assert!(spec(kind.kind).is_some(), "{} has none", kind.kind);
        }
    }

    /// Also that no other file is there.
    #[test]
    fn the_committed_definitions_are_the_generated_ones() {
        let generated = files().expect("YAML");
        for dir in ["deploy/crds", "deploy/helm/weir/crds"] {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(dir);
            let mut committed: Vec<String> = fs::read_dir(&dir)
                .expect("the directory is there")
                .map(|entry| entry.expect("readable").file_name().into_string().expect("UTF-8"))
                .filter(|name| name != "kustomization.yaml")
                .collect();
            committed.sort();
            let mut names: Vec<&String> = generated.iter().map(|(name, _)| name).collect();
            names.sort();
            assert_eq!(committed.iter().collect::<Vec<_>>(), names, "in {}", dir.display());
            for (name, text) in &generated {
                let committed = fs::read_to_string(dir.join(name)).expect("readable");
                assert!(
                    committed == *text,
                    "{} is out of date: run `cargo xtask crds`",
                    dir.join(name).display()
                );
            }
        }
    }
}
