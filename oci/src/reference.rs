//! Names of images.

use std::{fmt, str::FromStr};

/// A full name: registry, repository and tag.
///
/// Nothing is left to defaults. Docker and kubelet read `weir:1` as `docker.io/library/weir:1`, while an import would
/// store it as it stands, and the two would never meet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference(String);

/// Why a text is no full name of an image.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is no full name of an image: {reason}; write REGISTRY/REPOSITORY:TAG, as in localhost/weir:1.0")]
pub struct NoReference {
    text: String,
    reason: &'static str,
}

impl Reference {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Reference {
    type Err = NoReference;

    /// Grammar: <https://github.com/distribution/reference/blob/v0.6.0/reference.go>.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check(text).map_or_else(
            |reason| {
                Err(NoReference {
                    text: text.to_owned(),
                    reason,
                })
            },
            |()| Ok(Self(text.to_owned())),
        )
    }
}

fn check(text: &str) -> Result<(), &'static str> {
    let Some((registry, rest)) = text.split_once('/') else {
        return Err("it names no registry");
    };
    let registry_byte = |byte: u8| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte);
    if registry.is_empty() || !registry.bytes().all(registry_byte) {
        return Err("the registry is no host name");
    }
    if registry != "localhost" && !registry.contains(['.', ':']) {
        return Err("the part before the first slash is no registry");
    }
    let Some((repository, tag)) = rest.split_once(':') else {
        return Err("it has no tag");
    };
    let repository_byte = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    let component = |part: &str| {
        part.bytes().all(repository_byte)
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    if !repository.split('/').all(component) {
        return Err("the repository may have lower-case letters, digits, and . _ - between them");
    }
    let tag_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if tag.is_empty() || tag.len() > 128 || !tag.bytes().all(tag_byte) || tag.starts_with(['.', '-']) {
        return Err("the tag may have up to 128 letters, digits, and . _ -");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Reference;

    #[test]
    fn full_names_are_taken() {
        for name in [
            "localhost/weir:0.1.0",
            "registry.example:5000/a/b-c/d_e:v1.2-rc.3",
            "ghcr.io/weir/weir:0.1.0",
            "registry.k8s.io/e2e-test-images/agnhost:2.53",
        ] {
            assert_eq!(
                name.parse::<Reference>().map(|r| r.to_string()).ok().as_deref(),
                Some(name)
            );
        }
    }

    #[test]
    fn what_would_be_completed_by_defaults_is_refused() {
        for (name, reason) in [
            ("weir:1", "no registry"),
            ("weir/weir:1", "no registry"),
            ("localhost/weir", "no tag"),
            ("localhost/Weir:1", "repository"),
            ("localhost/weir:", "tag"),
            ("localhost/weir:1@sha256:00", "tag"),
            ("/weir:1", "host name"),
            ("localhost//weir:1", "repository"),
        ] {
            let error = name
                .parse::<Reference>()
                .map_or_else(|error| error.to_string(), |_| String::new());
            assert!(error.contains(reason), "{name}: {error}");
        }
    }
}
