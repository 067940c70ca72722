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
mod elf;
mod recipe;
mod verify;

#[derive(clap::Args)]
pub struct Arguments {
    /// Where to write the archive; `ctr -n k8s.io images import`, `kind load image-archive`, `minikube image load` and
    /// `docker load` take it
    #[arg(long, value_name = "FILE.tar", required_unless_present = "verify")]
    output: Option<PathBuf>,

    /// What the image runs on: linux/amd64 or linux/arm64 [default: this machine]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,

    /// Full name of the image, with registry and tag; may be given several times [default: localhost/weir:VERSION]
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<Reference>,

    /// Write none: build what is committed twice, in different directories, and fail if the images differ (takes two
    /// whole builds)
    #[arg(long, conflicts_with_all = ["output", "names"])]
    verify: bool,
}

/// What an image may weigh, in bytes: a new node pulls it before its first pod starts.
const LARGEST: u64 = 30_000_000;

pub fn run(arguments: &Arguments) -> Result<()> {
    setup::ensure(Verb::Image)?;
    let platform = match arguments.platform.or(Platform::host()) {
        Some(platform) => platform,
        None => bail!("there are no images for this machine; choose one with --platform"),
    };
    let Some(output) = &arguments.output else {
        return verify::run(platform);
    };
    let names = if arguments.names.is_empty() {
        vec![recipe::default_name()?]
    } else {
        arguments.names.clone()
    };
    let digest = write(output, platform, &names)?;
    for name in names {
        println!("{name} {platform} {digest}");
    }
    Ok(())
}

/// Writes the image for clusters on this machine, under the name that the chart expects; returns where it lies.
pub fn for_clusters() -> Result<PathBuf> {
    let output = workspace::target_dir()?.join("weir-image.tar");
    let platform = Platform::host().context("there are no images for this machine")?;
    write(&output, platform, &[recipe::default_name()?])?;
    Ok(output)
}

/// Makes sure that images can be built for the platform that this machine is not; says by what.
pub fn ensure_cross() -> Result<String> {
    let others = Platform::ALL
        .into_iter()
        .filter(|platform| Platform::host() != Some(*platform));
    let made = others.map(|platform| Ok(format!("{platform} ({})", binary::ensure_cross(platform)?)));
    Ok(made.collect::<Result<Vec<String>>>()?.join(", "))
}

/// Whether `weir` compiles for the platforms that this machine is not.
pub fn check_others() -> Result<()> {
    let mut others = Platform::ALL
        .into_iter()
        .filter(|platform| Platform::host() != Some(*platform));
    others.try_for_each(binary::check)
}

/// Builds the binary, writes the archive with it, and returns the digest of the image.
fn write(output: &Path, platform: Platform, names: &[Reference]) -> Result<Digest> {
    let binary = binary::build(platform)?;
    let read = |file: &Path| fs::read(file).with_context(|| format!("reading {}", file.display()));
    let content = |source: recipe::Source| match source {
        recipe::Source::Binary => {
            let program = read(&binary)?;
            elf::check(&program, platform).with_context(|| format!("{} does not suit an image", binary.display()))?;
            Ok(program)
        }
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
