//! bpf(2), for what no library offers.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use anyhow::{Context, Result};
use aya::maps::MapData;

const OBJ_GET: libc::c_long = 7;
const MAP_FREEZE: libc::c_long = 22;
const LINK_DETACH: libc::c_long = 34;

/// `bpf(2)` with its attributes as words.
pub(crate) fn bpf<const N: usize>(command: libc::c_long, attributes: &mut [u64; N]) -> io::Result<RawFd> {
    // SAFETY: the attributes live through the call, and its size is told; what they point to is the callers' and
    // lives as long.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<[u64; N]>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as RawFd)
    }
}

/// From now on the kernel refuses all writes to a pinned map by system calls (`EPERM`); programs go on with it.
///
/// # Errors
/// If there is no such pin, or the kernel is too old (5.2).
pub fn freeze(pin: &Path) -> Result<()> {
    let map = MapData::from_pin(pin).with_context(|| format!("open the pin {}", pin.display()))?;
    let fd = u32::try_from(map.fd().as_fd().as_raw_fd())?;
    bpf(MAP_FREEZE, &mut [u64::from(fd)]).with_context(|| format!("freeze {}", pin.display()))?;
    Ok(())
}

/// Detaches a pinned link, as `bpftool link detach` does: the link and its pin stay, and nothing runs any more.
///
/// # Errors
/// If there is no such pin, or it is no link's.
pub fn detach_link(pin: &Path) -> Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let link =
        bpf(OBJ_GET, &mut [path.as_ptr() as u64, 0]).with_context(|| format!("open the pin {}", pin.display()))?;
    // SAFETY: the kernel has just made this descriptor; nobody else owns it.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let fd = u32::try_from(link.as_raw_fd())?;
    bpf(LINK_DETACH, &mut [u64::from(fd)]).with_context(|| format!("detach {}", pin.display()))?;
    Ok(())
}
