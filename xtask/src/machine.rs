//! What the machine itself must be: a kernel new enough, root, the bpf file system.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::{
        statfs::{BPF_FS_MAGIC, statfs},
        utsname::uname,
    },
    unistd::geteuid,
};

/// The oldest kernel that Weir supports.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

const BPFFS: &str = "/sys/fs/bpf";

/// The running kernel's release, if it is new enough.
pub fn kernel() -> Result<String> {
    let uname = uname().context("asking for the kernel's version")?;
    let release = uname.release().to_string_lossy().into_owned();
    let (major, minor) = OLDEST_KERNEL;
    match version(&release) {
        Some(version) if version >= OLDEST_KERNEL => Ok(release),
        Some(_) => bail!("kernel {release} is too old: Weir needs Linux {major}.{minor} or later"),
        None => bail!("cannot read the kernel's version from {release:?}: Weir needs Linux {major}.{minor} or later"),
    }
}

/// The first two numbers of a version, whatever follows them.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Mounts the bpf file system, which keeps pinned programs and maps, if that has not been done.
pub fn bpffs() -> Result<()> {
    let mounted = statfs(BPFFS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    if mounted {
        return Ok(());
    }
    if !Path::new(BPFFS).exists() {
        bail!("{BPFFS} does not exist: this kernel has no BPF, or sysfs is not mounted at /sys");
    }
    eprintln!("setup: mounting the bpf file system at {BPFFS}");
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mounting the bpf file system; as root: mount -t bpf bpf {BPFFS}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_of_kernels_and_of_go_are_read() {
        assert_eq!(version("6.1.0-44-amd64"), Some((6, 1)));
        assert_eq!(version("6.18.44"), Some((6, 18)));
        assert_eq!(version("6.12+bpo-cloud"), Some((6, 12)));
        assert_eq!(version("unknown"), None);
        assert_eq!(version("1.26.8"), Some((1, 26)));
        assert_eq!(version("1.21rc2"), Some((1, 21)));
        assert_eq!(version("1.19~1"), Some((1, 19)));
        assert_eq!(version("(none)"), None);
    }
}
