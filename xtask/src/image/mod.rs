//! `cargo xtask image`: the container image.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use weir_oci::{Digest, Platform, Reference};

use crate::{
    setup::{self, Verb},
    workspace,
};

mod binary;
mod recipe;

#[derive(clap::Args)]
pub struct Arguments {
    /// Where to write the archive; `ctr -n k8s.io images import`, `kind load image-archive`, `minikube image load` and
    /// `docker load` take it
    #[arg(long, value_name = "FILE.tar")]
    output: PathBuf,

    /// What the image runs on: linux/amd64 or linux/arm64 [default: this machine]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,

    /// Full name of the image, with registry and tag; may be given several times [default: localhost/weir:VERSION]
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<Reference>,
}

/// What an image may weigh, in bytes: a new node pulls it before its first pod starts.
const LARGEST: u64 = 30_000_000;

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Image)?;
    let platform = match arguments.platform.or(Platform::host()) {
        Some(platform) => platform,
        None => bail!("there are no images for this machine; choose one with --platform"),
    };
    let names = if arguments.names.is_empty() {
        vec![recipe::default_name()?]
    } else {
        arguments.names.clone()
    };
    let digest = write(&arguments.output, platform, &names)?;
    for name in names {
        println!("{name} {platform} {digest}");
    }
    Ok(())
}

/// Writes the image for this machine, under the name that the chart expects.
pub fn default(output: &Path) -> Result<()> {
    let platform = Platform::host().context("there are no images for this machine")?;
    write(output, platform, &[recipe::default_name()?])?;
    Ok(())
}

/// Builds the binary, writes the archive with it, and returns the digest of the image.
fn write(output: &Path, platform: Platform, names: &[Reference]) -> Result<Digest> {
    let binary = binary::build(platform)?;
    let read = |file: &Path| fs::read(file).with_context(|| format!("reading {}", file.display()));
    let content = |source: recipe::Source| match source {
        recipe::Source::Binary => read(&binary),
        recipe::Source::Repository(path) => read(&workspace::root().join(path)),
    };
    let image = recipe::image(platform, names, content)?;

    let wrote = || format!("writing {}", output.display());
    let mut file = BufWriter::new(File::create(output).with_context(wrote)?);
    let digest = image.write(&mut file).with_context(wrote)?;
    file.flush().with_context(wrote)?;
    let size = fs::metadata(output).with_context(wrote)?.len();
    ensure!(
        size <= LARGEST,
        "the image is too large: {size} bytes, where {LARGEST} are allowed"
    );
    Ok(digest)
}
