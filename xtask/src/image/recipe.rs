//! What is in the image. `deploy/Dockerfile` says the same for those who build with Docker; a test compares the two.

use anyhow::{Context as _, Result};
use weir_oci::{Image, Layer, Platform, Reference};

/// Where a file comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The static binary.
    Binary,
    /// A file of the repository, by its path there.
    Repository(&'static str),
}

const FILES: [(&str, u32, Source); 2] = [
    ("/usr/bin/weir", 0o755, Source::Binary),
    ("/LICENSE", 0o644, Source::Repository("LICENSE")),
];

const ENTRYPOINT: &str = "/usr/bin/weir";

/// So that `kubectl exec … -- weir status` finds it.
const ENVIRONMENT: [(&str, &str); 1] = [("PATH", "/usr/bin")];

const LABELS: [(&str, &str); 3] = [
    ("org.opencontainers.image.title", "weir"),
    (
        "org.opencontainers.image.description",
        "Kubernetes node agent that enforces network policy with eBPF",
    ),
    ("org.opencontainers.image.licenses", "Apache-2.0"),
];

/// What the image is called where nothing else is asked for; the chart's default.
pub fn default_name() -> Result<Reference> {
    let name = concat!("localhost/weir:", env!("CARGO_PKG_VERSION"));
    name.parse().context("this version makes no name of an image")
}

/// The image, with the contents that `content` has of the files.
pub fn image(
    platform: Platform,
    names: &[Reference],
    mut content: impl FnMut(Source) -> Result<Vec<u8>>,
) -> Result<Image> {
    let mut layer = Layer::default();
    for (path, mode, source) in FILES {
        layer.file(path, mode, content(source)?)?;
    }
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    Ok(Image {
        references: names.to_vec(),
        platform,
        entrypoint: vec![ENTRYPOINT.to_owned()],
        command: Vec::new(),
        environment: ENVIRONMENT.map(owned).into(),
        labels: LABELS.map(owned).into(),
        layer,
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fs};

    use weir_oci::Platform;

    use super::{ENTRYPOINT, ENVIRONMENT, FILES, LABELS, Source, default_name, image};
    use crate::workspace;

    /// What `deploy/Dockerfile` puts into an image.
    #[derive(Debug, Default, PartialEq)]
    struct Built {
        from: String,
        /// Mode and source by path.
        files: BTreeMap<String, (u32, String)>,
        entrypoint: Vec<String>,
        environment: BTreeMap<String, String>,
        labels: BTreeMap<String, String>,
    }

    fn dockerfile() -> Built {
        let text = fs::read_to_string(workspace::root().join("deploy/Dockerfile")).unwrap();
        let text = text.replace("\\\n", " ");
        let mut built = Built::default();
        let pair = |text: &str| {
            let (name, value) = text.trim().split_once('=').expect("NAME=VALUE");
            (name.to_owned(), value.trim_matches('"').to_owned())
        };
        let lines = text.lines().map(str::trim);
        for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (instruction, rest) = line.split_once(' ').expect("an instruction has arguments");
            match instruction {
                "ARG" => {}
                "FROM" => built.from = rest.to_owned(),
                "COPY" => {
                    let words: Vec<_> = rest.split_whitespace().collect();
                    let [mode, source, path] = words[..] else {
                        panic!("COPY --chmod=MODE SOURCE PATH, not {line:?}");
                    };
                    let mode = mode.strip_prefix("--chmod=").expect("a mode of its own");
                    let mode = u32::from_str_radix(mode, 8).unwrap();
                    built.files.insert(path.to_owned(), (mode, source.to_owned()));
                }
                "ENV" => built.environment.extend([pair(rest)]),
                "LABEL" => built.labels.extend([pair(rest)]),
                "ENTRYPOINT" => {
                    let list = rest.trim_matches(['[', ']']);
                    built.entrypoint = list
                        .split(',')
                        .map(|word| word.trim().trim_matches('"').to_owned())
                        .collect();
                }
                _ => panic!("what does {line:?} add to the image?"),
            }
        }
        built
    }

    #[test]
    fn the_dockerfile_makes_the_same_image() {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let source = |source| match source {
            Source::Binary => "${BINARY}",
            Source::Repository(path) => path,
        };
        let ours = Built {
            from: "scratch".into(),
            files: FILES
                .map(|(path, mode, from)| (path.to_owned(), (mode, source(from).to_owned())))
                .into(),
            entrypoint: vec![ENTRYPOINT.into()],
            environment: ENVIRONMENT.map(owned).into(),
            labels: LABELS.map(owned).into(),
        };
        assert_eq!(dockerfile(), ours);
    }

    /// The layer of an image is a function of the files alone.
    #[test]
    fn two_images_of_one_binary_have_one_digest() {
        let digest = || {
            let content = |source| {
                Ok(match source {
                    Source::Binary => (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect(),
                    Source::Repository(path) => fs::read(workspace::root().join(path))?,
                })
            };
            let image = image(Platform::LinuxAmd64, &[default_name().unwrap()], content).unwrap();
            let mut archive = Vec::new();
            (image.write(&mut archive).unwrap(), archive)
        };
        let (one, other) = (digest(), digest());
        assert_eq!(one.0, other.0);
        assert!(one.1 == other.1, "two archives of one image differ");
    }

    /// The chart asks for the image under the name that `cargo xtask image` gives it.
    #[test]
    fn the_chart_asks_for_the_default_name() {
        let read = |path: &str| fs::read_to_string(workspace::root().join("deploy/helm/weir").join(path)).unwrap();
        let value = |text: &str, key: &str| {
            text.lines()
                .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": ").map(str::to_owned))
                .unwrap_or_else(|| panic!("{key} is missing"))
                .trim_matches('"')
                .to_owned()
        };
        let name = format!(
            "{}:{}",
            value(&read("values.yaml"), "repository"),
            value(&read("Chart.yaml"), "appVersion")
        );
        assert_eq!(name, default_name().unwrap().to_string());
    }
}
